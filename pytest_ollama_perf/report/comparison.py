"""The text of an A/B comparison: what was compared, and a table of before and after."""

from __future__ import annotations

from pytest_ollama_perf.finding.comparison import Comparison
from pytest_ollama_perf.report.findings import lines
from pytest_ollama_perf.report.layout import clean, wrap
from pytest_ollama_perf.report.rows import INDENT, change_cells, fitted
from pytest_ollama_perf.verdict.wording import count

_HEADS = ("", "baseline", "candidate", "change", "95% CI", "margin")


@lines.register
def _(finding: Comparison, width: int) -> list[str]:
    """The sides, the table, and how much was measured for it."""
    sides = [("baseline", finding.baseline), ("candidate", finding.candidate)]
    told = [line for name, what in sides for line in wrap(f"{name}: {clean(what)}", width, INDENT, INDENT * 2)]
    table = fitted([_HEADS, *change_cells(finding.rows)], width) if finding.rows else []
    return [*told, "", *table, "", *wrap(_size(finding), width, INDENT, INDENT)]


def _size(finding: Comparison) -> str:
    blocks = count(finding.blocks, "block")
    return f"{blocks} ABBA of {finding.requests} requests a side, the model loaded anew for every turn"
