"""The one number that stands for a run when it is compared with other runs, and how each metric is compared.

Costs are logarithms, ``-ln(rate)`` or ``ln(time)``, so that more is always worse and a difference is a relative change.
A failed request has an infinite cost. ``NaN`` stands for a run without data, which no verdict may take for a good one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from scipy.special import betainc

from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.metric import METRICS, PERCENTILES, Metric, Shape
from pytest_ollama_perf.words import did_you_mean

PRIOR_DF = 3.0
"""How many runs the prior standard deviation is worth (nu0)."""

_TRIMMED = 0.2
_FAILED_WEIGHT = 0.01
"""A percentile is infinite where failed requests carry more of its estimate than this."""


_BATCHES = 5
_LEAST_IN_BATCH = 4


@dataclass(frozen=True)
class Policy:
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
        return f"{self.metric.name}.{self.stat}" if self.stat else self.metric.name

    def refusal(self, requests: int) -> str:
        """Say why ``requests`` per run are too few for a gate on this number; empty when they are enough."""
        if requests >= self.least_requests:
            return ""
        return f"{self.name} cannot gate on {requests} requests a run: it needs {self.least_requests}"


_LATENCY = (0.05, 0.02)
_THROUGHPUT = (0.10, 0.03)
_TTFT = (0.20, 0.05)
_PERCENTILE = (0.25, 0.05)
"""Margin and prior standard deviation."""

_SPREAD = MappingProxyType(
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
_LEAST_REQUESTS = MappingProxyType({"p50": 20, "p90": 50, "p95": 200, "p99": 1000})
_GATING = frozenset({"tps", "ttft"})
_FLOOR_S = MappingProxyType({"queue": 0.010})


def _policy(metric: Metric, stat: str) -> Policy:
    margin, prior_sd = _PERCENTILE if stat else _SPREAD[metric.name]
    least = _LEAST_REQUESTS[stat] if stat else 50 if metric.shape is Shape.PER_RUN else 1
    floor = _FLOOR_S.get(metric.name, 0.0)
    return Policy(metric, stat, margin, prior_sd, not stat and metric.name in _GATING, least, floor)


def _stats(metric: Metric) -> tuple[str, ...]:
    return ("",) if metric.shape is Shape.PER_RUN else ("", *PERCENTILES)


POLICIES = MappingProxyType(
    {
        policy.name: policy
        for name in _SPREAD
        for stat in _stats(METRICS[name])
        for policy in [_policy(METRICS[name], stat)]
    }
)
"""Every number that can be compared with history: ``tps``, ``ttft.p95``, ..."""

GATING = tuple(name for name, policy in POLICIES.items() if policy.gating)


def policy(name: str) -> Policy:
    """Return how ``name`` (``tps``, ``ttft.p95``) is compared.

    Raises:
        ConfigError: no such number, or one that has no history (``error_rate``, a minimum).
    """
    try:
        return POLICIES[name]
    except KeyError:
        raise ConfigError(
            f"no history is kept of {name!r}; valid are {', '.join(_SPREAD)}, "
            f"those of single requests also with .p50 .p90 .p95 .p99{did_you_mean(name, POLICIES)}"
        ) from None


def cost(policy: Policy, value: float) -> float:
    """Return the cost of one value in the metric's own unit; infinite for a failure or what no success can show."""
    if policy.metric.is_rate:
        return -math.log(value) if 0.0 < value < math.inf else math.inf
    value = max(value, policy.floor_s)
    return math.log(value) if value > 0.0 else math.inf


def value(policy: Policy, cost: float) -> float:
    """Return the value in the metric's own unit that has this ``cost``."""
    try:
        return math.exp(-cost if policy.metric.is_rate else cost)
    except OverflowError:
        return math.inf


def change(policy: Policy, difference: float) -> float:
    """Return the relative change of the metric itself for a ``difference`` of costs: -0.1 is a tenth fewer tokens/s."""
    return value(policy, difference) - 1.0


def run_value(policy: Policy, values: Iterable[float]) -> float:
    """Return the cost that stands for a run.

    ``values`` holds one value for each request, ``math.inf`` or ``NaN`` for a failed one (for a per-run metric the one
    number of the run). Without a statistic it is the 20 % trimmed mean of the costs; a failed request is the worst, so
    one in five is trimmed away with the slow end, the mean moves up, and more make it infinite. With a percentile it is
    the estimator of Harrell & Davis 1982. No values give ``NaN``.
    """
    costs = sorted(cost(policy, value) for value in values)
    if not costs:
        return math.nan
    return quantile(costs, PERCENTILES[policy.stat]) if policy.stat else _trimmed_mean(costs)


def _trimmed_mean(costs: Sequence[float]) -> float:
    cut = int(_TRIMMED * len(costs))
    return math.fsum(costs[cut : len(costs) - cut]) / (len(costs) - 2 * cut) if costs[-1 - cut] < math.inf else math.inf


def scatter(costs: Sequence[float], *, in_time_order: bool) -> float:
    """Return how far the trimmed mean of ``costs`` may lie from that of another run that differs in nothing.

    It is the standard error as the requests of one run tell it, 0 where they are too few to tell; failed ones have no
    say. Neighbours in time resemble each other, which the means of five batches allow for (batch means, Conway 1963);
    where the order is not known, the winsorized standard deviation is taken as if they did not (Tukey & McLaughlin
    1963).
    """
    known = np.array([one for one in costs if one < math.inf])
    if in_time_order and len(known) >= _BATCHES * _LEAST_IN_BATCH:
        means = [_trimmed_mean(sorted(batch)) for batch in np.array_split(known, _BATCHES)]
        return float(np.std(means, ddof=1)) / math.sqrt(_BATCHES)
    if len(known) < _LEAST_IN_BATCH:
        return 0.0
    known.sort()
    cut = int(_TRIMMED * len(known))
    winsorized = np.clip(known, known[cut], known[-1 - cut])
    return float(np.std(winsorized, ddof=1)) / ((1.0 - 2.0 * _TRIMMED) * math.sqrt(len(known)))


def quantile(costs: Sequence[float], share: float) -> float:
    """Return the Harrell-Davis quantile of ascending ``costs``, which may end in infinities.

    Failed requests that carry at most 1 % of the estimate count as slow as the slowest that answered.
    """
    weights = _harrell_davis(len(costs), share)
    finite = sum(1 for one in costs if one < math.inf)
    if finite == 0 or math.fsum(weights[finite:]) > _FAILED_WEIGHT:
        return math.inf
    return math.fsum(weight * min(one, costs[finite - 1]) for weight, one in zip(weights, costs, strict=True))


@lru_cache(maxsize=64)
def _harrell_davis(count: int, share: float) -> tuple[float, ...]:
    steps = betainc(share * (count + 1), (1.0 - share) * (count + 1), np.arange(count + 1) / count)
    return tuple(np.diff(steps).tolist())
