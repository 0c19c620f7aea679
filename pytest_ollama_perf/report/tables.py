"""Text in terminal columns: how wide it is, how it is cut, wrapped and set in a table."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.verdict import FAILING_STATUSES, VerdictRow, VerdictStatus
from pytest_ollama_perf.metrics import METRICS, STATS, Unit, format_label, format_number, format_percent, format_value
from pytest_ollama_perf.metrics.summary import MetricSummary, Summary

DEFAULT_WIDTH = 80
"""Columns that every text of this package fits."""


def clean(text: str, limit: int = 600) -> str:
    """Return ``text`` on one line, inert and cut to ``limit`` characters, with dots for the ellipsis."""
    return sanitize(text, limit).replace("…", "...").strip()


def count_columns(text: str) -> int:
    """Return how many columns a terminal gives ``text`` (Unicode UAX #11: wide and full-width take two)."""
    return len(text) if text.isascii() else sum(map(_count_char_columns, text))


def _count_char_columns(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def take_columns(text: str, width: int) -> str:
    """Return the longest beginning of ``text`` that fits ``width`` columns."""
    used = 0
    for index, char in enumerate(text):
        used += _count_char_columns(char)
        if used > width:
            return text[:index]
    return text


def truncate(text: str, width: int) -> str:
    """Return ``text`` in at most ``width`` columns; a cut one ends in dots."""
    return (
        text
        if count_columns(text) <= width
        else (take_columns(text, width - 3) + "..." if width > 3 else take_columns(text, max(width, 0)))
    )


def truncate_middle(text: str, width: int) -> str:
    """Return ``text`` in at most ``width`` columns, dots in its middle: both ends of a test's name identify it."""
    if count_columns(text) <= width:
        return text
    if width < 5:
        return take_columns(text, max(width, 0))
    front = take_columns(text, (width - 3) // 2)
    back = take_columns(text[::-1], width - 3 - count_columns(front))[::-1]
    return f"{front}...{back}"


def wrap(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    """Return ``text`` broken at spaces into lines of at most ``width`` columns, each behind ``first`` or ``rest``.

    A word longer than a line is broken where the line ends.
    """
    lines, line = [], first
    empty = True
    for word in text.split():
        for piece in _split_word(word, width - max(count_columns(first), count_columns(rest))):
            if not empty and count_columns(line) + 1 + count_columns(piece) > width:
                lines.append(line)
                line, empty = rest, True
            line += piece if empty else f" {piece}"
            empty = False
    return [*lines, line.rstrip()]


def _split_word(word: str, width: int) -> Iterable[str]:
    while count_columns(word) > width:
        piece = take_columns(word, width) or word[:1]
        if word[len(piece) :].startswith("::") and len(piece) > 1:  # a line must not begin with a CI command
            piece = piece[:-1]
        yield piece
        word = word[len(piece) :]
    if word:
        yield word


def join_phrases(phrases: Iterable[str], width: int, indent: str) -> list[str]:
    """Return ``phrases`` behind commas, broken only between phrases where each fits a line."""
    lines: list[str] = []
    line = ""
    for phrase in phrases:
        longer = f"{line}, {phrase}" if line else phrase
        if line and count_columns(indent) + count_columns(longer) + 1 > width:
            lines.append(f"{indent}{line},")
            longer = phrase
        line = longer
    whole = [*lines, f"{indent}{line}"] if line else lines
    return [truncate(each, width) for each in whole]


def align_table(rows: Sequence[Sequence[str]], gap: int = 4) -> list[str]:
    """Return ``rows`` as aligned lines: the first column to the left, the others to the right, no trailing spaces."""
    if not rows:
        return []
    widths = [max(count_columns(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [_align_row(row, widths, gap).rstrip() for row in rows]


def _align_row(row: Sequence[str], widths: Sequence[int], gap: int) -> str:
    first = row[0] + " " * (widths[0] - count_columns(row[0]))
    others = (" " * (gap + width - count_columns(cell)) + cell for cell, width in zip(row[1:], widths[1:], strict=True))
    return first + "".join(others)


INDENT = "  "


def format_judged_tables(rows: Sequence[VerdictRow], width: int) -> list[str]:
    """Return the judged numbers: one table of those against a limit, one of those against the history."""
    limits = [row for row in rows if row.bound is not None]
    history = [row for row in rows if row.bound is None]
    lines = []
    if limits:
        lines += ["", *fit_table([("", "limit", "now", "95% CI"), *_build_limit_rows(limits)], width)]
    if history:
        lines += [
            "",
            *fit_table([("", "baseline", "now", "change", "95% CI", "margin"), *build_change_rows(history)], width),
        ]
    return lines


def fit_table(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Set ``rows`` with the widest gap that fits; numbers beyond all reason are cut."""
    drawn = (align_table(rows, gap) for gap in (4, 3, 2, 1))
    fitting = (lines for lines in drawn if max(map(count_columns, lines)) <= width)
    return next(fitting, None) or [truncate(line, width) for line in align_table(rows, 1)]


def _format_row_name(row: VerdictRow) -> str:
    unsure = row.status in {VerdictStatus.UNSURE, VerdictStatus.INCOMPARABLE}
    mark = "x" if row.gating and row.status in FAILING_STATUSES else "?" if row.gating and unsure else " "
    where = f", {clean(row.where, 30)}" if row.where else ""
    return f"{INDENT}{mark} {format_label(row.metric, row.stat)}{where}"


def _build_limit_rows(rows: Sequence[VerdictRow]) -> Iterator[tuple[str, ...]]:
    intervals = _align_intervals([_format_ends(row) for row in rows])
    for row, interval in zip(rows, intervals, strict=True):
        yield (
            _format_row_name(row),
            f"{row.op} {format_value(row.metric, row.bound)}",
            format_value(row.metric, row.value),
            interval,
        )


def build_change_rows(rows: Sequence[VerdictRow]) -> Iterator[tuple[str, ...]]:
    """Yield the columns of rows with a baseline: name, before, after, change, its interval, margin."""
    intervals = _align_intervals([_format_change_ends(row) for row in rows])
    for row, interval in zip(rows, intervals, strict=True):
        baseline, now = format_value(row.metric, row.baseline), format_value(row.metric, row.value)
        yield (
            _format_row_name(row),
            baseline,
            now,
            _format_tight_percent(row.change),
            interval,
            _format_tight_percent(_sign_margin(row)),
        )


def _sign_margin(row: VerdictRow) -> float | None:
    """Return the margin with the sign that a change for the worse has."""
    if row.margin is None:
        return None
    return -abs(row.margin) if METRICS[row.metric].is_higher_better else abs(row.margin)


def _format_tight_percent(share: float | None) -> str:
    return "-" if share is None else format_percent(share, signed=True).replace(" ", "")


def _format_ends(row: VerdictRow) -> tuple[str, str]:
    """Return both ends of the interval; the first without its unit where the second has the same."""
    if row.low is None or row.high is None:
        return "", ""
    low, high = format_value(row.metric, row.low), format_value(row.metric, row.high)
    same = low.partition(" ")[2] == high.partition(" ")[2]
    return low.partition(" ")[0] if same else low, high


def _format_change_ends(row: VerdictRow) -> tuple[str, str]:
    if row.low is None or row.high is None:
        return "", ""
    return _format_signed_share(row.low), f"{_format_signed_share(row.high)}%"


def _format_signed_share(share: float) -> str:
    if not math.isfinite(share):
        return format_percent(share, signed=True).removesuffix(" %")
    return f"{'' if share < 0 else '+'}{format_number(share * 100, 2)}"


def _align_intervals(ends: Sequence[tuple[str, str]]) -> list[str]:
    """Return intervals with aligned ends."""
    low_width, high_width = (max(len(pair[end]) for pair in ends) for end in (0, 1))
    return [f"{low:>{low_width}} .. {high:>{high_width}}" if high else "-" for low, high in ends]


_MATRIX_STATS = ("", *STATS)
_VALUE_WIDTH = 7
_NAME_WIDTH = 21


def format_metric_matrix(summary: Summary, width: int) -> list[str]:
    """Return a row for each metric and, under it, both ends of the 95 % intervals.

    The unit follows the name and is the same for the whole row; a column without a number is empty.
    """
    lines = [_align_metric_line("", ["value", *STATS])]
    for name, found in summary.metrics.items():
        lines += _build_metric_lines(name, found)
    return [truncate(line, width) for line in lines]


def _build_metric_lines(name: str, found: MetricSummary) -> Iterator[str]:
    numbers = [found.get(column) for column in _MATRIX_STATS]
    scale, unit = _choose_scale(name, numbers)
    yield _align_metric_line(f"{name} {unit}", [_format_scaled(value, scale) for value in numbers])
    ends = [found.get_interval(column) for column in _MATRIX_STATS]
    if any(ends):
        for side, word in enumerate(("from", "to")):
            yield _align_metric_line(
                f"  95% CI {word}", [_format_scaled(pair[side], scale) if pair else "" for pair in ends]
            )


def _align_metric_line(name: str, columns: Iterable[str]) -> str:
    return (f"  {name:<{_NAME_WIDTH}}" + "".join(f"{column:>{_VALUE_WIDTH}}" for column in columns)).rstrip()


_UNIT_SCALES = {
    Unit.SHARE: (100.0, "%"),
    Unit.BYTES: (2.0**-30, "GiB"),
    Unit.CELSIUS: (1.0, "°C"),
    Unit.JOULES_PER_TOKEN: (1.0, "J"),
}


def _choose_scale(name: str, values: Iterable[float | None]) -> tuple[float, str]:
    """Return what to multiply a row's numbers with and the unit they then have: ms where all are below ten seconds."""
    unit = METRICS[name].unit
    if unit in _UNIT_SCALES:
        return _UNIT_SCALES[unit]
    if unit is not Unit.SECONDS:
        return 1.0, "/s"
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return (1e3, "ms") if max(finite, default=0.0) < 10 else (1.0, "s")


def _format_scaled(value: float | None, scale: float) -> str:
    if value is None or math.isnan(value):
        return ""
    text = "inf" if math.isinf(value) else format_number(value * scale)
    return text if len(text) < _VALUE_WIDTH else f"{value * scale:.0e}"
