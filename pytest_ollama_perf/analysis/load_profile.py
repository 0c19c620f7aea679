"""What each of several servers did of one load: its part, its speed, and whether one of them is slow."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import ClassVar

import msgspec
import numpy as np

from pytest_ollama_perf.analysis import Finding
from pytest_ollama_perf.core.run import Run, ServerInfo
from pytest_ollama_perf.core.sample import Sample
from pytest_ollama_perf.core.workload import StageSchedule
from pytest_ollama_perf.metrics import format_number, format_seconds
from pytest_ollama_perf.metrics.per_request import count_tokens, list_request_values
from pytest_ollama_perf.metrics.summary import Summary, summarise

_MIN_REQUESTS = 5
"""Requests of a server below which nothing is said of its speed."""

_SLOWER_TPS = 0.85
_SLOWER_TTFT = 1.5
_MIN_DELAY_S = 0.02
"""A server is slow below this share of the others' tokens/s, or above this multiple of their TTFT and by so much."""

_UNEVEN_RATIO = 1.25
_CHANCE_DEVIATIONS = 3.0
"""A load is uneven where a server got a quarter more than its part, beyond three standard deviations of chance."""


class ServerSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One server. ``share`` is its part of all measured requests, ``expected`` the part it was to have, both 0..1.

    ``tps`` in tokens/s; ``ttft_p50`` and ``ttft_p95`` in seconds, infinite where requests failed; ``None`` where there
    is no such number. ``throughput`` is its tokens/s over the whole load.
    """

    name: str
    requests: int
    errors: int
    share: float
    expected: float
    tps: float | None
    throughput: float
    ttft_p50: float | None
    ttft_p95: float | None
    down: bool = False


class Servers(Finding, frozen=True, kw_only=True, tag="servers"):
    """The servers of one load, in the order given.

    ``behind`` is true if they are behind one address, which named them. ``imbalance`` is the largest ratio of a share
    to the expected share. ``uneven`` is the index of the server that received clearly more than its share; ``slow``
    describes those that are clearly slower than the others.
    """

    supplements_metrics: ClassVar[bool] = True

    servers: tuple[ServerSummary, ...]
    behind: bool
    imbalance: float
    uneven: int | None = None
    slow: tuple[str, ...] = ()


def summarise_servers(run: Run, summary: Summary) -> tuple[Servers, ...]:
    """Return what the servers of ``run`` did; nothing where there is only one. ``summary`` is that of ``run``."""
    groups, behind = _group_samples(run)
    if len(groups) < 2:
        return ()
    weights = {name: 1.0 if behind else _get_weight(run.servers[name], samples) for name, samples in groups.items()}
    every = sum(weights.values())
    total = max(1, summary.requests)
    found = tuple(
        _summarise_server(run, name, samples, summary, len(samples) / total, weights[name] / every)
        for name, samples in groups.items()
    )
    busiest = max((one for one in found if one.expected), key=lambda one: one.share / one.expected)
    uneven = found.index(busiest) if _is_uneven(busiest, total) else None
    imbalance = busiest.share / busiest.expected
    return (Servers(servers=found, behind=behind, imbalance=imbalance, uneven=uneven, slow=find_slow_servers(found)),)


def _get_weight(facts: ServerInfo, samples: Sequence[Sample]) -> float:
    """The weight of a server, nothing where it was left out of the load."""
    return 0.0 if facts.down and not samples else facts.weight


def _group_samples(run: Run) -> tuple[dict[str, list[Sample]], bool]:
    """Return the measured samples by server: by upstream where an entry named several, else by URL."""
    named = {sample.server for sample in run.measured if sample.server}
    behind = len(run.servers) < 2 and len(named) > 1
    groups: dict[str, list[Sample]] = defaultdict(list)
    for name in sorted(named) if behind else run.servers:
        groups[name] = []
    for sample in run.measured:
        groups[sample.server if behind else sample.url].append(sample)
    known = groups if behind else {name: groups[name] for name in run.servers}
    return dict(known), behind


def _summarise_server(
    run: Run, name: str, samples: Sequence[Sample], whole: Summary, share: float, expected: float
) -> ServerSummary:
    mine = summarise(msgspec.structs.replace(run, samples=tuple(samples)))
    tps, ttft = mine.metrics.get("tps"), mine.metrics.get("ttft")
    return ServerSummary(
        name=name,
        requests=mine.requests,
        errors=mine.requests - mine.ok,
        share=share,
        expected=expected,
        tps=tps.value if tps and mine.ok else None,
        throughput=mine.output_tokens / whole.wall_s if whole.wall_s else 0.0,
        ttft_p50=ttft.get("p50") if ttft else None,
        ttft_p95=ttft.get("p95") if ttft else None,
        down=name in run.servers and bool(run.servers[name].down),
    )


def _is_uneven(busiest: ServerSummary, total: int) -> bool:
    spread = math.sqrt(total * busiest.expected * (1 - busiest.expected))
    more = busiest.requests - total * busiest.expected
    return busiest.share >= _UNEVEN_RATIO * busiest.expected and more > _CHANCE_DEVIATIONS * spread


def find_slow_servers(found: Sequence[ServerSummary]) -> tuple[str, ...]:
    """Describe the servers that are clearly slower than the median of the others; a few requests are not enough."""
    judged = [one for one in found if one.requests - one.errors >= _MIN_REQUESTS]
    return tuple(text for one in judged for text in _explain_slow(one, [other for other in judged if other is not one]))


def _explain_slow(one: ServerSummary, others: Sequence[ServerSummary]) -> Iterable[str]:
    rates = [other.tps for other in others if other.tps]
    if one.tps and rates and one.tps < _SLOWER_TPS * median(rates):
        yield f"{one.name} makes {format_number(one.tps)} tokens/s, the others {format_number(median(rates))}"
        return
    waits = [other.ttft_p50 for other in others if other.ttft_p50 is not None and math.isfinite(other.ttft_p50)]
    mine = one.ttft_p50
    if mine is not None and waits and mine > max(_SLOWER_TTFT * median(waits), median(waits) + _MIN_DELAY_S):
        yield (
            f"{one.name} answers after {format_seconds(mine)} (ttft p50), the others after "
            f"{format_seconds(median(waits))}"
        )


MIN_TIMELINE_S = 10.0
"""Loads of a shorter duration have no timeline; staged loads always have one."""

MAX_WINDOWS = 12
_WINDOW_WIDTHS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)


class TimelineWindow(msgspec.Struct, frozen=True, kw_only=True):
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


class Timeline(Finding, frozen=True, kw_only=True, tag="timeline"):
    """A load in windows of ``window_s``.

    ``change`` is that of the throughput from the first third of the windows to the last, as a share; ``None`` where
    stages move the load or there are fewer than six windows.
    """

    supplements_metrics: ClassVar[bool] = True

    window_s: float
    spans: tuple[TimelineWindow, ...]
    change: float | None = None


def build_timeline(run: Run) -> tuple[Timeline, ...]:
    """Return the course of ``run`` where it has one: stages, or a duration of at least ``LEAST_S``."""
    asked, samples = run.workload, run.measured
    long = asked.stages or (asked.duration_s is not None and asked.duration_s >= MIN_TIMELINE_S)
    if not samples or not long:
        return ()
    course = StageSchedule(asked.stages) if asked.stages else None
    begun = min(sample.start_ns for sample in samples) - _compute_lead_ns(course, closed=asked.rate is None)
    lasted = max((max(sample.done_ns for sample in samples) - begun) / 1e9, asked.duration_s or 0.0)
    width = next((each for each in _WINDOW_WIDTHS_S if lasted <= each * MAX_WINDOWS), _WINDOW_WIDTHS_S[-1])
    edges = begun + np.arange(math.ceil(lasted / width - 1e-9) + 1) * round(width * 1e9)
    made = count_tokens(samples, edges.astype(np.int64))
    spans = tuple(
        _build_window(_select_ended(samples, int(low), int(high)), number * width, width, float(tokens), course)
        for number, (low, high, tokens) in enumerate(zip(edges[:-1], edges[1:], made, strict=True))
    )
    return (Timeline(window_s=float(width), spans=spans, change=None if course else _compute_change(spans)),)


def _compute_lead_ns(course: StageSchedule | None, *, closed: bool) -> int:
    """Return how long after the beginning of the stages the first request was due."""
    if course is None:
        return 0
    return round(1e9 * (course.compute_join_time(0, 0.0) if closed else course.compute_arrival_time(0.0)))


def _select_ended(samples: Sequence[Sample], low: int, high: int) -> list[Sample]:
    return [sample for sample in samples if low < sample.done_ns <= high]


def _build_window(
    ended: Sequence[Sample], begin: float, width: float, tokens: float, course: StageSchedule | None
) -> TimelineWindow:
    ttft = sorted(list_request_values("ttft", ended))
    return TimelineWindow(
        begin_s=float(begin),
        end_s=float(begin + width),
        requests=len(ended),
        failed=sum(not sample.ok for sample in ended),
        throughput=tokens / width,
        ttft_p50_s=_pick_percentile(ttft, 0.50),
        ttft_p95_s=_pick_percentile(ttft, 0.95),
        level=_compute_level(course, begin, width) if course else None,
    )


def _pick_percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the percentile by nearest rank, which needs no interpolation."""
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else None


def _compute_level(course: StageSchedule, begin: float, width: float, parts: int = 20) -> float:
    """Return the mean level of a window, sampled in the middle of ``parts`` equal parts."""
    return math.fsum(course.compute_level(begin + width * (part + 0.5) / parts) for part in range(parts)) / parts


def _compute_change(spans: Sequence[TimelineWindow]) -> float | None:
    """Compare the last third of the whole windows with the first; the very last window is seldom full."""
    whole = spans[:-1]
    third = len(whole) // 3
    if third < 2:
        return None
    first = math.fsum(span.throughput for span in whole[:third])
    last = math.fsum(span.throughput for span in whole[-third:])
    return last / first - 1 if first else None
