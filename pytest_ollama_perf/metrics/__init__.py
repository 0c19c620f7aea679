"""Samples to numbers: definitions, summaries, confidence intervals, formatting."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pytest_ollama_perf.core import ConfigError


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


_UNIT_SUFFIXES = {
    Unit.SECONDS: " s",
    Unit.TOKENS_PER_SECOND: " /s",
    Unit.REQUESTS_PER_SECOND: " /s",
    Unit.SHARE: " %",
    Unit.CELSIUS: " °C",
    Unit.JOULES_PER_TOKEN: " J",
}


def format_value(metric: str, value: float | None, digits: int = 3) -> str:
    """Return ``value``, in the unit of ``metric``, for display: ``182 ms``, ``1.2 s``, ``84.1 /s``, ``3 %``.

    The time of a failed request is ``inf``; a value that does not exist (``None``, NaN) is ``-``.
    """
    if value is None or not math.isfinite(value):
        return _format_special(math.nan if value is None else value)
    unit = METRICS[metric].unit
    if unit is Unit.SECONDS:
        return format_seconds(value, digits)
    if unit is Unit.BYTES:
        return format_bytes(value, digits)
    return format_number(value * 100 if unit is Unit.SHARE else value, digits) + _UNIT_SUFFIXES[unit]


def format_distinct(metric: str, value: float, other: float) -> tuple[str, str]:
    """Return both values, with more digits if three would make different values look equal."""
    for digits in (3, 4, 5, 6, 9):
        pair = format_value(metric, value, digits), format_value(metric, other, digits)
        if pair[0] != pair[1] or value == other:
            break
    return pair


def format_seconds(value: float, digits: int = 3) -> str:
    """Return a time in seconds as ``182 ms`` or ``1.2 s``, rounded before the unit is chosen; ``inf`` and ``-`` as in
    ``format_value``."""
    if not math.isfinite(value):
        return _format_special(value)
    rounded = _round_digits(value, digits)
    return (
        f"{format_number(value, digits)} s"
        if rounded == 0 or abs(rounded) >= 1
        else f"{format_number(value * 1e3, digits)} ms"
    )


def format_bytes(value: float, digits: int = 3) -> str:
    """Return bytes as ``18.2 GiB``, or ``512 MiB`` below 1 GiB; ``inf`` and ``-`` as in ``format_value``."""
    if not math.isfinite(value):
        return _format_special(value)
    gibibytes = abs(_round_digits(value / 2**30, digits)) >= 1
    return f"{format_number(value / 2**30, digits)} GiB" if gibibytes else f"{format_number(value / 2**20, digits)} MiB"


def format_number(value: float, digits: int = 3) -> str:
    """Return ``value`` with ``digits`` significant digits, without trailing zeros or an exponent; integer digits are
    kept. ``inf`` and ``-`` as in ``format_value``."""
    if not math.isfinite(value):
        return _format_special(value)
    rounded = _round_digits(value, digits)
    if rounded == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _format_special(value: float) -> str:
    """Return the text of a value that is not finite; a missing one has no digits and no unit."""
    return "-" if math.isnan(value) else "inf" if value > 0 else "-inf"


def format_percent(share: float, *, signed: bool = False) -> str:
    """Return a share or relative change as ``44 %`` or, signed, ``+26.9 %``; ``inf %`` if it is infinite, ``-`` for
    NaN."""
    if math.isnan(share):
        return _format_special(share)
    text = format_number(share * 100)
    return f"{'+' if signed and not text.startswith('-') else ''}{text} %"


def format_label(metric: str, stat: str = "") -> str:
    """Return the name of a judged value: ``ttft p50``, ``tps``."""
    return f"{metric} {stat}".rstrip()


def format_count(number_of: int, noun: str) -> str:
    """Return ``1 request``, ``2 requests``."""
    return f"{number_of} {noun}{'' if number_of == 1 else 's'}"


def _round_digits(value: float, digits: int) -> float:
    return float(f"{value:.{digits - 1}e}")
