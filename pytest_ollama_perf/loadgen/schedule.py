"""Stages of a load: the level at any time, and the times at which clients start or requests are due."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from pytest_ollama_perf.core.workload import Stage

_EPSILON = 1e-9


class StageSchedule:
    """Consecutive stages; seconds count from the start of the first."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        ends = list(accumulate(stage.seconds for stage in stages))
        begins = [0.0, *ends[:-1]]
        before = [0.0, *(stage.level for stage in stages[:-1])]
        self.seconds = ends[-1]
        self._parts = [
            (begin, end, start if stage.ramp else stage.level, stage.level)
            for stage, begin, end, start in zip(stages, begins, ends, before, strict=True)
        ]

    def compute_level(self, at_s: float) -> float:
        """Return the level at a time; 0 after the end."""
        for begin, end, low, high in self._parts:
            if at_s < end:
                return low + (high - low) * (at_s - begin) / (end - begin)
        return 0.0

    def compute_join_time(self, client: int, after_s: float) -> float:
        """Return the first time from ``after_s`` on at which ``client`` may run; ``inf`` for never."""
        wanted = client + 1 - _EPSILON
        for begin, end, low, high in self._parts:
            since = max(begin, after_s)
            if since >= end:
                continue
            now = low + (high - low) * (since - begin) / (end - begin)
            if now >= wanted:
                return since
            if high >= wanted:
                return max(since, begin + (client + 1 - low) / (high - low) * (end - begin))
        return math.inf

    def compute_arrival_time(self, arrivals: float) -> float:
        """Return when the given number of requests is due, with the level in requests/s; ``inf`` if fewer ever are.

        The rate's integral over a ramp is a parabola; this is its inverse.
        """
        left = arrivals
        for begin, end, low, high in self._parts:
            whole = (low + high) / 2 * (end - begin)
            # nothing is due at the end itself
            if left < whole:
                return begin + _solve_ramp_time(left, low, (high - low) / (end - begin))
            left -= whole
        return math.inf


def _solve_ramp_time(area: float, low: float, slope: float) -> float:
    """Solve low t + slope t^2 / 2 = area for the earliest t of 0 or more."""
    if not slope:
        return area / low
    # this form is accurate for small slopes
    root = math.sqrt(max(0.0, low * low + 2 * slope * area))
    return 2 * area / (low + root) if low + root else 0.0
