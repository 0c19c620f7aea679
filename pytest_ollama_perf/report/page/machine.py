"""What was read of GPUs and machine beside a load, as lines of words."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_ollama_perf.report.layout import clean
from pytest_ollama_perf.run import Gpu, Host, Telemetry
from pytest_ollama_perf.verdict.wording import number, percent

_GIB = 1024**3


def lines(telemetry: Telemetry | None) -> Iterator[str]:
    """Yield one line for each GPU, one for the machine, and why something is missing."""
    if telemetry is None:
        return
    for gpu in telemetry.gpus:
        yield f"{clean(gpu.name, 80) or 'GPU'}: {', '.join(_gpu(gpu))}"
    if telemetry.host and (known := ", ".join(_host(telemetry.host))):
        yield f"machine: {known}"
    if telemetry.missing:
        yield f"telemetry: {clean(telemetry.missing)}"


def _gpu(gpu: Gpu) -> Iterator[str]:
    if gpu.utilization is not None:
        yield f"{percent(gpu.utilization)} busy"
    yield from _memory(gpu.memory_bytes, gpu.memory_total_bytes)
    if gpu.power_w is not None:
        yield f"{number(gpu.power_w)} W" + (f" (at most {number(gpu.max_power_w)})" if gpu.max_power_w else "")
    if gpu.energy_j is not None:
        yield f"{number(gpu.energy_j)} J"
    if gpu.max_temperature_c is not None:
        yield f"at most {number(gpu.max_temperature_c)} °C"
    if gpu.clock_mhz is not None:
        yield f"{number(gpu.clock_mhz)} MHz" + (f" (at least {number(gpu.min_clock_mhz)})" if gpu.min_clock_mhz else "")
    yield from (f"throttled by {clean(why, 60)} in {percent(share)}" for why, share in gpu.throttled.items())


def _host(host: Host) -> Iterator[str]:
    if host.cpu_share is not None:
        yield f"{percent(host.cpu_share)} of the CPUs busy"
    yield from _memory(host.memory_bytes, host.memory_total_bytes)


def _memory(used: int | None, total: int | None) -> Iterator[str]:
    if used is not None:
        yield f"at most {number(used / _GIB)}" + (f" of {number(total / _GIB)}" if total else "") + " GiB in use"
