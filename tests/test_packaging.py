"""requirements/oldest.txt pins the minimum version of every dependency in pyproject.toml."""

from __future__ import annotations

import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def declared_minimums() -> dict[str, Version]:
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    requirements = [Requirement(line) for lines in lists for line in lines]
    found = {each.name: each for each in requirements if each.name != PROJECT["name"]}
    return {name: Version(str(each.specifier).removeprefix(">=")) for name, each in found.items()}


def pinned_versions() -> dict[str, Version]:
    lines = (ROOT / "requirements/oldest.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name: Version(version) for name, version in pins}


def test_oldest_requirements_pin_every_minimum():
    pinned = pinned_versions()
    assert pinned.pop("psycopg-binary") == pinned["psycopg"]
    assert pinned == declared_minimums()
