"""``pytest-ollama-perf doctor``: what this machine can measure, and its noise with nothing changed."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio
import msgspec

from pytest_ollama_perf.analysis.client_checks import ClientMeasurement
from pytest_ollama_perf.analysis.run_value import build_evidence, get_policy, to_value
from pytest_ollama_perf.analysis.validity import find_problems
from pytest_ollama_perf.cli import doctor_report
from pytest_ollama_perf.cli.common import (
    CommandLineSource,
    add_load_options,
    add_server_options,
    print_json,
    read_load_options,
)
from pytest_ollama_perf.cli.doctor_report import Campaign, DoctorReport
from pytest_ollama_perf.client import polling
from pytest_ollama_perf.client.address import parse_address
from pytest_ollama_perf.client.backend import HttpBackend
from pytest_ollama_perf.config import resolve_settings
from pytest_ollama_perf.config.load_spec import build_load_spec
from pytest_ollama_perf.core import ConfigError, OllamaPerfError, ServerError, ServerUnreachableError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.sample import Sample
from pytest_ollama_perf.core.verdict import Problem, ProblemCode
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.harness import Harness
from pytest_ollama_perf.loadgen import runner
from pytest_ollama_perf.loadgen.runner import ClientMonitor
from pytest_ollama_perf.metrics import format_count, format_seconds, format_value
from pytest_ollama_perf.metrics.summary import summarise
from pytest_ollama_perf.report.progress import LiveProgress
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
        if not polling.enable_receive_stamps(reader):
            return False
        return any(_is_stamped(writer, reader) for _ in range(_STAMP_TRIES))


def _is_stamped(writer: socket.socket, reader: socket.socket) -> bool:
    """Try once; the kernel takes a moment to begin stamping, and the first packets may come without."""
    writer.sendall(b"x")
    _, ancillary, _, _ = reader.recvmsg(1, polling.ANCILLARY_BYTES)
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


MIN_SESSIONS = 3
DESCRIPTION = """\
Report what this machine can measure and how much its numbers differ with nothing
changed: an A/A campaign, what the gate can detect there, and margins worth setting.
"""
EPILOG = """\
First the client: how many chunks of text a second it can follow on one core, against a generator on this machine, and
how far off its clock is. Then the server: the same load again and again, each session on a freshly loaded model; what
differs between the sessions is noise, and no gate can detect smaller changes.

Ctrl-C ends it early and prints what is known by then.

