"""Results of a sweep: one row for each level, the knee of the curve and the point of saturation.

Every number comes from the summaries of the levels' runs; nothing is fitted. A curve is one row of levels along the
swept axis; a product of axes gives several curves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median_low

import msgspec

from pytest_ollama_perf.analysis import BoundCheck, Finding
from pytest_ollama_perf.analysis.limits import count_slots
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.verdict import VerdictStatus
from pytest_ollama_perf.metrics import METRICS
from pytest_ollama_perf.metrics.summary import Summary

LOAD_AXES = ("concurrency", "rate")
"""Axes along which the load itself grows: only there is a knee, and only there does a sweep stop early."""

AxisValues = dict[str, int | float | str]
"""Where on the axes a level is: ``{"num_ctx": 8192, "concurrency": 4}``."""


class SweepPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One level. Rates are per second, times seconds; ``None`` is what this load does not have.

    ``throughput`` is that of the whole system while all clients were busy (over the whole run where they never were);
    ``efficiency`` that over ``concurrency`` times the single client's, 1.0 being ideal; ``slots`` how many requests the
    server clearly ran concurrently while others waited.
    """

    at: AxisValues
    run_id: str
    status: VerdictStatus
    reason: str
    single: bool = False
    requests: int
    ok: int
    output_tokens: int
    wall_s: float
    tps: float | None = None
    throughput: float | None = None
    throughput_ci: tuple[float, float] | None = None
    qps: float | None = None
    qps_ci: tuple[float, float] | None = None
    ttft_mean_s: float | None = None
    ttft_mean_ci_s: tuple[float, float] | None = None
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None
    latency_p50_s: float | None = None
    latency_p95_s: float | None = None
    queue_mean_s: float | None = None
    efficiency: float | None = None
    slots: int | None = None

    @property
    def success_rate(self) -> float:
        """Successful requests over all, 0..1."""
        return self.ok / self.requests if self.requests else 0.0

    @property
    def output_rate(self) -> float:
        """Output of the system: tokens/s, or requests/s where no tokens are counted (embeddings)."""
        return (self.throughput if self.throughput is not None else self.qps) or 0.0

    @property
    def output_rate_sd(self) -> float:
        """Standard error of ``output_rate``; 0 if it is not known."""
        interval = self.throughput_ci if self.throughput is not None else self.qps_ci
        return (interval[1] - interval[0]) / 2 / _Z95 if interval else 0.0


class Knee(msgspec.Struct, frozen=True, kw_only=True):
    """Where throughput stops growing: at the level ``at``, the lowest that no later level clearly exceeds.

    ``after`` is the level before, which still was exceeded; where ``reached`` is false, throughput still grew at the
    last level and the knee lies beyond it. ``throughput`` is that of the level.
    """

    axis: str
    at: float
    after: float | None
    throughput: float
    reached: bool

    @property
    def concurrency(self) -> int:
        """The level, for a sweep over concurrency."""
        return int(self._require_axis("concurrency"))

    @property
    def rate(self) -> float:
        """The level, for a sweep over rates."""
        return self._require_axis("rate")

    def _require_axis(self, axis: str) -> float:
        if self.axis != axis:
            raise AttributeError(f"this sweep is over {self.axis}: use knee.{self.axis}")
        return self.at


class Saturation(msgspec.Struct, frozen=True, kw_only=True):
    """The first level above the knee at which TTFT grew faster than the load.

    From level ``after`` to level ``at`` the load grew by ``load_growth`` and the mean TTFT by ``ttft_growth``, to
    ``ttft_s``.
    """

    axis: str
    at: float
    after: float
    load_growth: float
    ttft_growth: float
    ttft_s: float

    @property
    def concurrency(self) -> int:
        """The level, for a sweep over concurrency."""
        return int(self.at)


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """The levels along the axis, for one choice ``at`` of all other axes. ``stopped`` says why levels are missing."""

    at: AxisValues
    levels: tuple[SweepPoint, ...]
    single: SweepPoint | None = None
    knee: Knee | None = None
    saturation: Saturation | None = None
    slots: int | None = None
    stopped: str = ""

    @property
    def best(self) -> SweepPoint | None:
        """The level with the highest output rate."""
        return max(self.levels, key=lambda level: level.output_rate, default=None)

    @property
    def speedup(self) -> float | None:
        """The output rate of the best level over that of a single client."""
        alone = self.single.output_rate if self.single else 0.0
        return self.best.output_rate / alone if self.best and alone else None


class Sweep(Finding, frozen=True, kw_only=True, tag="sweep"):
    """All curves of a sweep over ``axis``, and the limits on them."""

    axis: str
    curves: tuple[Curve, ...]
    checks: tuple[BoundCheck, ...] = ()


def build_sweep_point(
    at: AxisValues, run: Run, summary: Summary, word: VerdictStatus, reason: str, *, single: bool = False
) -> SweepPoint:
    """Return the row of one run."""
    speed = "throughput" if "throughput" in summary.metrics else "throughput_whole"
    return SweepPoint(
        at=at,
        run_id=run.id,
        status=word,
        reason=reason,
        single=single,
        requests=summary.requests,
        ok=summary.ok,
        output_tokens=summary.output_tokens,
        wall_s=summary.wall_s,
        tps=_get_stat(summary, "tps"),
        throughput=_get_stat(summary, speed),
        throughput_ci=_get_interval(summary, speed),
        qps=_get_stat(summary, "qps"),
        qps_ci=_get_interval(summary, "qps"),
        ttft_mean_s=_get_stat(summary, "ttft", "mean"),
        ttft_mean_ci_s=_get_interval(summary, "ttft", "mean"),
        ttft_p50_s=_get_stat(summary, "ttft", "p50"),
        ttft_p95_s=_get_stat(summary, "ttft", "p95"),
        latency_p50_s=_get_stat(summary, "latency", "p50"),
        latency_p95_s=_get_stat(summary, "latency", "p95"),
        queue_mean_s=_get_stat(summary, "queue", "mean"),
        slots=_count_server_slots(run),
    )


