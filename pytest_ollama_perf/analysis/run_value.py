"""The value that represents a run in a comparison with other runs, and how each metric is compared.

Costs are logarithms, ``-ln(rate)`` or ``ln(time)``, so that more is always worse and a difference is a relative change.
A failed request has an infinite cost. ``NaN`` is a run without data, which is never ``ok``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from scipy.special import betainc

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.sample import Sample
from pytest_ollama_perf.core.text import suggest_match
from pytest_ollama_perf.metrics import METRICS, PERCENTILES, Metric, Shape
from pytest_ollama_perf.metrics.per_request import list_request_values
from pytest_ollama_perf.metrics.summary import summarise

_TRIM_SHARE = 0.2
_MAX_FAILED_WEIGHT = 0.01
"""A percentile is infinite where failed requests carry more of its estimate than this."""


_BATCHES = 5
_MIN_IN_BATCH = 4


@dataclass(frozen=True)
class MetricPolicy:
    """How one number of a run is compared with history.

    ``margin`` is how much worse than history is accepted, as a share; ``prior_sd`` the standard deviation between runs
    (of the logarithm) to expect before any history is seen; ``gating`` whether it fails a build unasked;
    ``least_requests`` how many requests a run needs before it may gate; ``floor_s`` the time below which a difference
    means nothing.
    """

    metric: Metric
    stat: str
    margin: float
    prior_sd: float
    gating: bool = False
    least_requests: int = 1
    floor_s: float = 0.0

    @property
    def name(self) -> str:
        """The name of the metric with its statistic, such as ``ttft.p95``."""
        return f"{self.metric.name}.{self.stat}" if self.stat else self.metric.name

    def explain_refusal(self, requests: int) -> str:
        """Say why ``requests`` per run are too few for a gate on this number; empty when they are enough."""
        if requests >= self.least_requests:
            return ""
        return f"{self.name} cannot gate on {requests} requests a run: it needs {self.least_requests}"


_LATENCY = (0.05, 0.02)
_THROUGHPUT = (0.10, 0.03)
_TTFT = (0.20, 0.05)
_PERCENTILE = (0.25, 0.05)
"""Margin and prior standard deviation."""

_METRIC_SPREADS = MappingProxyType(
    {
        "tps": _LATENCY,
        "prefill_tps": _TTFT,
        "throughput": _THROUGHPUT,
        "throughput_whole": _THROUGHPUT,
        "qps": _THROUGHPUT,
        "goodput": _THROUGHPUT,
        "ttft": _TTFT,
        "ttfa": _TTFT,
        "tpot": _LATENCY,
        "itl": _LATENCY,
        "latency": _LATENCY,
        "queue": _PERCENTILE,
        "load_time": _PERCENTILE,
    }
)
_MIN_REQUESTS = MappingProxyType({"p50": 20, "p90": 50, "p95": 200, "p99": 1000})
_GATING_NAMES = frozenset({"tps", "ttft"})
_FLOOR_S = MappingProxyType({"queue": 0.010})


def _build_policy(metric: Metric, stat: str) -> MetricPolicy:
    margin, prior_sd = _PERCENTILE if stat else _METRIC_SPREADS[metric.name]
    least = _MIN_REQUESTS[stat] if stat else 50 if metric.shape is Shape.PER_RUN else 1
    floor = _FLOOR_S.get(metric.name, 0.0)
    return MetricPolicy(metric, stat, margin, prior_sd, not stat and metric.name in _GATING_NAMES, least, floor)


def _list_stats(metric: Metric) -> tuple[str, ...]:
    return ("",) if metric.shape is Shape.PER_RUN else ("", *PERCENTILES)


POLICIES = MappingProxyType(
    {
        policy.name: policy
        for name in _METRIC_SPREADS
        for stat in _list_stats(METRICS[name])
        for policy in [_build_policy(METRICS[name], stat)]
    }
)
"""Every number that can be compared with history: ``tps``, ``ttft.p95``, ..."""

GATING_METRICS = tuple(name for name, policy in POLICIES.items() if policy.gating)


def get_policy(name: str) -> MetricPolicy:
    """Return how ``name`` (``tps``, ``ttft.p95``) is compared.

    Raises:
        ConfigError: no such number, or one that has no history (``error_rate``, a minimum).
    """
    try:
        return POLICIES[name]
    except KeyError:
        raise ConfigError(
            f"no history is kept of {name!r}; valid are {', '.join(_METRIC_SPREADS)}, "
            f"those of single requests also with .p50 .p90 .p95 .p99{suggest_match(name, POLICIES)}"
        ) from None


def to_cost(policy: MetricPolicy, value: float) -> float:
    """Return the cost of one value in the metric's own unit; infinite for a failure or what no success can show."""
    if policy.metric.is_higher_better:
        return -math.log(value) if 0.0 < value < math.inf else math.inf
    value = max(value, policy.floor_s)
    return math.log(value) if value > 0.0 else math.inf


