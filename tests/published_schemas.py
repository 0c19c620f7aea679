"""Compares a JSON schema in the repository with the one that the code builds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WRITE = "out of date; run: python docs/generated.py"


def assert_same_schema(published: Path, build: Any) -> None:
    """Compare a file with what ``build`` returns; the order of alternatives depends on the version of msgspec."""
    assert _sort_alternatives(published.read_bytes()) == _sort_alternatives(build()), WRITE


def _sort_alternatives(data: bytes) -> Any:
    return json.loads(data, object_hook=_sort_any_of)


def _sort_any_of(value: dict[str, Any]) -> dict[str, Any]:
    return {key: sorted(each, key=json.dumps) if key == "anyOf" else each for key, each in value.items()}
