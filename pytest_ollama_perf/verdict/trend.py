"""Slow drift that no single comparison sees: a CUSUM (Page 1954) against a reference that stays where it was pinned.

The reference is the first runs of the epoch and never moves by itself; accepting a regression starts a new epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from pytest_ollama_perf.verdict.gate import Baseline, Rule, fit

REFERENCE = 20
"""How many runs, the first of the epoch, are the reference."""

_CLIP = 2.0
_SLACK = 1.0
_THRESHOLD = 6.0
_RECENT = 5


@dataclass(frozen=True)
class Point:
    """A run's time (Unix seconds) and its cost (``run_value``)."""

    at: float
    cost: float


@dataclass(frozen=True)
class Trend:
    """What the sum says after the last run.

    ``warns`` is set while it stands above the threshold; ``since`` is the time of the first run after it last stood at
    0, ``slowdown`` how much the median of the newest five runs since then is above the reference (0.03: 3 % slower).
    ``missing`` says how many runs the reference still lacks. ``sums`` has one value for each run after it.
    """

    warns: bool = False
    since: float | None = None
    slowdown: float = 0.0
    missing: int = 0
    sums: tuple[float, ...] = ()


def trend(points: Iterable[Point], rule: Rule) -> Trend:
    """Follow the runs of one epoch, oldest first. Runs without data (``NaN``) are passed over."""
    runs = [point for point in points if not math.isnan(point.cost)]
    reference = fit((run.cost for run in runs[:REFERENCE]), rule)
    if len(runs) < REFERENCE or reference is None:
        return Trend(missing=max(1, REFERENCE - len(runs)))
    later = runs[REFERENCE:]
    sums = _sums(later, reference)
    start = _start(sums)
    if start == len(sums):
        return Trend(sums=sums)
    recent = median(run.cost for run in later[start:][-_RECENT:])
    slowdown = math.inf if recent == math.inf else math.expm1(recent - reference.mean)
    return Trend(sums[-1] > _THRESHOLD, later[start].at, slowdown, sums=sums)


def _sums(runs: Iterable[Point], reference: Baseline) -> tuple[float, ...]:
    sums, total = [], 0.0
    for run in runs:
        z = (run.cost - reference.mean) / reference.sd
        total = max(0.0, total + max(-_CLIP, min(_CLIP, z)) - _SLACK)
        sums.append(total)
    return tuple(sums)


def _start(sums: tuple[float, ...]) -> int:
    """Return the index of the first run after the sum last stood at 0; ``len(sums)`` where it stands there now."""
    return next((index + 1 for index in range(len(sums) - 1, -1, -1) if sums[index] == 0.0), 0)
