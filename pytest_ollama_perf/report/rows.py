"""Judged numbers as tables: against a limit, and before and after."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pytest_ollama_perf.metric import METRICS
from pytest_ollama_perf.report.layout import cells, clean, cut, table
from pytest_ollama_perf.verdict.wording import label, number, percent, show
from pytest_ollama_perf.verdict.words import FAILING, Row, Word

INDENT = "  "


def tables(rows: Sequence[Row], width: int) -> list[str]:
    """Return the judged numbers: one table of those against a limit, one of those against the history."""
    limits = [row for row in rows if row.bound is not None]
    history = [row for row in rows if row.bound is None]
    lines = []
    if limits:
        lines += ["", *fitted([("", "limit", "now", "95% CI"), *_limit_cells(limits)], width)]
    if history:
        lines += ["", *fitted([("", "baseline", "now", "change", "95% CI", "margin"), *change_cells(history)], width)]
    return lines


def fitted(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Set ``rows`` with the widest gap that fits; numbers beyond all reason are cut."""
    drawn = (table(rows, gap) for gap in (4, 3, 2, 1))
    fitting = (lines for lines in drawn if max(map(cells, lines)) <= width)
    return next(fitting, None) or [cut(line, width) for line in table(rows, 1)]


def _name(row: Row) -> str:
    unsure = row.word in {Word.UNSURE, Word.INCOMPARABLE}
    mark = "x" if row.gating and row.word in FAILING else "?" if row.gating and unsure else " "
    where = f", {clean(row.where, 30)}" if row.where else ""
    return f"{INDENT}{mark} {label(row.metric, row.stat)}{where}"


def _limit_cells(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    intervals = _intervals([_ends(row) for row in rows])
    for row, interval in zip(rows, intervals, strict=True):
        yield _name(row), f"{row.op} {show(row.metric, row.bound)}", show(row.metric, row.value), interval


def change_cells(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """Yield the columns of rows with a baseline: name, before, after, change, its interval, margin."""
    intervals = _intervals([_change_ends(row) for row in rows])
    for row, interval in zip(rows, intervals, strict=True):
        baseline, now = show(row.metric, row.baseline), show(row.metric, row.value)
        yield _name(row), baseline, now, _tight(row.change), interval, _tight(_worse(row))


def _worse(row: Row) -> float | None:
    """Return the margin with the sign that a change for the worse has."""
    if row.margin is None:
        return None
    return -abs(row.margin) if METRICS[row.metric].is_rate else abs(row.margin)


def _tight(share: float | None) -> str:
    return "-" if share is None else percent(share, signed=True).replace(" ", "")


def _ends(row: Row) -> tuple[str, str]:
    """Return both ends of the interval; the first without its unit where the second has the same."""
    if row.low is None or row.high is None:
        return "", ""
    low, high = show(row.metric, row.low), show(row.metric, row.high)
    same = low.partition(" ")[2] == high.partition(" ")[2]
    return low.partition(" ")[0] if same else low, high


def _change_ends(row: Row) -> tuple[str, str]:
    if row.low is None or row.high is None:
        return "", ""
    return _signed(row.low), f"{_signed(row.high)}%"


def _signed(share: float) -> str:
    return (
        percent(share, signed=True)[:-2] if math.isinf(share) else f"{'' if share < 0 else '+'}{number(share * 100, 2)}"
    )


def _intervals(ends: Sequence[tuple[str, str]]) -> list[str]:
    """Return intervals whose ends stand under each other."""
    low_width, high_width = (max(len(pair[end]) for pair in ends) for end in (0, 1))
    return [f"{low:>{low_width}} .. {high:>{high_width}}" if high else "-" for low, high in ends]
