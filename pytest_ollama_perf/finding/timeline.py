"""A load along its time: throughput, TTFT and errors per window, from the samples alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import msgspec
import numpy as np

from pytest_ollama_perf.finding import Finding
from pytest_ollama_perf.load.course import Course
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.sample import Sample
from pytest_ollama_perf.summary import request_values
from pytest_ollama_perf.summary.window import tokens_by

LEAST_S = 10.0
"""Loads that time ends sooner are too short for a course of their own; staged ones always have one."""

MOST_WINDOWS = 12
_WIDTHS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One window, in seconds since the measured load began.

    ``requests`` counts those that ended in it, ``failed`` ones among them; TTFT is of these, infinite where failures
    reach it, ``None`` without any. ``throughput`` is the tokens/s that arrived in it; ``level`` the mean load
    that the stages ask for (clients or requests/s), ``None`` without stages.
    """

    begin_s: float
    end_s: float
    requests: int
    failed: int
    throughput: float
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    level: float | None = None


class Timeline(Finding, frozen=True, kw_only=True):
    """A load in windows of ``window_s``.

    ``change`` is that of the throughput from the first third of the windows to the last, as a share; ``None`` where
    stages move the load or there are fewer than six windows.
    """

    beside_numbers: ClassVar[bool] = True

    window_s: float
    spans: tuple[Span, ...]
    change: float | None = None


def timeline(run: Run) -> tuple[Timeline, ...]:
    """Return the course of ``run`` where it has one: stages, or a duration of at least ``LEAST_S``."""
    asked, samples = run.workload, run.measured
    long = asked.stages or (asked.duration_s is not None and asked.duration_s >= LEAST_S)
    if not samples or not long:
        return ()
    course = Course(asked.stages) if asked.stages else None
    begun = min(sample.start_ns for sample in samples) - _led_in_ns(course, closed=asked.rate is None)
    lasted = max((max(sample.done_ns for sample in samples) - begun) / 1e9, asked.duration_s or 0.0)
    width = next((each for each in _WIDTHS if lasted <= each * MOST_WINDOWS), _WIDTHS[-1])
    edges = begun + np.arange(math.ceil(lasted / width - 1e-9) + 1) * round(width * 1e9)
    made = tokens_by(samples, edges.astype(np.int64))
    spans = tuple(
        _span(_ended_in(samples, int(low), int(high)), number * width, width, float(tokens), course)
        for number, (low, high, tokens) in enumerate(zip(edges[:-1], edges[1:], made, strict=True))
    )
    return (Timeline(window_s=float(width), spans=spans, change=None if course else _change(spans)),)


def _led_in_ns(course: Course | None, *, closed: bool) -> int:
    """Return how long after the beginning of the stages the first request was due."""
    if course is None:
        return 0
    return round(1e9 * (course.joins(0, 0.0) if closed else course.time_of(0.0)))


def _ended_in(samples: Sequence[Sample], low: int, high: int) -> list[Sample]:
    return [sample for sample in samples if low < sample.done_ns <= high]


def _span(ended: Sequence[Sample], begin: float, width: float, tokens: float, course: Course | None) -> Span:
    ttft = sorted(request_values("ttft", ended))
    return Span(
        begin_s=float(begin),
        end_s=float(begin + width),
        requests=len(ended),
        failed=sum(not sample.ok for sample in ended),
        throughput=tokens / width,
        ttft_p50_s=_ranked(ttft, 0.50),
        ttft_p95_s=_ranked(ttft, 0.95),
        level=_level(course, begin, width) if course else None,
    )


def _ranked(ordered: Sequence[float], share: float) -> float | None:
    """Return the percentile by nearest rank, which needs no values beside it."""
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else None


def _level(course: Course, begin: float, width: float, parts: int = 20) -> float:
    """Return the mean level of a window, at so many moments in the middle of equal parts."""
    return math.fsum(course.level(begin + width * (part + 0.5) / parts) for part in range(parts)) / parts


def _change(spans: Sequence[Span]) -> float | None:
    """Compare the last third of the whole windows with the first; the very last window is seldom full."""
    whole = spans[:-1]
    third = len(whole) // 3
    if third < 2:
        return None
    first = math.fsum(span.throughput for span in whole[:third])
    last = math.fsum(span.throughput for span in whole[-third:])
    return last / first - 1 if first else None
