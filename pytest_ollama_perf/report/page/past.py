"""Charts of a test against its past: what changed, what the past requests were like, every stored run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone

from pytest_ollama_perf.metric import METRICS
from pytest_ollama_perf.report.json_report import RowEntry
from pytest_ollama_perf.report.layout import clean
from pytest_ollama_perf.report.page import charts, requests
from pytest_ollama_perf.report.page.charts import Cell, Chart
from pytest_ollama_perf.verdict.chronicle import Chronicle, Drift, PastRun
from pytest_ollama_perf.verdict.wording import label, percent, show


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


def baseline(past: Chronicle | None, metric: str) -> list[float]:
    """Return the values of the requests of all runs compared with, failed ones infinite; empty without a past."""
    stored = past.baseline.get(metric, ()) if past else ()
    return [math.inf if value is None else value for value in stored]


def history(past: Chronicle | None) -> Iterator[Chart]:
    """Yield for every metric the chart of all runs, where there is more than the one just measured."""
    if past is None or all(run.now for run in past.runs):
        return
    for metric in past.drift:
        values = [value for run in past.runs if (value := run.values.get(metric)) is not None]
        if not values:
            continue
        scale, axis = requests.axis(metric, values)
        drift = past.drift[metric]
        newest = past.runs[-1].epoch
        rows = [_row(number, run, metric, scale, drift, newest) for number, run in enumerate(past.runs, 1)]
        title = f"{metric} of every run"
        yield charts.history(title, _says(metric, values, drift, past.runs), axis, [row for row in rows if row])


def _row(number: int, run: PastRun, metric: str, scale: float, drift: Drift, newest: int) -> tuple[Cell, ...]:
    value = run.values.get(metric)
    reference = drift.reference if run.epoch == newest else None
    return (
        number,
        datetime.fromtimestamp(run.started_at, timezone.utc).strftime("%Y-%m-%d %H:%M"),
        None if value is None else value * scale,
        run.epoch,
        _kind(run, metric),
        clean(run.border, 200) or None,
        None if reference is None else reference * scale,
    )


def _kind(run: PastRun, metric: str) -> str:
    if run.now:
        return "now"
    if metric in run.outlier:
        return "left out"
    return "compared" if run.compared else "not compared"


def _says(metric: str, values: Sequence[float], drift: Drift, runs: Sequence[PastRun]) -> str:
    said = f"{metric} of {len(runs)} runs, from {show(metric, min(values))} to {show(metric, max(values))}"
    borders = [clean(run.border, 80) for run in runs if run.border]
    said += f", in {len(borders) + 1} epochs (the last since: {borders[-1]})" if borders else ""
    if drift.warns and drift.since is not None:
        since = datetime.fromtimestamp(drift.since, timezone.utc).strftime("%Y-%m-%d")
        return f"{said}; drifts since {since}: {percent(drift.slowdown)} slower than the first runs of this epoch"
    return f"{said}; {drift.missing} more runs are needed to see a drift" if drift.missing else f"{said}; no drift"
