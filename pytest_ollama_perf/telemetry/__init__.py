"""Readings of GPUs and of the machine while a load runs. They never change the load's metrics."""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from pytest_ollama_perf.telemetry.command import CommandMeter, parse_command
from pytest_ollama_perf.telemetry.nvml import NvmlGpus, import_nvml
from pytest_ollama_perf.telemetry.readings import GpuReading, HostReading, TelemetryLog

SAMPLE_INTERVAL_S = 0.5
"""Drivers update the utilisation a few times per second."""

_MAX_COST_SHARE = 0.02
"""The maximum share of time spent on reading; a slow driver is read less often."""

_STOP_TIMEOUT_S = 2.0


class GpuSource(Protocol):
    """GPUs that can be read repeatedly. ``missing`` explains why there are none, or which one was lost."""

    name: str
    driver: str
    missing: str

    def read(self, at_ns: int) -> Iterable[GpuReading]:
        """Return the readings of all GPUs."""


class HostSource(Protocol):
    """A machine that can be read repeatedly."""

    def read(self, at_ns: int) -> HostReading:
        """Return a reading of the host."""


class LocalSampler:
    """Logs readings of GPUs and machine. The clock is that of the samples; ``wait`` returns true to stop.

    One reading is taken before the load starts and one after it ends, so that a load of any length is covered.
    """

    def __init__(
        self, gpus: GpuSource, machine: HostSource | None, *, clock: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self._gpus = gpus
        self._machine = machine
        self._clock = clock
        self._every_s = SAMPLE_INTERVAL_S
        self._spent_ns = 0
        self._log = TelemetryLog()

    @contextlib.contextmanager
    def record(self) -> Iterator[TelemetryLog]:
        """Read while the block runs; the log is complete after the block."""
        self._log = log = TelemetryLog(source=self._gpus.name, driver=self._gpus.driver, missing=self._gpus.missing)
        self._every_s, self._spent_ns = SAMPLE_INTERVAL_S, 0
        began = self._clock()
        self._take_reading()
        stop = threading.Event()
        thread = threading.Thread(target=self._run_loop, args=(stop.wait,), name="ollama-perf-telemetry", daemon=True)
        thread.start()
        try:
            yield log
        finally:
            stop.set()
            thread.join(_STOP_TIMEOUT_S)
            if thread.is_alive():
                log.missing = "the driver did not answer any more"
            else:
                self._take_reading()
                log.missing = self._gpus.missing
            log.cpu_share = self._spent_ns / max(1, self._clock() - began)

    def _run_loop(self, wait: Callable[[float], bool]) -> None:
        while not wait(self._every_s):
            began = self._clock()
            self._take_reading()
            took_s = (self._clock() - began) / 1e9
            self._every_s = max(self._every_s, took_s / _MAX_COST_SHARE)
            if self._log.thin():
                self._every_s *= 2

    def _take_reading(self) -> None:
        began = time.thread_time_ns()
        at_ns = self._clock()
        self._log.gpus.extend(self._gpus.read(at_ns))
        if self._machine is not None:
            self._log.host.append(self._machine.read(at_ns))
        self._spent_ns += time.thread_time_ns() - began


CpuTimes = tuple[float, float]
"""Busy time and total time of all cores together, in any unit."""

MemoryUse = tuple[int, int]
"""Bytes in use, bytes in total."""


class HostMeter:
    """Reads the machine; a value that cannot be read is ``None``."""

    def __init__(self, times: Callable[[], CpuTimes], memory: Callable[[], MemoryUse]) -> None:
        self._times = times
        self._memory = memory
        self._last: CpuTimes | None = None

    def read(self, at_ns: int) -> HostReading:
        """Return one reading; the first has no CPU share, which is computed between two readings."""
        share = self._compute_cpu_share()
        try:
            used, total = self._memory()
        except _READ_ERRORS:
            return HostReading(at_ns, share)
        return HostReading(at_ns, share, used, total)

    def _compute_cpu_share(self) -> float | None:
        before = self._last
        try:
            now = self._last = self._times()
        except _READ_ERRORS:
            return None
        if before is None or now[1] <= before[1]:
            return None
        return min(1.0, max(0.0, (now[0] - before[0]) / (now[1] - before[1])))


_READ_ERRORS = (OSError, ValueError, KeyError, IndexError, AttributeError)


def make_host_meter(proc: Path = Path("/proc")) -> HostMeter | None:
    """Return a meter for this machine; ``None`` if there is neither ``/proc`` nor psutil."""
    if (proc / "stat").is_file() and (proc / "meminfo").is_file():
        return HostMeter(lambda: read_cpu_times(proc / "stat"), lambda: read_memory(proc / "meminfo"))
    try:
        psutil = importlib.import_module("psutil")
    except ImportError:
        return None

    def times() -> CpuTimes:
        found = psutil.cpu_times()
        return sum(found) - found.idle, sum(found)

    def memory() -> MemoryUse:
        found = psutil.virtual_memory()
        return found.total - found.available, found.total

    return HostMeter(times, memory)


def read_cpu_times(path: Path) -> CpuTimes:
    """Read the first line of ``/proc/stat``: user nice system idle iowait irq softirq steal (proc_stat(5))."""
    with path.open(encoding="ascii") as file:
        fields = [int(field) for field in file.readline().split()[1:9]]
    return float(sum(fields) - fields[3] - fields[4]), float(sum(fields))


def read_memory(path: Path) -> MemoryUse:
    """Read ``/proc/meminfo``; memory that the kernel can reclaim counts as free (proc_meminfo(5))."""
    with path.open(encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return total - available, total


TELEMETRY_OFF = "off"


class Meter(Protocol):
    """Logs readings of GPUs and machine while a load runs."""

    def record(self) -> contextlib.AbstractContextManager[TelemetryLog]:
        """Record while the context is open."""


class NoTelemetry:
    """Reads nothing; the log explains why."""

    def __init__(self, why: str) -> None:
        self._why = why

    @contextlib.contextmanager
    def record(self) -> Iterator[TelemetryLog]:
        """Yield a log without readings."""
        yield TelemetryLog(missing=self._why)


class TelemetryProvider:
    """The telemetry of one session. Drivers are opened with the first load that needs them and closed with the session.

    ``setting`` is a command, ``off``, or ``None`` for the GPUs of this machine.
    """

    def __init__(self, setting: str | None) -> None:
        self._is_off = setting == TELEMETRY_OFF
        self._command = (
            CommandMeter(parse_command(setting, "--ollama-telemetry")) if setting and not self._is_off else None
        )
        self._gpus: NvmlGpus | None = None

    def select_meter(self, hosts: Iterable[str], *, simulated: bool) -> Meter:
        """Return the telemetry of the servers at ``hosts``; a simulator has no GPU."""
        if self._command is not None:
            return self._command
        if self._is_off:
            return NoTelemetry("telemetry is switched off (--ollama-telemetry=off)")
        if simulated:
            return NoTelemetry("a simulator has no GPU")
        if not all(map(is_local_host, hosts)):
            return NoTelemetry("the server is not on this machine; give --ollama-telemetry a command that reads it")
        if self._gpus is None:
            self._gpus = NvmlGpus(import_nvml())
        return LocalSampler(self._gpus, make_host_meter())

    def close(self) -> None:
        """Release the driver."""
        if self._gpus is not None:
            self._gpus.close()


def is_local_host(host: str) -> bool:
    """Return whether ``host`` is this machine: a loopback address, ``localhost`` or its host name."""
    name = host.rstrip(".").lower()
    if name in {"localhost", socket.gethostname().lower()} or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
