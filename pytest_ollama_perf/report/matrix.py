"""Every metric with every statistic and its interval, as one table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from pytest_ollama_perf.metric import METRICS, STATS, Unit
from pytest_ollama_perf.report.layout import cut
from pytest_ollama_perf.summary import MetricSummary, Summary
from pytest_ollama_perf.verdict.wording import number

_COLUMNS = ("", *STATS)
_WIDTH = 7
_NAME = 21


def matrix(summary: Summary, width: int) -> list[str]:
    """Return a row for each metric and, under it, both ends of the 95 % intervals.

    The unit stands behind the name, one for the whole row; a column without a number is empty.
    """
    lines = [_line("", ["value", *STATS])]
    for name, found in summary.metrics.items():
        lines += _rows(name, found)
    return [cut(line, width) for line in lines]


def _rows(name: str, found: MetricSummary) -> Iterator[str]:
    numbers = [found.get(column) for column in _COLUMNS]
    scale, unit = _scale(name, numbers)
    yield _line(f"{name} {unit}", [_show(value, scale) for value in numbers])
    ends = [found.interval(column) for column in _COLUMNS]
    if any(ends):
        for side, word in enumerate(("from", "to")):
            yield _line(f"  95% CI {word}", [_show(pair[side], scale) if pair else "" for pair in ends])


def _line(name: str, columns: Iterable[str]) -> str:
    return (f"  {name:<{_NAME}}" + "".join(f"{column:>{_WIDTH}}" for column in columns)).rstrip()


_FIXED = {
    Unit.SHARE: (100.0, "%"),
    Unit.BYTES: (2.0**-30, "GiB"),
    Unit.CELSIUS: (1.0, "°C"),
    Unit.JOULES_PER_TOKEN: (1.0, "J"),
}


def _scale(name: str, values: Iterable[float | None]) -> tuple[float, str]:
    """Return what to multiply a row's numbers with and the unit they then have: ms where all are below ten seconds."""
    unit = METRICS[name].unit
    if unit in _FIXED:
        return _FIXED[unit]
    if unit is not Unit.SECONDS:
        return 1.0, "/s"
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return (1e3, "ms") if max(finite, default=0.0) < 10 else (1.0, "s")


def _show(value: float | None, scale: float) -> str:
    if value is None or math.isnan(value):
        return ""
    text = "inf" if math.isinf(value) else number(value * scale)
    return text if len(text) < _WIDTH else f"{value * scale:.0e}"
