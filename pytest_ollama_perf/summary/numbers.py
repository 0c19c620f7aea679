"""The summary of a run: every metric that exists for it, with its statistics and confidence intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, compress

import msgspec
import numpy as np

from pytest_ollama_perf.metric import METRICS, PERCENTILES, STATS, Shape
from pytest_ollama_perf.run import Run, Telemetry
from pytest_ollama_perf.sample import Outcome, Sample
from pytest_ollama_perf.summary import interval, window
from pytest_ollama_perf.summary.interval import Interval
from pytest_ollama_perf.summary.values import Floats, decoded, gaps, prefilled, values
from pytest_ollama_perf.workload import Endpoint, Workload

_BATCHES = 10


class MetricSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of one run, in its own unit.

    ``value`` is the pooled or per-run number (``None`` for a metric that has only statistics over requests), ``stats``
    has a number for each of ``metric.STATS`` (empty for a per-run metric). ``n`` counts the values, ``failed`` those of
    failed requests. ``ci`` holds the 95 % interval for ``"value"`` and for each statistic that has one.
    """

    name: str
    unit: str
    better: str
    n: int
    failed: int
    value: float | None = None
    stats: dict[str, float] = {}
    ci: dict[str, tuple[float, float]] = {}

    def __getattr__(self, stat: str) -> float:
        """Answer for each of ``metric.STATS``: ``ttft.p95``."""
        if stat in STATS and stat in self.stats:
            return self.stats[stat]
        has = ", ".join(self.stats) or "value alone"
        raise AttributeError(f"{self.name} has no '{stat}' (it has {has})")

    def get(self, stat: str = "") -> float | None:
        """Return the statistic, or for ``""`` the value."""
        return self.stats.get(stat) if stat else self.value

    def interval(self, stat: str = "") -> tuple[float, float] | None:
        """Return the 95 % interval of the statistic, or for ``""`` of the value."""
        return self.ci.get(stat or "value")


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a run measured. ``requests`` counts measured ones, ``ok`` those that succeeded, ``warmup`` those dropped.

    ``wall_s`` is first start to last done, ``steady_s`` the part of it in which all clients were busy.
    """

    metrics: dict[str, MetricSummary] = {}
    requests: int = 0
    ok: int = 0
    outcomes: dict[str, int] = {}
    warmup: int = 0
    wall_s: float = 0.0
    steady_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0


def summarise(run: Run, latency_limits: Mapping[str, float] | None = None) -> Summary:
    """Return the metrics of ``run`` over its measured samples; those that were cancelled say nothing of the server.

    ``latency_limits`` (metric of one value per request -> seconds) defines goodput, which does not exist without it;
    of ``itl`` the longest gap of a request counts.
    """
    # In order of time, so that the order in which they were recorded cannot touch the last digit.
    ended = (sample for sample in run.measured if sample.outcome is not Outcome.CANCELLED)
    measured = sorted(ended, key=lambda sample: (sample.start_ns, sample.index, sample.done_ns))
    if not measured:
        return Summary(warmup=len(run.warmup))
    succeeded = [sample for sample in measured if sample.ok]
    found = chain(_over_requests(run.workload, measured), _over_the_run(run.workload, measured, latency_limits))
    found = chain(found, _beside(run.telemetry, measured))
    return Summary(
        metrics={metric.name: metric for metric in sorted(found, key=lambda metric: _ORDER.index(metric.name))},
        requests=len(measured),
        ok=len(succeeded),
        outcomes=dict(Counter(sample.outcome.value for sample in measured).most_common()),
        warmup=len(run.warmup),
        wall_s=window.seconds(window.whole(measured)),
        steady_s=window.seconds(_steady(run.workload, measured)),
        prompt_tokens=sum(sample.counters.prompt_eval_count or 0 for sample in succeeded),
        output_tokens=sum(sample.counters.eval_count or 0 for sample in succeeded),
    )


_ORDER = list(METRICS)


def _over_requests(workload: Workload, samples: Sequence[Sample]) -> list[MetricSummary]:
    names = [name for name, metric in METRICS.items() if metric.shape is not Shape.PER_RUN]
    if not any(sample.ok for sample in samples):
        names = [name for name in names if _promised(name, workload)]
    found = ((name, values(name, samples)) for name in names)
    return [_metric(name, numbers, samples) for name, numbers in found if len(numbers)]


def _promised(name: str, workload: Workload) -> bool:
    """Whether the metric would exist had any request succeeded."""
    return not unmeasurable(name, workload) and (name != "ttfa" or bool(workload.think))


def unmeasurable(name: str, workload: Workload) -> str:
    """Say why no load of ``workload`` can have the metric ``name``; empty where one may."""
    if workload.endpoint is Endpoint.EMBED and name in _OF_TOKENS:
        return "an embedding has no tokens of its own"
    if not workload.stream and name in _OF_A_STREAM:
        return "with stream=False nothing shows when a token came"
    return ""


_OF_A_STREAM = frozenset({"ttft", "ttfa", "itl"})
_OF_TOKENS = _OF_A_STREAM | {
    "tps",
    "throughput",
    "throughput_whole",
    "tpot",
    "queue",
    "prefill_tps",
    "joules_per_token",
}


def _metric(name: str, numbers: Floats, samples: Sequence[Sample]) -> MetricSummary:
    ordered = np.sort(numbers)
    failed = sum(not sample.ok for sample in samples)
    stats = {stat: interval.quantile(ordered, q) for stat, q in PERCENTILES.items()}
    stats |= {"mean": float(ordered.sum()) / len(ordered), "min": float(ordered[0]), "max": float(ordered[-1])}
    intervals = _of_gaps(stats, samples) if name == "itl" else _of_stats(ordered)
    value = None
    if name in _POOLED:
        value, intervals["value"] = _pooled(name, samples)
    return _built(name, value, stats, intervals, n=len(ordered), failed=failed)


def _of_stats(ordered: Floats) -> dict[str, Interval | None]:
    found = {stat: interval.of_quantile(ordered, q) for stat, q in PERCENTILES.items()}
    return found | {"mean": interval.of_ratio(ordered, np.ones(len(ordered)))}


def _of_gaps(stats: Mapping[str, float], samples: Sequence[Sample]) -> dict[str, Interval | None]:
    """The gaps of one stream resemble each other, so the request is what counts as drawn."""
    if not all(sample.ok for sample in samples):
        return {}
    found, owner = gaps(samples)
    sizes = np.bincount(owner)
    sums = np.bincount(owner, found).astype(np.float64)[sizes > 0]
    many = sizes[sizes > 0].astype(np.float64)
    intervals = {stat: interval.of_clustered_quantile(found, owner, stats[stat]) for stat in PERCENTILES}
    return intervals | {"mean": interval.of_ratio(sums, many)}


_POOLED = {"tps": decoded, "prefill_tps": prefilled}


def _pooled(name: str, samples: Sequence[Sample]) -> tuple[float, Interval | None]:
    """The rate over all successful requests; 0 when none succeeded."""
    pairs = np.array([pair for pair in map(_POOLED[name], filter(_is_ok, samples)) if pair[0]], dtype=float)
    if not len(pairs):
        return 0.0, None
    pairs = pairs[np.lexsort(pairs.T)]
    tokens, took = pairs[:, 0], pairs[:, 1]
    return float(tokens.sum() / took.sum()), interval.of_ratio(tokens, took)


def _is_ok(sample: Sample) -> bool:
    return sample.ok


def _over_the_run(
    workload: Workload, samples: Sequence[Sample], limits: Mapping[str, float] | None
) -> list[MetricSummary]:
    failed = sum(not sample.ok for sample in samples)
    share = _built("error_rate", failed / len(samples), {}, {"value": interval.of_share(failed, len(samples))})
    made = () if workload.endpoint is Endpoint.EMBED else _throughputs(workload, samples)
    found = [*made, *_completions(samples, limits), share]
    return [msgspec.structs.replace(metric, n=len(samples), failed=failed) for metric in found]


def _steady(workload: Workload, samples: Sequence[Sample]) -> window.Window:
    """Return the time that throughput is of: a load that moves has none in which all its clients are busy."""
    return window.whole(samples) if workload.stages else window.steady(samples)


def _beside(telemetry: Telemetry | None, samples: Sequence[Sample]) -> Iterator[MetricSummary]:
    """What was read beside the load from its beginning to its end; half a reading is none."""
    if telemetry is None or not telemetry.complete:
        return
    made = sum(sample.counters.eval_count or 0 for sample in samples if sample.ok)
    warmest = [gpu.max_temperature_c for gpu in telemetry.gpus if gpu.max_temperature_c is not None]
    used = telemetry.energy_j
    numbers = {
        "gpu_memory": telemetry.memory_bytes,
        "gpu_temperature": max(warmest, default=None),
        "joules_per_token": used / made if used is not None and made else None,
    }
    failed = sum(not sample.ok for sample in samples)
    for name, value in numbers.items():
        if value is not None:
            yield _built(name, float(value), {}, {}, n=len(samples), failed=failed)


def _throughputs(workload: Workload, samples: Sequence[Sample]) -> list[MetricSummary]:
    tokens = np.array([float(sample.counters.eval_count or 0) if sample.ok else 0.0 for sample in samples])
    if any(sample.ok for sample in samples) and not tokens.any():
        return []
    found = []
    for name, span in (("throughput", _steady(workload, samples)), ("throughput_whole", window.whole(samples))):
        if window.seconds(span):
            made = window.tokens_by(samples, window.edges(span, _BATCHES))
            # A token that a clock's rounding puts outside the whole run was still made in it.
            total = float(made.sum() if name == "throughput" else tokens.sum())
            found.append(_per_second(name, total / window.seconds(span), samples, tokens, made))
    return found


def _completions(samples: Sequence[Sample], limits: Mapping[str, float] | None) -> list[MetricSummary]:
    span = window.whole(samples)
    if not window.seconds(span):
        return []
    kept = {"qps": np.array([sample.ok for sample in samples])}
    if limits:
        kept["goodput"] = np.array([sample.ok and _meets(sample, limits) for sample in samples])
    found = []
    for name, mask in kept.items():
        made = window.completed_by(list(compress(samples, mask)), window.edges(span, _BATCHES))
        value = float(mask.sum()) / window.seconds(span)
        found.append(_per_second(name, value, samples, mask.astype(float), made))
    return found


def _meets(sample: Sample, limits: Mapping[str, float]) -> bool:
    return all((values(metric, [sample]) <= limit).all() for metric, limit in limits.items())


def _per_second(name: str, value: float, samples: Sequence[Sample], amounts: Floats, batches: Floats) -> MetricSummary:
    """A closed loop makes as much as its requests are fast, so the interval is that of amount over time in flight;
    an open loop makes what arrives, so its interval comes from equal parts of the time."""
    if samples[0].scheduled_ns is None:
        taken = np.array([max(1, sample.done_ns - sample.sent_ns) / 1e9 for sample in samples])
        found, middle = interval.of_ratio(amounts, taken), float(amounts.sum() / taken.sum())
    elif len(samples) < 2 * _BATCHES:
        found, middle = None, 0.0
    else:
        found, middle = interval.of_ratio(batches, np.ones(_BATCHES)), float(batches.mean())
    if found is None or not middle:
        return _built(name, value, {}, {})
    return _built(name, value, {}, {"value": (found[0] * value / middle, found[1] * value / middle)})


def _built(
    name: str,
    value: float | None,
    stats: dict[str, float],
    intervals: Mapping[str, Interval | None],
    *,
    n: int = 0,
    failed: int = 0,
) -> MetricSummary:
    metric = METRICS[name]
    return MetricSummary(
        name=name,
        unit=metric.unit.value,
        better=metric.better.value,
        n=n,
        failed=failed,
        value=value,
        stats=stats,
        ci={stat: _around(stats.get(stat, value), found) for stat, found in intervals.items() if found is not None},
    )


def _around(point: float | None, found: Interval) -> Interval:
    """An interval holds its own point, whatever rounding says: equal values give one of width zero."""
    return found if point is None else (min(found[0], point), max(found[1], point))
