"""Measures what this machine's client can take in: against a generator of tokens in another process."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial

import anyio

from pytest_ollama_perf.analysis.client_limits import ClientMeasurement
from pytest_ollama_perf.client import clock
from pytest_ollama_perf.client.address import parse_address
from pytest_ollama_perf.client.backend import HttpBackend
from pytest_ollama_perf.core.errors import ServerError
from pytest_ollama_perf.core.sample import Sample
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.loadgen import runner
from pytest_ollama_perf.loadgen.runner import ClientMonitor
from pytest_ollama_perf.simulator.generator import GeneratorSettings, start_generator

FLOOD_WORKLOAD = Workload(model="generator", concurrency=32, requests=160, warmup=32, num_predict=2000)
PACED_WORKLOAD = Workload(model="generator", concurrency=64, requests=192, warmup=64, num_predict=40)
PACED_TPS = 50.0
_FIRST_TOKEN_S = 0.03
_IDLE_S = 0.6
_SPARE_FILES = 64
_STAMP_TRIES, _STAMP_PAUSE_S = 20, 0.002


def measure_client(*, connections: int) -> ClientMeasurement:
    """Measure for about five seconds; ``connections`` is what the load that is meant needs.

    Raises:
        ServerError: the generator could not be started, or answered nothing.
    """
    idle = ClientMonitor()
    anyio.run(_measure_idle_lag, idle, backend="asyncio", backend_options={"use_uvloop": has_uvloop()})
    lag = idle.compute_stats(())
    load_average = _read_load_average()
    flood = _fire_workload(FLOOD_WORKLOAD, GeneratorSettings(tokens=FLOOD_WORKLOAD.num_predict))
    paced = _fire_workload(
        PACED_WORKLOAD,
        GeneratorSettings(tokens=PACED_WORKLOAD.num_predict, gap_s=1 / PACED_TPS, first_s=_FIRST_TOKEN_S),
    )
    errors = sorted(_compute_ttft_error_s(sample) for sample in _list_measured(paced))
    return ClientMeasurement(
        cpus=_count_cpus(),
        uvloop=has_uvloop(),
        receive_stamps=has_receive_stamps(),
        timer_resolution_s=measure_timer_resolution_s(),
        idle_lag_p99_s=lag.loop_lag_p99_s,
        idle_lag_max_s=lag.loop_lag_max_s,
        flood_chunks_s=_compute_chunks_per_cpu_s(flood),
        chunks_s=_compute_chunks_per_cpu_s(paced),
        paced_streams=PACED_WORKLOAD.clients,
        paced_tps=PACED_TPS,
        ttft_error_p50_s=errors[len(errors) // 2],
        ttft_error_p99_s=errors[len(errors) * 99 // 100],
        open_files=_read_open_files_limit(),
        open_files_needed=connections + _SPARE_FILES,
        load_average=load_average,
    )


def has_uvloop() -> bool:
    """Whether loads run on uvloop here."""
    return importlib.util.find_spec("uvloop") is not None


def has_receive_stamps() -> bool:
    """Whether the kernel says when a packet arrived: tried on a connection to ourselves."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        reader = stack.enter_context(socket.create_connection(listener.getsockname(), timeout=2.0))
        writer = stack.enter_context(listener.accept()[0])
        if not clock.enable_receive_stamps(reader):
            return False
        return any(_is_stamped(writer, reader) for _ in range(_STAMP_TRIES))


def _is_stamped(writer: socket.socket, reader: socket.socket) -> bool:
    """Try once; the kernel takes a moment to begin stamping, and the first packets may come without."""
    writer.sendall(b"x")
    _, ancillary, _, _ = reader.recvmsg(1, clock.ANCILLARY_BYTES)
    if not ancillary:
        time.sleep(_STAMP_PAUSE_S)
    return bool(ancillary)


def measure_timer_resolution_s() -> float:
    """Return the smallest step of ``time.perf_counter_ns`` that could be seen."""
    steps = []
    for _ in range(200):
        before = after = time.perf_counter_ns()
        while after == before:
            after = time.perf_counter_ns()
        steps.append(after - before)
    return min(steps) / 1e9


async def _measure_idle_lag(watcher: ClientMonitor) -> None:
    watcher.begin()
    with anyio.move_on_after(_IDLE_S):
        await watcher.sample_lag()
    watcher.end()


def _fire_workload(workload: Workload, pace: GeneratorSettings) -> runner.LoadMeasurement:
    with start_generator(pace) as url:
        fired = runner.run_load(workload, partial(HttpBackend, [parse_address(url)]))
    failed = [sample for sample in fired.samples if not sample.ok]
    if failed or not fired.samples:
        what = f"{failed[0].outcome.value}: {failed[0].error}" if failed else "no answer"
        raise ServerError(f"this client could not read what a generator on this machine sent: {what}")
    return fired


def _list_measured(fired: runner.LoadMeasurement) -> Sequence[Sample]:
    return [sample for sample in fired.samples if sample.stage == "measured"]


def _compute_chunks_per_cpu_s(fired: runner.LoadMeasurement) -> float:
    """Chunks of the measured window over the CPU seconds that the load's thread took in it."""
    measured = _list_measured(fired)
    wall_s = (max(sample.done_ns for sample in measured) - min(sample.sent_ns for sample in measured)) / 1e9
    chunks = sum(len(sample.chunk_ns) for sample in measured)
    return chunks / max(1e-9, fired.watch.cpu_share * wall_s)


def _compute_ttft_error_s(sample: Sample) -> float:
    seen = (sample.first_token_ns or sample.done_ns) - sample.sent_ns
    return (seen - (sample.counters.prompt_eval_duration_ns or 0)) / 1e9


def _count_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_load_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none
        return None


def _read_open_files_limit() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if allowed == resource.RLIM_INFINITY else allowed
