"""One look at one GPU or at the machine, and the log that a load leaves of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

REASONS = MappingProxyType(
    {
        "software power cap": 0x04,
        "hardware slowdown": 0x08,
        "sync boost": 0x10,
        "software thermal slowdown": 0x20,
        "hardware thermal slowdown": 0x40,
        "hardware power brake": 0x80,
    }
)
"""Why a driver slows a GPU down, and its bit in NVML's mask of clock event reasons. An idle GPU and clocks that a
person has set are no slow-down."""

MOST_READINGS = 20_000
"""Above this every other reading is dropped: a load of hours must not fill the memory."""


class GpuReading(NamedTuple):
    """One GPU at one time, on the clock of the samples. ``None`` stands for what its driver does not tell.

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
    """The machine at one time: busy share of all its cores since the reading before, memory in use."""

    at_ns: int
    cpu_share: float | None = None
    memory_bytes: int | None = None
    memory_total_bytes: int | None = None


@dataclass
class Log:
    """Everything that was read during one load.

    ``missing`` says why there is nothing of a GPU, or not all; ``cpu_share`` is what reading cost, of one core.
    """

    source: str = ""
    driver: str = ""
    missing: str = ""
    cpu_share: float = 0.0
    gpus: list[GpuReading] = field(default_factory=list)
    host: list[HostReading] = field(default_factory=list)

    def thin(self) -> bool:
        """Drop every other reading of each GPU where there are too many; return whether that was so."""
        if len(self.gpus) + len(self.host) <= MOST_READINGS:
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
