"""Rows for charts from the requests of loads: how their times are spread, what each did when, which server answered."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import median

from pytest_ollama_perf.metric import METRICS, Unit
from pytest_ollama_perf.report.page.charts import PHASES, Cell
from pytest_ollama_perf.sample import Sample, Stage
from pytest_ollama_perf.summary import request_values
from pytest_ollama_perf.workload import Workload

STEPS = 100
"""How many steps a distribution has at most: more than a chart of its size can show."""

LANES = 48
"""How many clients a timeline shows at most."""


def axis(metric: str, values: Iterable[float]) -> tuple[float, str]:
    """Return what to multiply values with and how the axis is called: milliseconds where none reaches ten seconds."""
    unit = METRICS[metric].unit
    if unit is not Unit.SECONDS:
        return 1.0, f"{metric} ({unit.value})"
    highest = max((value for value in values if math.isfinite(value)), default=0.0)
    return (1e3, f"{metric} (ms)") if highest < 10 else (1.0, f"{metric} (s)")


def steps(name: str, values: Sequence[float], scale: float, most: int = STEPS) -> Iterator[tuple[Cell, ...]]:
    """Yield the empirical distribution of ``values`` in at most so many steps, as ``(series, value, share)``.

    Failed requests, infinite times, count among all, so that a curve of a load with failures never reaches 100 %.
    """
    ordered = sorted(values)
    finite = [value for value in ordered if math.isfinite(value)]
    for at in _spread(len(finite), most):
        yield name, _short(finite[at] * scale), _short((at + 1) / len(ordered))


def _spread(count: int, most: int) -> Iterable[int]:
    """Return at most ``most`` positions out of ``count``, evenly spread, the first and last among them."""
    if count <= most:
        return range(count)
    return sorted({round(at * (count - 1) / (most - 1)) for at in range(most)})


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def values_of(metric: str, samples: Sequence[Sample]) -> list[float]:
    """Return the values of a metric over measured samples; none where no request succeeded."""
    measured = [sample for sample in samples if sample.stage is Stage.MEASURED]
    return request_values(metric, measured) if any(sample.ok for sample in measured) else []


def lanes(workload: Workload, samples: Sequence[Sample]) -> list[int]:
    """Return a lane for each sample, counted from 0: its client's, or in an open loop the first free one."""
    if workload.rate is None:
        return [sample.client for sample in samples]
    free: list[int] = []
    found = []
    for sample in samples:
        lane = next((lane for lane, until in enumerate(free) if until <= sample.start_ns), len(free))
        free[lane : lane + 1] = [sample.done_ns]
        found.append(lane)
    return found


def timeline_rows(workload: Workload, samples: Sequence[Sample], most: int) -> tuple[list[tuple[Cell, ...]], int, int]:
    """Return the rows of a timeline, how many requests and how many lanes they show.

    The first ``most`` requests are shown, of the first ``LANES`` lanes.
    """
    ordered = sorted(samples, key=lambda sample: sample.start_ns)[:most]
    placed = [pair for pair in zip(lanes(workload, ordered), ordered, strict=True) if pair[0] < LANES]
    if not placed:
        return [], 0, 0
    origin = min(sample.start_ns for _, sample in placed)
    end = max(sample.done_ns for _, sample in placed)
    least = (end - origin) / 2000
    rows: list[tuple[Cell, ...]] = [
        (lane + 1, phase, _at(start, origin), _at(until, origin), sample.index + 1, sample.stage.value)
        for lane, sample in placed
        for phase, start, until in phases(sample)
        if until - start >= least
    ]
    return rows, len(placed), max(lane for lane, _ in placed) + 1


def _at(time_ns: float, origin_ns: int) -> float:
    return round((time_ns - origin_ns) / 1e9, 4)


def phases(sample: Sample) -> Iterator[tuple[str, float, float]]:
    """Yield what a request did, as ``(phase, from, to)`` in nanoseconds, in the order of time and without gaps.

    The first token's arrival is the client's own clock; what came before it is cut by the server's counters, counted
    back from there. What they do not cover was the way to the server and back.
    """
    if sample.scheduled_ns is not None and sample.sent_ns > sample.scheduled_ns:
        yield PHASES[0], sample.scheduled_ns, sample.sent_ns
    if not sample.ok:
        yield "failed", sample.sent_ns, sample.done_ns
        return
    first = sample.first_token_ns
    if first is None or sample.counters.total_duration_ns is None:
        yield "whole", sample.sent_ns, sample.done_ns
        return
    yield from _until_first(sample, first)
    yield "decode", first, sample.done_ns


def _until_first(sample: Sample, first: int) -> Iterator[tuple[str, float, float]]:
    counters = sample.counters
    spent = (counters.load_duration_ns or 0, counters.queue_ns or 0, counters.prompt_eval_duration_ns or 0)
    room = first - sample.sent_ns
    shrink = min(1.0, room / sum(spent)) if sum(spent) else 1.0
    at = first - sum(spent) * shrink
    yield "on its way", sample.sent_ns, at
    for phase, duration in zip(("load", "queue", "prefill"), spent, strict=True):
        yield phase, at, at + duration * shrink
        at += duration * shrink


def answered(samples: Iterable[Sample]) -> list[tuple[Cell, ...]]:
    """Return what each server answered, ``(server, outcome, requests, ttft in ms)``; nothing where only one did."""
    measured = [sample for sample in samples if sample.stage is Stage.MEASURED]
    counts = Counter((server(sample), sample.ok) for sample in measured)
    servers = sorted({name for name, _ in counts})
    if len(servers) < 2:
        return []
    return [
        (name, "ok" if ok else "failed", counts[name, ok], _ttft(measured, name) if ok else None)
        for name in servers
        for ok in (True, False)
        if counts[name, ok]
    ]


def server(sample: Sample) -> str:
    """Return who answered: the upstream that a header named, else the address."""
    return sample.server or sample.url


def _ttft(samples: Iterable[Sample], name: str) -> float | None:
    found = request_values("ttft", [sample for sample in samples if sample.ok and server(sample) == name])
    return _short(median(found) * 1e3) if found else None
