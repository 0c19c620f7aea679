"""Charts of a test against its past."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_ollama_perf.metric import METRICS
from pytest_ollama_perf.report.json_report import RowEntry
from pytest_ollama_perf.report.layout import clean
from pytest_ollama_perf.report.page import charts
from pytest_ollama_perf.report.page.charts import Chart
from pytest_ollama_perf.verdict.wording import label, percent


def allowed(row: RowEntry) -> float | None:
    """Return the margin with the sign that a change for the worse has."""
    if row.margin is None:
        return None
    return -abs(row.margin) if METRICS[row.metric].is_rate else abs(row.margin)


def changes(rows: Sequence[RowEntry]) -> Iterator[Chart]:
    """Yield the chart of what changed against the baseline, where there is one."""
    known = [row for row in rows if row.change is not None]
    if not known:
        return
    said = (f"{_name(row)} {percent(row.change, signed=True)}" for row in known if row.change is not None)
    cells = [(_name(row), row.change, row.low, row.high, allowed(row), row.word.value) for row in known]
    yield charts.changes(f"Changes against the baseline: {', '.join(said)}", cells)


def _name(row: RowEntry) -> str:
    return label(row.metric, row.stat) + (f", {clean(row.where, 40)}" if row.where else "")
