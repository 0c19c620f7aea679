"""The metrics: what each is called, its unit, and which direction is better. Everything else asks here.

The words are those of ARCHITECTURE.md. A metric of shape ``PER_REQUEST`` has one value for each request, and so
percentiles; ``POOLED`` has those and a value pooled over all requests; ``PER_RUN`` has one value for the run.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pytest_ollama_perf.core.errors import ConfigError


class Better(str, enum.Enum):
    """Which direction of a metric is better."""

    HIGHER = "higher"
    LOWER = "lower"


class Shape(str, enum.Enum):
    """How many values a metric has, and how they make one value of a run."""

    PER_REQUEST = "per request"
    POOLED = "pooled"
    PER_RUN = "per run"


class Unit(str, enum.Enum):
    """Units as in files: seconds are floats, shares are 0 to 1."""

    SECONDS = "s"
    TOKENS_PER_SECOND = "tokens/s"
    REQUESTS_PER_SECOND = "requests/s"
    SHARE = "share"
    BYTES = "B"
    CELSIUS = "°C"
    JOULES_PER_TOKEN = "J/token"


STATS = ("mean", "p50", "p90", "p95", "p99", "min", "max")
"""Statistics over the requests of a run; percentiles interpolate linearly (Hyndman & Fan 1996, type 7)."""

PERCENTILES = MappingProxyType({"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99})


@dataclass(frozen=True)
class Metric:
    """One measured quantity.

    ``name`` is used in code, options, files and reports; ``help`` describes it in one line. ``compute`` is for metrics
    that another plugin adds: it takes a successful sample (shape ``PER_REQUEST``) or the run (``PER_RUN``) and returns
    a number in ``unit``, or ``None`` without a value. A failed request counts as infinite, or as 0 if higher is better.
    """

    name: str
    unit: Unit
    better: Better
    shape: Shape
    help: str
    compute: Callable[[Any], float | None] | None = None

    @property
    def is_higher_better(self) -> bool:
        """Whether higher values are better."""
        return self.better is Better.HIGHER


def _index_by_name(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


_S, _T, _R = Unit.SECONDS, Unit.TOKENS_PER_SECOND, Unit.REQUESTS_PER_SECOND
_UP, _DOWN = Better.HIGHER, Better.LOWER

_METRICS = _index_by_name(
    Metric("tps", _T, _UP, Shape.POOLED, "eval-based tokens/s: sum of eval_count over sum of eval_duration"),
    Metric(
        "throughput",
        _T,
        _UP,
        Shape.PER_RUN,
        "tokens/s of the whole system while all clients are busy; over the whole run if that time is too short",
    ),
    Metric("throughput_whole", _T, _UP, Shape.PER_RUN, "tokens/s of the whole system over the whole run"),
    Metric("qps", _R, _UP, Shape.PER_RUN, "completed requests per second"),
    Metric("ttft", _S, _DOWN, Shape.PER_REQUEST, "send to first non-empty response, content or thinking"),
    Metric("ttfa", _S, _DOWN, Shape.PER_REQUEST, "send to first answer token of a thinking model"),
    Metric(
        "tpot", _S, _DOWN, Shape.PER_REQUEST, "time per output token on the server: eval_duration / (eval_count - 1)"
    ),
    Metric("itl", _S, _DOWN, Shape.PER_REQUEST, "time between two chunks of a successful request, client clock"),
    Metric("latency", _S, _DOWN, Shape.PER_REQUEST, "send (scheduled time at a fixed rate) to done, client clock"),
    Metric(
        "queue", _S, _DOWN, Shape.PER_REQUEST, "total - load - prompt_eval - eval: the wait for a slot on the server"
    ),
    Metric("prefill_tps", _T, _UP, Shape.POOLED, "uncached prompt tokens per second"),
    Metric("load_time", _S, _DOWN, Shape.PER_REQUEST, "what loading the model took"),
    Metric("goodput", _R, _UP, Shape.PER_RUN, "requests per second that met every latency limit"),
    Metric("error_rate", Unit.SHARE, _DOWN, Shape.PER_RUN, "failed requests over all requests"),
    Metric("gpu_memory", Unit.BYTES, _DOWN, Shape.PER_RUN, "most GPU memory in use at once, on all GPUs of the server"),
    Metric("gpu_temperature", Unit.CELSIUS, _DOWN, Shape.PER_RUN, "highest temperature of a GPU"),
    Metric("joules_per_token", Unit.JOULES_PER_TOKEN, _DOWN, Shape.PER_RUN, "energy of all GPUs over generated tokens"),
)

_REL_TOLERANCE = 1e-9
"""Relative rounding error that a value which meets its bound exactly may have; far below the resolution of a clock."""


def meets_bound(op: str, value: float, bound: float) -> bool:
    """Whether ``value`` ``op`` ``bound`` holds for ``op`` ``>=`` or ``<=``, up to rounding; NaN meets no bound."""
    if op == ">=":
        return value >= bound * (1 - _REL_TOLERANCE)
    return value <= bound * (1 + _REL_TOLERANCE)


METRICS: Mapping[str, Metric] = MappingProxyType(_METRICS)
"""Every metric by name, including those that other plugins add."""


def add_metric(metric: Metric) -> None:
    """Add a metric with a ``compute`` function.

    Raises:
        ConfigError: its name is in use or no identifier, or it is neither per request nor per run.
    """
    if metric.name in _METRICS or not re.fullmatch("[a-z][a-z0-9_]*", metric.name):
        reason = "already exists" if metric.name in _METRICS else "is no name: expected lower case letters and '_'"
        raise ConfigError(f"cannot add the metric {metric.name!r}: it {reason}")
    if metric.compute is None or metric.shape is Shape.POOLED:
        raise ConfigError(f"cannot add the metric {metric.name!r}: give compute, and a shape that is not pooled")
    _METRICS[metric.name] = metric


def remove_metric(name: str) -> None:
    """Remove a metric that was added."""
    if name in _METRICS and _METRICS[name].compute is not None:
        del _METRICS[name]


TELEMETRY_METRICS = ("gpu_memory", "gpu_temperature", "joules_per_token")
"""Metrics that are read during the load, not computed from requests; they exist only with telemetry."""
