"""A sweep as text: one table for each curve, and below it what the curve shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pytest_ollama_perf.finding.held import Held, shown
from pytest_ollama_perf.finding.sweep import LOAD_AXES, Curve, Level, Sweep, place
from pytest_ollama_perf.report.findings import lines
from pytest_ollama_perf.report.layout import clean, wrap
from pytest_ollama_perf.report.rows import fitted
from pytest_ollama_perf.verdict.wording import number, percent, seconds
from pytest_ollama_perf.verdict.words import FAILING

_INDENT = "  "
_HANGING = "    "
_AXES = {"concurrency": "at once", "rate": "req/s"}


@lines.register
def _(finding: Sweep, width: int) -> list[str]:
    text: list[str] = []
    for curve in finding.curves:
        text += [""] if text else []
        if curve.at:
            text += wrap(clean(place(curve.at)), width, _INDENT)
        text += _drawn(list(_rows(finding.axis, curve)), width)
        text += [line for told in _told(finding.axis, curve) for line in wrap(clean(told), width, _INDENT, _HANGING)]
    return [*text, *limits(finding.held, width)]


def limits(held: Sequence[Held], width: int) -> list[str]:
    """Return the limits on what an experiment found as a table, a cross at those that are broken."""
    if not held:
        return []
    rows = [("", "limit", "found")]
    for each in held:
        mark = "x" if each.word in FAILING else " "
        found = "-" if each.value is None else shown(each.value, each.unit)
        rows.append((f"{_INDENT}{mark} {clean(each.name, 40)}", f"{each.op} {shown(each.bound, each.unit)}", found))
    return ["", *fitted(rows, width)]


def _drawn(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Set ``rows`` as a table; columns that no row fills are left out."""
    kept = [column for column in range(len(rows[0])) if any(row[column] for row in rows[2:])]
    return fitted([[row[column] for column in kept] for row in rows], width)


def _rows(axis: str, curve: Curve) -> Iterator[tuple[str, ...]]:
    yield "", "", "", "tok/s", "tok/s", "", "", "ttft", "ttft", "lat.", "queue", ""
    name = _INDENT + _AXES.get(axis, axis)
    yield name, "ok", "tokens", "each", "system", "eff.", "req/s", "p50", "p95", "p95", "mean", "wall"
    if curve.single and curve.single.single:
        yield _row("1 alone" if axis == "rate" else "1", curve.single)
    for level in curve.levels:
        yield _row(clean(_axis_value(level.at[axis]), 20), level)


def _axis_value(value: float | str) -> str:
    return value if isinstance(value, str) else number(value, 9)


def _row(name: str, level: Level) -> tuple[str, ...]:
    return (
        f"{_INDENT}{name}",
        percent(level.success_rate).replace(" ", ""),
        str(level.output_tokens) if level.output_tokens else "",
        _rate(level.tps),
        _rate(level.throughput),
        "" if level.efficiency is None else percent(round(level.efficiency, 2)).replace(" ", ""),
        _rate(level.qps),
        _time(level.ttft_p50_s),
        _time(level.ttft_p95_s),
        _time(level.latency_p95_s),
        _time(level.queue_mean_s),
        _time(level.wall_s),
    )


def _rate(value: float | None) -> str:
    return "" if value is None else number(value)


def _time(value: float | None) -> str:
    if value is None:
        return ""
    return "failed" if math.isinf(value) else seconds(value, 2 if value < 1 else 3).replace(" ", "")


def _told(axis: str, curve: Curve) -> Iterator[str]:
    """Say what the curve shows, one sentence a line."""
    if axis in LOAD_AXES and curve.knee:
        yield _knee(axis, curve)
    if avalanche := curve.avalanche:
        yield (
            f"avalanche: from {_at(axis, avalanche.after)} to {_at(axis, avalanche.at)} the load grew "
            f"{number(avalanche.load_growth, 2)}-fold, the mean TTFT {_fold(avalanche.ttft_growth)} "
            f"to {_time(avalanche.ttft_s)}"
        )
    if curve.slots is not None:
        requests = "request ran" if curve.slots == 1 else "requests ran"
        yield f"slots: {curve.slots} {requests} at once while others waited (OLLAMA_NUM_PARALLEL)"
    if curve.stopped:
        yield curve.stopped


def _knee(axis: str, curve: Curve) -> str:
    knee = curve.knee
    assert knee is not None
    metric = "qps" if curve.levels[0].throughput is None else "throughput"
    speed = f"{number(knee.throughput)} {'requests' if metric == 'qps' else 'tokens'}/s"
    if len(curve.levels) == 1:
        return f"knee: one level cannot tell; it made {speed}"
    if not knee.reached:
        return f"knee: not reached, {_at(axis, knee.at)} still brought more ({speed})"
    between = f", between {number(knee.after)} and {number(knee.at)}" if knee.after is not None else ""
    return f"knee: {_at(axis, knee.at)}; throughput stops growing there{between}, at {speed}"


def _fold(growth: float) -> str:
    return "beyond all bounds" if math.isinf(growth) else f"{number(growth, 2)}-fold"


def _at(axis: str, value: float) -> str:
    return place({axis: int(value) if axis == "concurrency" else value})
