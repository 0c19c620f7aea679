"""The summary of a run: every metric that exists for it, with its statistics and confidence intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, compress

import msgspec
import numpy as np

from pytest_ollama_perf.core.run import Run, Telemetry
from pytest_ollama_perf.core.sample import Outcome, Sample
from pytest_ollama_perf.core.workload import Endpoint, Workload
from pytest_ollama_perf.metrics import METRICS, PERCENTILES, Shape, meets_bound, per_request
from pytest_ollama_perf.metrics import per_request as intervals_module
from pytest_ollama_perf.metrics.per_request import (
    FloatArray,
    Interval,
    compute_gaps,
    compute_values,
    read_decode,
    read_prefill,
)

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

    @property
    def mean(self) -> float:
        """Mean over the requests."""
        return self._get_stat("mean")

    @property
    def p50(self) -> float:
        """Median over the requests."""
        return self._get_stat("p50")

    @property
    def p90(self) -> float:
        """90th percentile."""
        return self._get_stat("p90")

    @property
    def p95(self) -> float:
        """95th percentile."""
        return self._get_stat("p95")

    @property
    def p99(self) -> float:
        """99th percentile."""
        return self._get_stat("p99")

    @property
    def min(self) -> float:
        """Smallest value."""
        return self._get_stat("min")

    @property
    def max(self) -> float:
        """Largest value."""
        return self._get_stat("max")

    def _get_stat(self, stat: str) -> float:
        if stat not in self.stats:
            raise AttributeError(f"{self.name} has no '{stat}' (it has {', '.join(self.stats) or 'value alone'})")
        return self.stats[stat]

    def get(self, stat: str = "") -> float | None:
        """Return the statistic, or for ``""`` the value."""
        return self.stats.get(stat) if stat else self.value

    def get_interval(self, stat: str = "") -> tuple[float, float] | None:
        """Return the 95 % interval of the statistic, or for ``""`` of the value."""
        return self.ci.get(stat or "value")


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a run measured. ``requests`` counts measured ones, ``ok`` those that succeeded, ``warmup`` those dropped.

    ``wall_s`` is first start to last done. ``steady_s`` is the part of it that ``throughput`` covers, usually the time
    in which all clients were busy.
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
    found = chain(_summarise_requests(run.workload, measured), _summarise_run(run.workload, measured, latency_limits))
    found = chain(found, _summarise_telemetry(run.telemetry, measured), _summarise_added(run, measured))
    order = list(METRICS)
    return Summary(
        metrics={metric.name: metric for metric in sorted(found, key=lambda metric: order.index(metric.name))},
        requests=len(measured),
        ok=len(succeeded),
        outcomes=dict(Counter(sample.outcome.value for sample in measured).most_common()),
        warmup=len(run.warmup),
        wall_s=per_request.compute_window_s(per_request.get_whole_window(measured)),
        steady_s=per_request.compute_window_s(_select_window(run.workload, measured)),
        prompt_tokens=sum(sample.counters.prompt_eval_count or 0 for sample in succeeded),
        output_tokens=sum(sample.counters.eval_count or 0 for sample in succeeded),
    )


def _summarise_added(run: Run, samples: Sequence[Sample]) -> Iterator[MetricSummary]:
    """The metrics per run that other plugins add."""
    failed = sum(not sample.ok for sample in samples)
    for metric in METRICS.values():
        if metric.compute is not None and metric.shape is Shape.PER_RUN and (value := metric.compute(run)) is not None:
            yield _build_metric(metric.name, float(value), {}, {}, n=len(samples), failed=failed)


def has_short_steady_window(run: Run) -> bool:
    """Whether ``throughput`` covers the whole run because the time in which all clients were busy is too short."""
    measured = [sample for sample in run.measured if sample.outcome is not Outcome.CANCELLED]
    return bool(measured) and _is_whole_run(run.workload, measured)


def _summarise_requests(workload: Workload, samples: Sequence[Sample]) -> list[MetricSummary]:
    names = [name for name, metric in METRICS.items() if metric.shape is not Shape.PER_RUN]
    if not any(sample.ok for sample in samples):
        names = [name for name in names if _is_expected(name, workload)]
    found = ((name, compute_values(name, samples)) for name in names)
    return [_build_request_metric(name, numbers, samples) for name, numbers in found if len(numbers)]


def _is_expected(name: str, workload: Workload) -> bool:
    """Whether the metric would exist had any request succeeded."""
    return not explain_unmeasurable(name, workload) and (name != "ttfa" or bool(workload.think))


def explain_unmeasurable(name: str, workload: Workload) -> str:
    """Explain why no load of ``workload`` can have the metric ``name``; empty if it can."""
    if workload.endpoint is Endpoint.EMBED and name in _TOKEN_METRICS:
        return "embeddings generate no tokens"
    if not workload.stream and name in _STREAM_METRICS:
        return "with stream=False the arrival of tokens is unknown"
    return ""


_STREAM_METRICS = frozenset({"ttft", "ttfa", "itl"})
_TOKEN_METRICS = _STREAM_METRICS | {
    "tps",
    "throughput",
    "throughput_whole",
    "tpot",
    "queue",
    "prefill_tps",
    "joules_per_token",
}


def _build_request_metric(name: str, numbers: FloatArray, samples: Sequence[Sample]) -> MetricSummary:
    ordered = np.sort(numbers)
    failed = 0 if name == "itl" and any(map(_is_ok, samples)) else sum(not sample.ok for sample in samples)
    stats = {stat: intervals_module.compute_quantile(ordered, q) for stat, q in PERCENTILES.items()}
    stats |= {"mean": float(ordered.sum()) / len(ordered), "min": float(ordered[0]), "max": float(ordered[-1])}
    intervals = _compute_gap_intervals(stats, samples) if name == "itl" else _compute_intervals(ordered)
    value = None
    if name in _POOLED_AMOUNTS:
        value, intervals["value"] = _pool_rate(name, samples)
    return _build_metric(name, value, stats, intervals, n=len(ordered), failed=failed)


def _compute_intervals(ordered: FloatArray) -> dict[str, Interval | None]:
    found = {stat: intervals_module.compute_quantile_interval(ordered, q) for stat, q in PERCENTILES.items()}
    return found | {"mean": intervals_module.compute_ratio_interval(ordered, np.ones(len(ordered)))}


def _compute_gap_intervals(stats: Mapping[str, float], samples: Sequence[Sample]) -> dict[str, Interval | None]:
    """The gaps of one stream resemble each other, so the request is what counts as drawn."""
    succeeded = [sample for sample in samples if sample.ok]
    if not succeeded:
        return {}
    found, owner = compute_gaps(succeeded)
    sizes = np.bincount(owner)
    sums = np.bincount(owner, found).astype(np.float64)[sizes > 0]
    many = sizes[sizes > 0].astype(np.float64)
    intervals = {stat: intervals_module.compute_clustered_interval(found, owner, stats[stat]) for stat in PERCENTILES}
    return intervals | {"mean": intervals_module.compute_ratio_interval(sums, many)}


_POOLED_AMOUNTS = {"tps": read_decode, "prefill_tps": read_prefill}


def _pool_rate(name: str, samples: Sequence[Sample]) -> tuple[float, Interval | None]:
    """The rate over all successful requests; 0 when none succeeded."""
    pairs = np.array([pair for pair in map(_POOLED_AMOUNTS[name], filter(_is_ok, samples)) if pair[0]], dtype=float)
    if not len(pairs):
        return 0.0, None
    pairs = pairs[np.lexsort(pairs.T)]
    tokens, took = pairs[:, 0], pairs[:, 1]
    return float(tokens.sum() / took.sum()), intervals_module.compute_ratio_interval(tokens, took)


def _is_ok(sample: Sample) -> bool:
    return sample.ok


def _summarise_run(
    workload: Workload, samples: Sequence[Sample], limits: Mapping[str, float] | None
) -> list[MetricSummary]:
    failed = sum(not sample.ok for sample in samples)
    share = _build_metric(
        "error_rate",
        failed / len(samples),
        {},
        {"value": intervals_module.compute_share_interval(failed, len(samples))},
    )
    made = () if workload.endpoint is Endpoint.EMBED else _compute_throughputs(workload, samples)
    found = [*made, *_compute_completions(samples, limits), share]
    return [msgspec.structs.replace(metric, n=len(samples), failed=failed) for metric in found]


def _select_window(workload: Workload, samples: Sequence[Sample]) -> per_request.Window:
    """Return the time that throughput covers: the whole run if its steady window is too short to represent the load,
    and for a load in stages, whose clients are never all busy."""
    if workload.stages or _is_whole_run(workload, samples):
        return per_request.get_whole_window(samples)
    return per_request.get_steady_window(samples)


def _is_whole_run(workload: Workload, samples: Sequence[Sample]) -> bool:
    return not workload.stages and not per_request.has_steady_window(samples, workload.clients)


def _summarise_telemetry(telemetry: Telemetry | None, samples: Sequence[Sample]) -> Iterator[MetricSummary]:
    """Yield the telemetry metrics; none if the telemetry does not cover the whole load."""
    if telemetry is None or not telemetry.is_complete:
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
            yield _build_metric(name, float(value), {}, {}, n=len(samples), failed=failed)


def _compute_throughputs(workload: Workload, samples: Sequence[Sample]) -> list[MetricSummary]:
    tokens = np.array([float(sample.counters.eval_count or 0) if sample.ok else 0.0 for sample in samples])
    if any(sample.ok for sample in samples) and not tokens.any():
        return []
    found = []
    for name, span in (
        ("throughput", _select_window(workload, samples)),
        ("throughput_whole", per_request.get_whole_window(samples)),
    ):
        if per_request.compute_window_s(span):
            made = per_request.count_tokens(samples, per_request.split_window(span, _BATCHES))
            # A token that a clock's rounding puts outside the whole run was still made in it.
            total = float(made.sum() if name == "throughput" else tokens.sum())
            found.append(_build_rate(name, total / per_request.compute_window_s(span), samples, tokens, made))
    if found and _is_whole_run(workload, samples):
        found[0] = _widen_to_full_load(found[0], samples, workload.clients)
    return found


def _widen_to_full_load(metric: MetricSummary, samples: Sequence[Sample], clients: int) -> MetricSummary:
    """Extend the interval of a whole run to what clients that are busy all the time could reach at most: as much more
    as they were idle, or one stream's rate for every request that can run at the same time."""
    interval = metric.get_interval()
    if interval is None or samples[0].scheduled_ns is not None:
        return metric
    stream_tps, _ = _pool_rate("tps", samples)
    high = interval[1] / (per_request.compute_utilization(samples, clients) or 1.0)
    high = max(high, stream_tps * per_request.count_parallel_streams(samples, clients))
    return msgspec.structs.replace(metric, ci={**metric.ci, "value": (interval[0], high)})


