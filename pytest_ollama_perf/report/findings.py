"""What experiments found, as lines of text: one function for each kind of finding.

The text of the kinds in ``finding/x.py`` is made in ``report/x.py``, which is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from functools import singledispatch

from pytest_ollama_perf.finding import Finding


@singledispatch
def lines(finding: Finding, width: int) -> list[str]:
    """Return ``finding`` as lines of at most ``width`` columns, indented by two."""
    module = type(finding).__module__
    importlib.import_module(module.replace(".finding.", ".report."))
    made = lines.dispatch(type(finding))
    if made is lines.dispatch(object):
        raise TypeError(
            f"no text for a {type(finding).__name__}: {module} has no counterpart in report that registers it"
        )
    return made(finding, width)


def all_lines(findings: Iterable[Finding], width: int) -> list[str]:
    """Return the lines of every finding, an empty line before each."""
    return [line for finding in findings for line in ("", *lines(finding, width))]