exit status: 0 healthy, 1 something is wrong (the client cannot keep up, the model is partly on the CPU, a session
failed, too noisy to gate), 2 an option is wrong or the model is missing
"""

DOCTOR_LOAD_OPTIONS = (
    *("concurrency", "requests", "rate", "duration", "warmup", "endpoint", "prompt", "prompt_words"),
    *("num_predict", "num_ctx", "think", "options", "timeout"),
)
"""Marker arguments that are options here."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the description and the arguments of ``doctor``."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", metavar="NAME", help="the model (default: the only one the server has)")
    parser.add_argument(
        "--sessions",
        type=int,
        default=6,
        metavar="N",
        help=f"sessions, {MIN_SESSIONS} or more (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_load_options(parser.add_argument_group("load of a session", "marker arguments"), DOCTOR_LOAD_OPTIONS)
    add_server_options(parser)
    parser.set_defaults(run=main)


_OPEN_LOOP_CONNECTIONS = 256
_SHOWN_METRICS = ("tps", "ttft")


def main(options: argparse.Namespace) -> int:
    """Examine client and server, and say what was found."""
    if options.sessions < MIN_SESSIONS:
        raise ConfigError(f"--sessions {options.sessions}: expected {MIN_SESSIONS} or more")
    settings = resolve_settings(CommandLineSource(options))
    workload = build_load_spec(read_load_options(options, DOCTOR_LOAD_OPTIONS), default_model=options.model).workload
    harness = Harness(settings, root=Path.cwd())
    try:
        return _run_checks(harness, workload, options)
    finally:
        harness.close()


def _run_checks(harness: Harness, workload: Workload, options: argparse.Namespace) -> int:
    workload, away = _resolve_workload(harness, workload)
    _print_progress("measuring this machine's client")
    client = measure_client(connections=len(harness.settings.urls) * (workload.concurrency or _OPEN_LOOP_CONNECTIONS))
    if not options.json:
        doctor_report.print_client(client)
    campaign = None if away else _run_campaign(harness, workload, options.sessions)
    # The default address was not named by the user: no answer there is no finding.
    named = bool(options.ollama_url or os.environ.get("OLLAMA_HOST", "").strip())
    found = DoctorReport(client, campaign, away, named)
    if options.json:
        print_json(doctor_report.to_json(found))
    else:
        doctor_report.print_server_report(found)
    if campaign and campaign.interrupted:
        return 130
    return 0 if found.is_healthy else 1


def _resolve_workload(harness: Harness, workload: Workload) -> tuple[Workload, str]:
    """Return the workload with its model, and why the server cannot be asked, empty when it can.

    Raises:
        ModelMissing: it can, and does not have the model.
        ConfigError: no model is named, and it has several.
    """
    try:
        for server in harness.servers:
            server.control.get_version()
        whole = harness.resolve_workload(workload)
        for server in harness.servers:
            server.control.get_installed(whole.model)
    except ServerUnreachableError as error:
        return workload, str(error)
    # each session has different prompts
    return msgspec.structs.replace(whole, salt=""), ""


def _run_campaign(harness: Harness, workload: Workload, sessions: int) -> Campaign:
    """Run the sessions, as many as Ctrl-C and the server allow."""
    runs: list[Run] = []
    stopped, interrupted = "", False
    try:
        for number in range(1, sessions + 1):
            runs.append(_run_session(harness, workload, f"session {number} of {sessions}"))
    except KeyboardInterrupt:
        stopped, interrupted = f"stopped by Ctrl-C in session {len(runs) + 1} of {sessions}", True
    except OllamaPerfError as error:
        if not runs:
            raise
        stopped = f"session {len(runs) + 1} of {sessions} could not be run: {error}"
    names = ", ".join(server.name for server in harness.servers)
    return Campaign(names, workload, tuple(runs), _find_invalid_runs(runs), stopped, interrupted)


def _run_session(harness: Harness, workload: Workload, title: str) -> Run:
    with LiveProgress(sys.stderr) as progress:
        fired = harness.measure(workload, "doctor", fresh=True, listener=progress)
    evidence = build_evidence(fired)
    readings = [(name, evidence.compute_cost(get_policy(name))) for name in _SHOWN_METRICS]
    numbers = ", ".join(
        f"{name} {format_value(name, to_value(get_policy(name), reading))}" for name, reading in readings
    )
    loaded = f", loaded in {format_seconds(fired.load_time_s)}" if fired.load_time_s is not None else ""
    _print_progress(f"{title}: {numbers}{loaded}")
    return fired


def _find_invalid_runs(runs: Sequence[Run]) -> dict[str, tuple[Problem, ...]]:
    """Return what invalidates each run that cannot be trusted, by its id."""
    return {each.id: found for each in runs if (found := tuple(_list_run_problems(each)))}


def _list_run_problems(one: Run) -> list[Problem]:
    failed = [sample for sample in one.measured if not sample.ok]
    found = [problem for problem in find_problems(one, summarise(one)) if problem.invalidates]
    if failed or not one.measured:
        what = f"{failed[0].outcome.value}: {failed[0].error}" if failed else "nothing was answered"
        text = f"{len(failed)} of {format_count(len(one.measured), 'request')} failed ({what})"
        found.append(Problem(code=ProblemCode.FAILED_REQUESTS, text=text, invalidates=True))
    return found


def _print_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
