"""Judging runs. Everything here is pure: values in, values out."""

from __future__ import annotations

import enum
from typing import ClassVar

import msgspec

from pytest_ollama_perf.core.verdict import VerdictStatus
from pytest_ollama_perf.metrics import format_number, format_seconds, meets_bound


class Finding(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Base of what an experiment found. ``kind`` in files is the tag that each subclass declares.

    A finding is part of a test's result: ``report.experiments`` renders each kind, the JSON report holds every field.
    ``supplements_metrics`` is true if the finding is shown in addition to the metrics of the load, false if it
    replaces them.
    """

    supplements_metrics: ClassVar[bool] = False


class FindingMetric(str, enum.Enum):
    """A number that an experiment finds and that a limit can be set on."""

    KNEE = "knee"
    SPEEDUP = "speedup"
    MAX_CONCURRENCY = "max_concurrency"
    LOAD_TIME = "load_time"
    COLD_TTFT = "cold_ttft"
    COLD_LATENCY = "cold_latency"
    WARM_TTFT = "warm_ttft"
    WARM_LATENCY = "warm_latency"
    RATIO = "ratio"

    @property
    def label(self) -> str:
        """The metric for display: ``cold TTFT``."""
        return self.value.replace("_", " ").replace("ttft", "TTFT").replace("max ", "maximum ")


class BoundCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A limit on ``metric``: ``op`` ``bound``, and the ``value`` found (``None`` if there is none).

    ``where`` names one of several curves. ``unit`` is ``""`` for a count, ``s`` for seconds, ``x`` for a ratio;
    ``reason`` is one complete line.
    """

    metric: FindingMetric
    op: str
    bound: float
    value: float | None
    status: VerdictStatus
    reason: str
    unit: str = ""
    where: str = ""

    @property
    def name(self) -> str:
        """The label of the metric, with the curve it belongs to."""
        return format_metric_name(self.metric, self.where)


def check_bound(
    metric: FindingMetric,
    value: float | None,
    op: str,
    bound: float,
    *,
    where: str = "",
    unit: str = "",
    missing: str = "",
) -> BoundCheck:
    """Compare ``value`` with ``bound``. A missing value breaks the limit; ``missing`` is the reason it is missing."""
    met = value is not None and meets_bound(op, value, bound)
    name = format_metric_name(metric, where)
    found = f"{name} was not found: {missing}" if value is None else f"{name} {format_quantity(value, unit)}"
    return BoundCheck(
        metric=metric,
        op=op,
        bound=bound,
        value=value,
        status=VerdictStatus.OK if met else VerdictStatus.BROKEN,
        reason=f"{found}, limit {op} {format_quantity(bound, unit)}",
        unit=unit,
        where=where,
    )


def format_metric_name(metric: FindingMetric, where: str = "") -> str:
    """Return ``knee`` or, for one of several curves, ``knee (num_ctx 8192)``."""
    return f"{metric.label} ({where})" if where else metric.label


def format_quantity(value: float, unit: str) -> str:
    """Return ``value`` for display: ``4``, ``182 ms``, ``19 x``; ``-`` if it is not a number."""
    return format_seconds(value) if unit == "s" else f"{format_number(value)} {unit}".rstrip()