def _compute_completions(samples: Sequence[Sample], limits: Mapping[str, float] | None) -> list[MetricSummary]:
    span = per_request.get_whole_window(samples)
    if not per_request.compute_window_s(span):
        return []
    kept = {"qps": np.array([sample.ok for sample in samples])}
    if limits:
        kept["goodput"] = np.array([sample.ok and _meets_limits(sample, limits) for sample in samples])
    found = []
    for name, mask in kept.items():
        made = per_request.count_completed(list(compress(samples, mask)), per_request.split_window(span, _BATCHES))
        value = float(mask.sum()) / per_request.compute_window_s(span)
        found.append(_build_rate(name, value, samples, mask.astype(float), made))
    return found


def _meets_limits(sample: Sample, limits: Mapping[str, float]) -> bool:
    return all(
        meets_bound("<=", value, limit)
        for metric, limit in limits.items()
        for value in compute_values(metric, [sample]).tolist()
    )


def _build_rate(
    name: str, value: float, samples: Sequence[Sample], amounts: FloatArray, batches: FloatArray
) -> MetricSummary:
    """A closed loop makes as much as its requests are fast, so the interval is that of amount over time in flight;
    an open loop makes what arrives, so its interval comes from equal parts of the time."""
    if samples[0].scheduled_ns is None:
        taken = np.array([max(1, sample.done_ns - sample.sent_ns) / 1e9 for sample in samples])
        found, middle = intervals_module.compute_ratio_interval(amounts, taken), float(amounts.sum() / taken.sum())
    elif len(samples) < 2 * _BATCHES:
        found, middle = None, 0.0
    else:
        found, middle = intervals_module.compute_ratio_interval(batches, np.ones(_BATCHES)), float(batches.mean())
    if found is None or not middle:
        return _build_metric(name, value, {}, {})
    return _build_metric(name, value, {}, {"value": (found[0] * value / middle, found[1] * value / middle)})


def _build_metric(
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
        ci={
            stat: _widen_interval(stats.get(stat, value), found)
            for stat, found in intervals.items()
            if found is not None
        },
    )


def _widen_interval(point: float | None, found: Interval) -> Interval:
    """An interval holds its own point, whatever rounding says: equal values give one of width zero."""
    return found if point is None else (min(found[0], point), max(found[1], point))