def to_value(policy: MetricPolicy, cost: float) -> float:
    """Return the value in the metric's own unit that has this ``cost``."""
    try:
        return math.exp(-cost if policy.metric.is_higher_better else cost)
    except OverflowError:
        return math.inf


def to_change(policy: MetricPolicy, difference: float) -> float:
    """Return the relative change of the metric itself for a ``difference`` of costs: -0.1 is a tenth fewer tokens/s."""
    return to_value(policy, difference) - 1.0


def to_relative_change(difference: float) -> float:
    """Return ``exp(difference) - 1``, the relative change of a cost; infinite if it is too large for a float."""
    try:
        return math.expm1(difference)
    except OverflowError:
        return math.inf


def to_metric_change(policy: MetricPolicy, relative_cost: float) -> float:
    """Return the relative change of the metric for a relative change of its cost."""
    if not policy.metric.is_higher_better:
        return relative_cost
    return math.inf if relative_cost <= -1.0 else 1.0 / (1.0 + relative_cost) - 1.0


def compute_run_value(policy: MetricPolicy, values: Iterable[float]) -> float:
    """Return the cost that represents a run.

    ``values`` holds one value for each request, ``math.inf`` or ``NaN`` for a failed one (for a per-run metric the one
    number of the run). Without a statistic it is the 20 % trimmed mean of the costs; a failed request is the worst, so
    one in five is trimmed away with the slow end, the mean moves up, and more make it infinite. With a percentile it is
    the estimator of Harrell & Davis 1982. No values give ``NaN``.
    """
    costs = sorted(to_cost(policy, value) for value in values)
    if not costs:
        return math.nan
    return compute_hd_quantile(costs, PERCENTILES[policy.stat]) if policy.stat else _compute_trimmed_mean(costs)


def _compute_trimmed_mean(costs: Sequence[float]) -> float:
    cut = int(_TRIM_SHARE * len(costs))
    return math.fsum(costs[cut : len(costs) - cut]) / (len(costs) - 2 * cut) if costs[-1 - cut] < math.inf else math.inf


def estimate_scatter(costs: Sequence[float], *, in_time_order: bool) -> float:
    """Return the standard error of the trimmed mean of ``costs``, the requests of one run; 0 if they are too few.

    Failed requests are ignored. Consecutive requests are correlated, which the means of five batches allow for (batch
    means, Conway 1963). If the order is unknown, the winsorized standard deviation of independent requests is used
    (Tukey & McLaughlin 1963).
    """
    known = np.array([one for one in costs if one < math.inf])
    if in_time_order and len(known) >= _BATCHES * _MIN_IN_BATCH:
        means = [_compute_trimmed_mean(sorted(batch)) for batch in np.array_split(known, _BATCHES)]
        return float(np.std(means, ddof=1)) / math.sqrt(_BATCHES)
    if len(known) < _MIN_IN_BATCH:
        return 0.0
    known.sort()
    cut = int(_TRIM_SHARE * len(known))
    winsorized = np.clip(known, known[cut], known[-1 - cut])
    return float(np.std(winsorized, ddof=1)) / ((1.0 - 2.0 * _TRIM_SHARE) * math.sqrt(len(known)))


def compute_hd_quantile(costs: Sequence[float], share: float) -> float:
    """Return the Harrell-Davis quantile of ascending ``costs``, which may end in infinities.

    Failed requests that carry at most 1 % of the estimate count as slow as the slowest that answered.
    """
    weights = _compute_hd_weights(len(costs), share)
    finite = sum(1 for one in costs if one < math.inf)
    if finite == 0 or math.fsum(weights[finite:]) > _MAX_FAILED_WEIGHT:
        return math.inf
    return math.fsum(weight * min(one, costs[finite - 1]) for weight, one in zip(weights, costs, strict=True))


@lru_cache(maxsize=64)
def _compute_hd_weights(count: int, share: float) -> tuple[float, ...]:
    steps = betainc(share * (count + 1), (1.0 - share) * (count + 1), np.arange(count + 1) / count)
    return tuple(np.diff(steps).tolist())


