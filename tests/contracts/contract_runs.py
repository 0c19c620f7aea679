"""Contract files in a folder of their own, and pytest run on them."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import pytest
from pytest_runs import PLUGIN


class Contracts:
    """Writes contract files and runs pytest on them."""

    def __init__(self, pytester: pytest.Pytester, url: str) -> None:
        self._pytester, self.url = pytester, url
        self.path = pytester.path

    def write(self, text: str, name: str = "c.ollama.toml") -> None:
        (self.path / name).write_text(textwrap.dedent(text), encoding="utf-8")

    def run(self, *arguments: str, cache: bool = False, url: str = "") -> pytest.RunResult:
        plugins = [*PLUGIN, *([] if cache else ["-p", "no:cacheprovider"])]
        where = [f"--ollama-url={url or self.url}", "--ollama-report=json:report.json"]
        return self._pytester.runpytest_inprocess(*plugins, *where, *arguments)

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.path / "report.json").read_text(encoding="utf-8"))
