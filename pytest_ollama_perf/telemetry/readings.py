"""Readings of GPUs and of the machine, and their log over a load."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from statistics import fmean
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeVar

from pytest_ollama_perf.core.run import GpuStats, HostStats, Telemetry

THROTTLE_REASONS = MappingProxyType(
    {
        "software power cap": 0x04,
        "hardware slowdown": 0x08,
        "sync boost": 0x10,
        "software thermal slowdown": 0x20,
        "hardware thermal slowdown": 0x40,
        "hardware power brake": 0x80,
    }
)
"""Reasons for which a driver lowers the clocks of a GPU, with their bits in NVML's mask of clock event reasons. An idle
GPU and clocks set by the user do not count."""

MAX_READINGS = 20_000
"""Above this number every other reading is dropped, which bounds the memory of long loads."""


class GpuReading(NamedTuple):
    """One GPU at one time, on the clock of the samples. ``None`` means that the driver does not report the value.

    ``utilization`` is 0..1, ``energy_j`` counts from any fixed point, ``reasons`` is NVML's mask.
    """

    at_ns: int
    gpu: str
    name: str = ""
    utilization: float | None = None
    memory_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    clock_mhz: float | None = None
    energy_j: float | None = None
    reasons: int | None = None


class HostReading(NamedTuple):
    """The machine at one time: busy share of all cores since the previous reading, and memory in use."""

    at_ns: int
    cpu_share: float | None = None
    memory_bytes: int | None = None
    memory_total_bytes: int | None = None


@dataclass
class TelemetryLog:
    """Everything that was read during one load.

    ``missing`` explains missing GPU readings. ``cpu_share`` is the CPU time of reading, as a share of one core.
    """

    source: str = ""
    driver: str = ""
    missing: str = ""
    cpu_share: float = 0.0
    gpus: list[GpuReading] = field(default_factory=list)
    host: list[HostReading] = field(default_factory=list)

    def thin(self) -> bool:
        """Drop every other reading of each GPU if there are too many; return whether that happened."""
        if len(self.gpus) + len(self.host) <= MAX_READINGS:
            return False
        seen: Counter[str] = Counter()
        kept = []
        for one in self.gpus:
            if seen[one.gpu] % 2 == 0:
                kept.append(one)
            seen[one.gpu] += 1
        self.gpus[:] = kept
        self.host[:] = self.host[::2]
        return True


WINDOW_SLACK_S = 2.5
"""How far the first and the last reading may be inside the window; enough for a command that prints every second."""

TimeWindow = tuple[int, int]
CounterPoints = list[tuple[int, float]]


class _HasTime(Protocol):
    @property
    def at_ns(self) -> int: ...


_R = TypeVar("_R", bound=_HasTime)


def summarize_log(log: TelemetryLog, window: TimeWindow) -> Telemetry:
    """Return the summary of ``log`` over ``window``, two times on the clock of the readings.

    The readings next to the window are included, because a load may end before the second reading.
    """
    by_gpu: dict[str, list[GpuReading]] = {}
    for reading in log.gpus:
        by_gpu.setdefault(reading.gpu, []).append(reading)
    short = next((why for gpu, found in by_gpu.items() if (why := _describe_gap(gpu, found, window))), "")
    host = _select_around(log.host, window)
    return Telemetry(
        source=log.source,
        driver=log.driver,
        missing=log.missing or short,
        readings=sum(len(_select_around(found, window)) for found in by_gpu.values()),
        gpus=tuple(_summarize_gpu(found, window) for found in by_gpu.values()),
        memory_bytes=_compute_peak_memory(by_gpu.values(), window),
        host=_summarize_host(host) if host else None,
    )


def _describe_gap(gpu: str, found: Sequence[GpuReading], window: TimeWindow) -> str:
    """Return a text if the readings of one GPU cover only a part of the window."""
    whole_s = (window[1] - window[0]) / 1e9
    bearable_ns = max(WINDOW_SLACK_S, whole_s / 10) * 1e9
    if found[0].at_ns <= window[0] + bearable_ns and found[-1].at_ns >= window[1] - bearable_ns:
        return ""
    covered_s = max(0, min(found[-1].at_ns, window[1]) - max(found[0].at_ns, window[0])) / 1e9
    return f"the readings of GPU {gpu} cover only {covered_s:.3g} s of {whole_s:.3g} s"


def _select_around(found: Sequence[_R], window: TimeWindow) -> Sequence[_R]:
    """Return the readings inside the window, and one on each side of it."""
    times = [one.at_ns for one in found]
    return found[max(0, bisect_left(times, window[0]) - 1) : bisect_left(times, window[1]) + 1]


def _summarize_gpu(found: Sequence[GpuReading], window: TimeWindow) -> GpuStats:
    near = _select_around(found, window)
    clocks = _drop_missing(one.clock_mhz for one in near)
    powers = _drop_missing(one.power_w for one in near)
    return GpuStats(
        name=found[-1].name,
        utilization=_compute_mean(_drop_missing(one.utilization for one in near)),
        memory_bytes=max(_drop_missing(one.memory_bytes for one in near), default=None),
        memory_total_bytes=max(_drop_missing(one.memory_total_bytes for one in near), default=None),
        power_w=_compute_mean(powers),
        max_power_w=_round(max(powers, default=None)),
        max_temperature_c=_round(max(_drop_missing(one.temperature_c for one in near), default=None)),
        clock_mhz=_compute_mean(clocks),
        min_clock_mhz=_round(min(clocks, default=None)),
        energy_j=_round(compute_energy_j(found, window)),
        throttled=_compute_throttled(found, window),
    )


def _summarize_host(near: Sequence[HostReading]) -> HostStats:
    shares = _drop_missing(one.cpu_share for one in near)
    return HostStats(
        cpu_share=_compute_mean(shares),
        max_cpu_share=_round(max(shares, default=None)),
        memory_bytes=max(_drop_missing(one.memory_bytes for one in near), default=None),
        memory_total_bytes=max(_drop_missing(one.memory_total_bytes for one in near), default=None),
    )


def _compute_throttled(found: Sequence[GpuReading], window: TimeWindow) -> dict[str, float]:
    """Return for each reason the share of the readings inside the window in which it slowed the clocks.

    The driver reports the hardware slow-down in addition to its cause; then only the cause is listed.
    """
    inside = [one.reasons for one in found if window[0] <= one.at_ns <= window[1] and one.reasons is not None]
    causes = THROTTLE_REASONS["hardware thermal slowdown"] | THROTTLE_REASONS["hardware power brake"]
    masks = [mask & ~THROTTLE_REASONS["hardware slowdown"] if mask & causes else mask for mask in inside]
    shares = {reason: fmean(bool(mask & bit) for mask in masks) for reason, bit in THROTTLE_REASONS.items() if masks}
    return {reason: round(share, 4) for reason, share in shares.items() if share}


def _compute_peak_memory(by_gpu: Iterable[Sequence[GpuReading]], window: TimeWindow) -> int | None:
    """Return the highest total memory in use on all GPUs, which are read one after another."""
    near = sorted((one for found in by_gpu for one in _select_around(found, window)), key=lambda one: one.at_ns)
    now: dict[str, int] = {}
    most: int | None = None
    for one in near:
        if one.memory_bytes is not None:
            now[one.gpu] = one.memory_bytes
            most = max(most or 0, sum(now.values()))
    return most


def compute_energy_j(found: Sequence[GpuReading], window: TimeWindow) -> float | None:
    """Return the joules that one GPU used in ``window``: by its own counter, else power over time (trapezoids)."""
    counter: CounterPoints = [(one.at_ns, one.energy_j) for one in found if one.energy_j is not None]
    if len(counter) >= 2 and all(before[1] <= after[1] for before, after in pairwise(counter)):
        return _interpolate(counter, window[1]) - _interpolate(counter, window[0])
    powers: CounterPoints = [(one.at_ns, one.power_w) for one in found if one.power_w is not None]
    if len(powers) < 2:
        return powers[0][1] * (window[1] - window[0]) / 1e9 if powers else None
    steps = [(w0 + w1) / 2 * (t1 - t0) / 1e9 for (t0, w0), (t1, w1) in pairwise(powers)]
    times = [at for at, _ in powers]
    metered = list(zip(times, accumulate(steps, initial=0.0), strict=True))
    return _interpolate(metered, window[1]) - _interpolate(metered, window[0])


def _interpolate(counter: CounterPoints, at_ns: int) -> float:
    """Return a counter's value at a time, interpolated, or extrapolated from the two nearest readings."""
    after = min(max(bisect_left(counter, at_ns, key=lambda point: point[0]), 1), len(counter) - 1)
    (t0, j0), (t1, j1) = counter[after - 1], counter[after]
    return j1 if t1 == t0 else j0 + (j1 - j0) * (at_ns - t0) / (t1 - t0)


_N = TypeVar("_N", int, float)


def _drop_missing(values: Iterable[_N | None]) -> list[_N]:
    return [value for value in values if value is not None]


def _compute_mean(values: Sequence[float]) -> float | None:
    return _round(fmean(values)) if values else None


def _round(value: float | None) -> float | None:
    """Round to four places, which is finer than any sensor."""
    return None if value is None else round(float(value), 4)