@dataclass(frozen=True)
class RunEvidence:
    """One run. ``requests`` counts the measured requests; ``None`` if it was not recorded.

    ``values`` returns the values of a metric in its own unit, failed requests being infinite times and rates of 0, and
    nothing for a metric that was not recorded; ``in_time_order`` says whether they are in the order of sending.
    ``at`` orders the runs of a test: a time, or the number of the run.
    """

    test: str
    run: str
    requests: int | None
    values: Callable[[str], Sequence[float]]
    at: float | None = None
    in_time_order: bool = False

    def compute_cost(self, policy: MetricPolicy) -> float:
        """Return the run value for ``policy``; ``NaN`` if the run has no data for it."""
        return math.nan if self.requests == 0 else compute_run_value(policy, self.values(policy.metric.name))

    def estimate_scatter(self, policy: MetricPolicy) -> float:
        """Return the standard error of the run value from the requests alone; 0 if it cannot be estimated."""
        if policy.stat or policy.metric.shape is Shape.PER_RUN:
            return 0.0
        costs = [to_cost(policy, value) for value in self.values(policy.metric.name)]
        return estimate_scatter(costs, in_time_order=self.in_time_order)


def build_evidence(run: Run) -> RunEvidence:
    """Return what ``run`` says. Its metrics are computed when they are asked for."""
    measured = sorted(run.measured, key=lambda sample: sample.start_ns)

    @functools.cache
    def values(metric: str) -> Sequence[float]:
        return _compute_metric_values(run, measured, metric)

    return RunEvidence(run.test, run.id, len(measured), values, run.started_at, in_time_order=True)


def _compute_metric_values(run: Run, measured: Sequence[Sample], metric: str) -> Sequence[float]:
    if metric == "load_time" and run.load_time_s is not None:
        return [run.load_time_s]
    if METRICS[metric].shape is not Shape.PER_RUN:
        return list_request_values(metric, measured)
    found = summarise(run).metrics.get(metric)
    return [] if found is None or found.value is None else [found.value]


MINIMAL_FIELDS = MappingProxyType({"eval_tps": "tps", "ttft_s": "ttft", "latency_s": "latency"})
"""The fields of a request in a minimal record, and the metric each holds."""


def parse_minimal_record(record: Mapping[str, object]) -> RunEvidence:
    """Return what a minimal record says: ``{"test", "run", "requests": [{"eval_tps", ...}], "throughput_tps"}``.

    A request without a value that others of its record have, with ``null`` for it, or with an ``outcome`` other than
    ``ok`` failed.

    Raises:
        TypeError: a field has the wrong type; the message names it.
        ValueError: a number is negative, or a rate is infinite.
    """
    requests = record.get("requests")
    if requests is not None and not isinstance(requests, list):
        raise TypeError(f"requests must be a list, got {type(requests).__name__}")
    read = [_parse_request(request, position) for position, request in enumerate(requests or ())]
    values: dict[str, Sequence[float]] = {
        metric: [_fill_failed(request[name], metric) for request in read]
        for name, metric in MINIMAL_FIELDS.items()
        if any(request[name] is not _ABSENT for request in read)
    }
    throughput = _parse_number(record.get("throughput_tps"), "throughput_tps")
    if throughput is not None:
        values["throughput"] = [throughput]
    count = len(read) if requests is not None else None
    at = _to_optional_number(record.get("run"))
    return RunEvidence(
        _parse_text(record, "test"), _parse_text(record, "run"), count, lambda metric: values.get(metric, ()), at
    )


_ABSENT = -math.inf


def _parse_request(request: object, position: int) -> dict[str, float | None]:
    """Return the fields of one request: ``None`` where it failed, ``_ABSENT`` where the field is not there."""
    if not isinstance(request, dict):
        raise TypeError(f"requests[{position}] must be an object, got {type(request).__name__}")
    if request.get("outcome", "ok") != "ok":
        return dict.fromkeys(MINIMAL_FIELDS)
    return {
        name: _parse_number(request[name], f"requests[{position}].{name}") if name in request else _ABSENT
        for name in MINIMAL_FIELDS
    }


def _fill_failed(value: float | None, metric: str) -> float:
    if value is None or value == _ABSENT or math.isnan(value):
        return 0.0 if METRICS[metric].is_higher_better else math.inf
    return value


def _parse_number(value: object, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or null, got {value!r:.40}")
    if value < 0 or (value == math.inf and name.endswith("_tps")):
        raise ValueError(f"{name} must be null or a finite number of at least 0, got {float(value):g}")
    return float(value)


def _to_optional_number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _parse_text(record: Mapping[str, object], name: str) -> str:
    value = record.get(name, "")
    if isinstance(value, (dict, list, bool)):
        raise TypeError(f"{name} must be a text or a number, got {type(value).__name__}")
    return "" if value is None else str(value)


def sort_by_time(runs: Sequence[RunEvidence]) -> list[RunEvidence]:
    """Return ``runs`` oldest first: by time, or by the number of the run; as they are where some have neither."""
    times = [run.at for run in runs]
    if None in times:
        return list(runs)
    return sorted(runs, key=lambda run: run.at or 0.0)
