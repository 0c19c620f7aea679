"""``pytest-ollama-perf doctor``: what this machine can measure, and its noise with nothing changed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pytest_ollama_perf.analysis.run_value import build_evidence, get_policy, to_value
from pytest_ollama_perf.analysis.validity import find_problems
from pytest_ollama_perf.cli import doctor_report
from pytest_ollama_perf.cli.client_ceiling import measure_client
from pytest_ollama_perf.cli.common import (
    CommandLineSource,
    add_load_options,
    add_server_options,
    print_json,
    read_load_options,
)
from pytest_ollama_perf.cli.doctor_report import Campaign, DoctorReport
from pytest_ollama_perf.config.load_spec import build_load_spec
from pytest_ollama_perf.config.settings import resolve_settings
from pytest_ollama_perf.core.errors import ConfigError, OllamaPerfError, ServerUnreachableError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.verdict import Problem, ProblemCode
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.harness.harness import Harness
from pytest_ollama_perf.metrics.format import format_count, format_seconds, format_value
from pytest_ollama_perf.metrics.summary import summarise
from pytest_ollama_perf.report.progress import LiveProgress

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
    bench = Harness(settings, root=Path.cwd())
    try:
        return _run_checks(bench, workload, options)
    finally:
        bench.close()


def _run_checks(bench: Harness, workload: Workload, options: argparse.Namespace) -> int:
    workload, away = _resolve_workload(bench, workload)
    _print_progress("measuring this machine's client")
    client = measure_client(connections=len(bench.settings.urls) * (workload.concurrency or _OPEN_LOOP_CONNECTIONS))
    if not options.json:
        doctor_report.print_client(client)
    campaign = None if away else _run_campaign(bench, workload, options.sessions)
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


def _resolve_workload(bench: Harness, workload: Workload) -> tuple[Workload, str]:
    """Return the workload with its model, and why the server cannot be asked, empty when it can.

    Raises:
        ModelMissing: it can, and does not have the model.
        ConfigError: no model is named, and it has several.
    """
    try:
        for server in bench.servers:
            server.control.get_version()
        whole = bench.resolve_workload(workload)
        for server in bench.servers:
            server.control.get_installed(whole.model)
    except ServerUnreachableError as error:
        return workload, str(error)
    # each session has different prompts
    return msgspec.structs.replace(whole, salt=""), ""


def _run_campaign(bench: Harness, workload: Workload, sessions: int) -> Campaign:
    """Run the sessions, as many as Ctrl-C and the server allow."""
    runs: list[Run] = []
    stopped, interrupted = "", False
    try:
        for number in range(1, sessions + 1):
            runs.append(_run_session(bench, workload, f"session {number} of {sessions}"))
    except KeyboardInterrupt:
        stopped, interrupted = f"stopped by Ctrl-C in session {len(runs) + 1} of {sessions}", True
    except OllamaPerfError as error:
        if not runs:
            raise
        stopped = f"session {len(runs) + 1} of {sessions} could not be run: {error}"
    names = ", ".join(server.name for server in bench.servers)
    return Campaign(names, workload, tuple(runs), _find_invalid_runs(runs), stopped, interrupted)


def _run_session(bench: Harness, workload: Workload, title: str) -> Run:
    with LiveProgress(sys.stderr) as progress:
        fired = bench.measure(workload, "doctor", fresh=True, listener=progress)
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
