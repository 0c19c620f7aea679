"""What experiments found, as lines of text: one function for each kind of finding."""

from __future__ import annotations

from collections.abc import Iterable
from functools import singledispatch

from pytest_ollama_perf.finding import Finding


@singledispatch
def lines(finding: Finding, width: int) -> list[str]:
    """Return ``finding`` as lines of at most ``width`` columns, indented by two."""
    raise TypeError(f"no text for a {type(finding).__name__}")


def all_lines(findings: Iterable[Finding], width: int) -> list[str]:
    """Return the lines of every finding, an empty line before each."""
    return [line for finding in findings for line in ("", *lines(finding, width))]