def build_curve(
    axis: str, at: AxisValues, levels: Sequence[SweepPoint], single: SweepPoint | None = None, stopped: str = ""
) -> Curve:
    """Return the curve of ``levels``, which are in increasing order of ``axis`` if that is a load."""
    if axis not in LOAD_AXES:
        return Curve(at=at, levels=tuple(levels), stopped=stopped)
    alone = single or next((level for level in levels if level.at.get("concurrency") == 1), None)
    scaled = tuple(_add_efficiency(level, alone) for level in levels)
    knee = find_knee(axis, scaled)
    return Curve(
        at=at,
        levels=scaled,
        single=alone,
        knee=knee,
        saturation=find_saturation(axis, scaled, knee) if knee else None,
        slots=median_low(seen) if (seen := [level.slots for level in scaled if level.slots is not None]) else None,
        stopped=stopped,
    )


_MIN_GROWTH = 0.10
"""Less does not count as growth: it is twice the difference between two runs of an unchanged server."""

_Z95, _Z90 = 1.96, 1.645


def find_knee(axis: str, levels: Sequence[SweepPoint]) -> Knee | None:
    """Return where throughput stops growing; ``None`` where nothing succeeded.

    The knee is the lowest level that no later one exceeds by more than 10 %, beyond chance (by more than 1.645 standard
    errors of the difference) and with at least half of that in finished requests. Every later level counts, not only
    the next one: slow growth is still growth, and one lucky level does not end it.
    """
    worked = [level for level in levels if level.output_rate]
    for index, level in enumerate(worked):
        if not any(_exceeds(later, level) for later in worked[index + 1 :]):
            before = worked[index - 1] if index else None
            return Knee(
                axis=axis,
                at=_get_load(level, axis),
                after=_get_load(before, axis) if before else None,
                throughput=level.output_rate,
                reached=level is not levels[-1],
            )
    return None


def _exceeds(later: SweepPoint, level: SweepPoint) -> bool:
    more = later.output_rate - level.output_rate
    grew = more > _MIN_GROWTH * level.output_rate and more > _Z90 * math.hypot(
        later.output_rate_sd, level.output_rate_sd
    )
    return grew and _has_higher_qps(later, level)


def _has_higher_qps(later: SweepPoint, level: SweepPoint) -> bool:
    """Whether requests also finished faster. If each client sends few requests, all clients are busy only briefly, and
    the throughput of that time is not representative of the server."""
    return level.qps is None or later.qps is None or later.qps > level.qps * (1 + _MIN_GROWTH / 2)


def find_saturation(axis: str, levels: Sequence[SweepPoint], knee: Knee) -> Saturation | None:
    """Return the first level above the knee whose TTFT grew 10 % more than the load, beyond its interval."""
    past = [level for level in levels if _get_load(level, axis) >= knee.at]
    for before, level in pairwise(past):
        was, now, low = before.ttft_mean_s, level.ttft_mean_s, _get_ttft_low(level)
        if not was or now is None or math.isinf(was):
            continue
        load = _get_load(level, axis) / _get_load(before, axis)
        if now / was > load * (1 + _MIN_GROWTH) and low > load * was:
            return Saturation(
                axis=axis,
                at=_get_load(level, axis),
                after=_get_load(before, axis),
                load_growth=load,
                ttft_growth=now / was,
                ttft_s=now,
            )
    return None


def format_position(at: Mapping[str, object]) -> str:
    """Return where a level is, for display: ``concurrency 4``, ``num_ctx 8192, concurrency 4``."""
    forms = {"rate": "{:g} requests/s", "model": "{}"}
    return ", ".join(forms.get(axis, f"{axis} {{}}").format(value) for axis, value in at.items())


def _get_ttft_low(level: SweepPoint) -> float:
    interval = level.ttft_mean_ci_s
    return interval[0] if interval else level.ttft_mean_s or 0.0


def _get_load(level: SweepPoint, axis: str) -> float:
    return float(level.at[axis])


def _add_efficiency(level: SweepPoint, alone: SweepPoint | None) -> SweepPoint:
    clients = level.at.get("concurrency")
    if alone is None or not alone.output_rate or not isinstance(clients, int):
        return level
    return msgspec.structs.replace(level, efficiency=level.output_rate / alone.output_rate / clients)


def _get_stat(summary: Summary, metric: str, stat: str = "") -> float | None:
    assert metric in METRICS
    found = summary.metrics.get(metric)
    return found.get(stat) if found else None


def _get_interval(summary: Summary, metric: str, stat: str = "") -> tuple[float, float] | None:
    found = summary.metrics.get(metric)
    return found.get_interval(stat) if found else None


def _count_server_slots(run: Run) -> int | None:
    """Return the slots of all servers together, where each of them let requests wait."""
    urls = {sample.url for sample in run.measured}
    found = [count_slots([sample for sample in run.measured if sample.url == url and sample.ok]) for url in urls]
    seen = [slots for slots in found if slots is not None]
    return sum(seen) if seen and len(seen) == len(urls) else None
