"""A log of readings, brought down to what is kept of it: the few numbers of the measured window. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from statistics import fmean
from typing import Protocol, TypeVar

from pytest_ollama_perf.run import Gpu, Host, Telemetry
from pytest_ollama_perf.telemetry.reading import REASONS, GpuReading, HostReading, Log

SLACK_S = 2.5
"""How far the first and the last reading may lie inside the window: what a command that prints every second needs."""

Window = tuple[int, int]
Points = list[tuple[int, float]]


class _Timed(Protocol):
    @property
    def at_ns(self) -> int: ...


_R = TypeVar("_R", bound=_Timed)


def gathered(log: Log, window: Window) -> Telemetry:
    """Return what ``log`` says of ``window``, two times on the clock of the readings.

    The readings next to the window count, too: a load may be over before the second reading.
    """
    by_gpu: dict[str, list[GpuReading]] = {}
    for reading in log.gpus:
        by_gpu.setdefault(reading.gpu, []).append(reading)
    short = next((why for gpu, found in by_gpu.items() if (why := _uncovered(gpu, found, window))), "")
    host = _around(log.host, window)
    return Telemetry(
        source=log.source,
        driver=log.driver,
        missing=log.missing or short,
        readings=sum(len(_around(found, window)) for found in by_gpu.values()),
        gpus=tuple(_gpu(found, window) for found in by_gpu.values()),
        memory_bytes=_together(by_gpu.values(), window),
        host=_host(host) if host else None,
    )


def _uncovered(gpu: str, found: Sequence[GpuReading], window: Window) -> str:
    """Say how much of the window the readings of one GPU span where that is not all of it."""
    whole_s = (window[1] - window[0]) / 1e9
    bearable_ns = max(SLACK_S, whole_s / 10) * 1e9
    if found[0].at_ns <= window[0] + bearable_ns and found[-1].at_ns >= window[1] - bearable_ns:
        return ""
    covered_s = max(0, min(found[-1].at_ns, window[1]) - max(found[0].at_ns, window[0])) / 1e9
    return f"the readings of GPU {gpu} cover only {covered_s:.3g} s of {whole_s:.3g} s"


def _around(found: Sequence[_R], window: Window) -> Sequence[_R]:
    """Return the readings inside the window, and one on each side of it."""
    times = [one.at_ns for one in found]
    return found[max(0, bisect_left(times, window[0]) - 1) : bisect_left(times, window[1]) + 1]


def _gpu(found: Sequence[GpuReading], window: Window) -> Gpu:
    near = _around(found, window)
    clocks = _known(one.clock_mhz for one in near)
    powers = _known(one.power_w for one in near)
    return Gpu(
        name=found[-1].name,
        utilization=_mean(_known(one.utilization for one in near)),
        memory_bytes=max(_known(one.memory_bytes for one in near), default=None),
        memory_total_bytes=max(_known(one.memory_total_bytes for one in near), default=None),
        power_w=_mean(powers),
        max_power_w=_round(max(powers, default=None)),
        max_temperature_c=_round(max(_known(one.temperature_c for one in near), default=None)),
        clock_mhz=_mean(clocks),
        min_clock_mhz=_round(min(clocks, default=None)),
        energy_j=_round(energy_j(found, window)),
        throttled=_throttled(found, window),
    )


def _host(near: Sequence[HostReading]) -> Host:
    shares = _known(one.cpu_share for one in near)
    return Host(
        cpu_share=_mean(shares),
        max_cpu_share=_round(max(shares, default=None)),
        memory_bytes=max(_known(one.memory_bytes for one in near), default=None),
        memory_total_bytes=max(_known(one.memory_total_bytes for one in near), default=None),
    )


def _throttled(found: Sequence[GpuReading], window: Window) -> dict[str, float]:
    """Return for each reason the share of the readings inside the window in which it slowed the clocks.

    The driver names the hardware's slow-down beside its cause; where the cause is named, that says it all.
    """
    inside = [one.reasons for one in found if window[0] <= one.at_ns <= window[1] and one.reasons is not None]
    causes = REASONS["hardware thermal slowdown"] | REASONS["hardware power brake"]
    masks = [mask & ~REASONS["hardware slowdown"] if mask & causes else mask for mask in inside]
    shares = {reason: fmean(bool(mask & bit) for mask in masks) for reason, bit in REASONS.items() if masks}
    return {reason: round(share, 4) for reason, share in shares.items() if share}


def _together(by_gpu: Iterable[Sequence[GpuReading]], window: Window) -> int | None:
    """Return the most memory in use at once on all GPUs, which are read one after the other."""
    near = sorted((one for found in by_gpu for one in _around(found, window)), key=lambda one: one.at_ns)
    now: dict[str, int] = {}
    most: int | None = None
    for one in near:
        if one.memory_bytes is not None:
            now[one.gpu] = one.memory_bytes
            most = max(most or 0, sum(now.values()))
    return most


def energy_j(found: Sequence[GpuReading], window: Window) -> float | None:
    """Return the joules that one GPU used in ``window``: by its own counter, else power over time (trapezoids)."""
    counter: Points = [(one.at_ns, one.energy_j) for one in found if one.energy_j is not None]
    if len(counter) >= 2 and all(before[1] <= after[1] for before, after in pairwise(counter)):
        return _at(counter, window[1]) - _at(counter, window[0])
    powers: Points = [(one.at_ns, one.power_w) for one in found if one.power_w is not None]
    if len(powers) < 2:
        return powers[0][1] * (window[1] - window[0]) / 1e9 if powers else None
    steps = [(w0 + w1) / 2 * (t1 - t0) / 1e9 for (t0, w0), (t1, w1) in pairwise(powers)]
    times = [at for at, _ in powers]
    metered = list(zip(times, accumulate(steps, initial=0.0), strict=True))
    return _at(metered, window[1]) - _at(metered, window[0])


def _at(counter: Points, at_ns: int) -> float:
    """Return where a counter stood: on the line between its neighbours, beyond its ends on the line of the last two."""
    after = min(max(bisect_left(counter, at_ns, key=lambda point: point[0]), 1), len(counter) - 1)
    (t0, j0), (t1, j1) = counter[after - 1], counter[after]
    return j1 if t1 == t0 else j0 + (j1 - j0) * (at_ns - t0) / (t1 - t0)


_N = TypeVar("_N", int, float)


def _known(values: Iterable[_N | None]) -> list[_N]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return _round(fmean(values)) if values else None


def _round(value: float | None) -> float | None:
    """Four places are finer than any sensor, and shorter in a file."""
    return None if value is None else round(float(value), 4)
