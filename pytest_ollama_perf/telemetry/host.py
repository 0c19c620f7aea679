"""CPU and memory of this machine: from ``/proc`` where there is one, else through psutil (the extra ``host``)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from pytest_ollama_perf.telemetry.reading import HostReading

Times = tuple[float, float]
"""What all cores together have been busy, and what they could have been, in any unit."""

Memory = tuple[int, int]
"""Bytes in use, bytes there are."""


class HostMeter:
    """Reads the machine; a figure that cannot be read is ``None``."""

    def __init__(self, times: Callable[[], Times], memory: Callable[[], Memory]) -> None:
        self._times = times
        self._memory = memory
        self._last: Times | None = None

    def read(self, at_ns: int) -> HostReading:
        """Return one reading; the first has no share of the CPU, which is counted from one reading to the next."""
        share = self._share()
        try:
            used, total = self._memory()
        except _UNREADABLE:
            return HostReading(at_ns, share)
        return HostReading(at_ns, share, used, total)

    def _share(self) -> float | None:
        before = self._last
        try:
            now = self._last = self._times()
        except _UNREADABLE:
            return None
        if before is None or now[1] <= before[1]:
            return None
        return min(1.0, max(0.0, (now[0] - before[0]) / (now[1] - before[1])))


_UNREADABLE = (OSError, ValueError, KeyError, IndexError, AttributeError)


def this_host(proc: Path = Path("/proc")) -> HostMeter | None:
    """Return a meter for this machine; ``None`` where there is neither ``/proc`` nor psutil."""
    if (proc / "stat").is_file() and (proc / "meminfo").is_file():
        return HostMeter(lambda: proc_times(proc / "stat"), lambda: proc_memory(proc / "meminfo"))
    try:
        psutil = importlib.import_module("psutil")
    except ImportError:
        return None

    def times() -> Times:
        found = psutil.cpu_times()
        return sum(found) - found.idle, sum(found)

    def memory() -> Memory:
        found = psutil.virtual_memory()
        return found.total - found.available, found.total

    return HostMeter(times, memory)


def proc_times(path: Path) -> Times:
    """Read the first line of ``/proc/stat``: user nice system idle iowait irq softirq steal (proc_stat(5))."""
    with path.open(encoding="ascii") as file:
        fields = [int(field) for field in file.readline().split()[1:9]]
    return float(sum(fields) - fields[3] - fields[4]), float(sum(fields))


def proc_memory(path: Path) -> Memory:
    """Read ``/proc/meminfo``; what the kernel could give away at once counts as free (proc_meminfo(5))."""
    with path.open(encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return total - available, total
