"""What ``doctor`` does: measure the client, then the same load on one server again and again."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pytest_ollama_perf.bench import Bench
from pytest_ollama_perf.cli import checkup
from pytest_ollama_perf.cli.ceiling import measure_client
from pytest_ollama_perf.cli.checkup import Campaign, Checkup
from pytest_ollama_perf.cli.doctor import LEAST_SESSIONS, WORDS
from pytest_ollama_perf.cli.screen import print_json
from pytest_ollama_perf.cli.server import Given
from pytest_ollama_perf.errors import ConfigError, OllamaPerfError, Unreachable
from pytest_ollama_perf.marks import load_spec
from pytest_ollama_perf.report.progress import LiveProgress
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.settings import resolve
from pytest_ollama_perf.summary import summarise
from pytest_ollama_perf.verdict.evidence import of_run
from pytest_ollama_perf.verdict.run_value import policy, value
from pytest_ollama_perf.verdict.validity import problems
from pytest_ollama_perf.verdict.wording import count, seconds, show
from pytest_ollama_perf.verdict.words import Problem
from pytest_ollama_perf.workload import Workload

_OPEN_LOOP_CONNECTIONS = 256
_SHOWN = ("tps", "ttft")


def run(options: argparse.Namespace) -> int:
    """Examine client and server, and say what was found."""
    if options.sessions < LEAST_SESSIONS:
        raise ConfigError(f"--sessions {options.sessions}: expected {LEAST_SESSIONS} or more")
    settings = resolve(Given(options))
    workload = load_spec(_words(options), default_model=options.model).workload
    bench = Bench(settings, root=Path.cwd())
    try:
        return _examine(bench, workload, options)
    finally:
        bench.close()


def _examine(bench: Bench, workload: Workload, options: argparse.Namespace) -> int:
    workload, away = _reached(bench, workload)
    _say("measuring this machine's client")
    client = measure_client(connections=len(bench.settings.urls) * (workload.concurrency or _OPEN_LOOP_CONNECTIONS))
    if not options.json:
        checkup.print_client(client)
    campaign = None if away else _campaign(bench, workload, options.sessions)
    # Nobody named the default address: that nothing answers there is no finding.
    named = bool(options.ollama_url or os.environ.get("OLLAMA_HOST", "").strip())
    found = Checkup(client, campaign, away, named)
    if options.json:
        print_json(checkup.plain(found))
    else:
        checkup.print_server(found)
    if campaign and campaign.interrupted:
        return 130
    return 0 if found.healthy else 1


def _reached(bench: Bench, workload: Workload) -> tuple[Workload, str]:
    """Return the workload with its model, and why the server cannot be asked, empty when it can.

    Raises:
        ModelMissing: it can, and does not have the model.
        ConfigError: no model is named, and it has several.
    """
    try:
        for server in bench.servers:
            server.control.version()
        whole = bench.completed(workload)
        for server in bench.servers:
            server.control.installed(whole.model)
    except Unreachable as error:
        return workload, str(error)
    # each session gets prompts of its own
    return msgspec.structs.replace(whole, salt=""), ""


def _campaign(bench: Bench, workload: Workload, sessions: int) -> Campaign:
    """Run the sessions, as many as Ctrl-C and the server allow."""
    runs: list[Run] = []
    stopped, interrupted = "", False
    try:
        for number in range(1, sessions + 1):
            runs.append(_session(bench, workload, f"session {number} of {sessions}"))
    except KeyboardInterrupt:
        stopped, interrupted = f"stopped by Ctrl-C in session {len(runs) + 1} of {sessions}", True
    except OllamaPerfError as error:
        if not runs:
            raise
        stopped = f"session {len(runs) + 1} of {sessions} could not be run: {error}"
    names = ", ".join(server.name for server in bench.servers)
    return Campaign(names, workload, tuple(runs), _spoiled(runs), stopped, interrupted)


def _session(bench: Bench, workload: Workload, title: str) -> Run:
    with LiveProgress(sys.stderr) as progress:
        fired = bench.measure(workload, "doctor", fresh=True, onlooker=progress)
    evidence = of_run(fired)
    readings = [(name, evidence.reading(policy(name))) for name in _SHOWN]
    numbers = ", ".join(f"{name} {show(name, value(policy(name), reading))}" for name, reading in readings)
    loaded = f", loaded in {seconds(fired.load_time_s)}" if fired.load_time_s is not None else ""
    _say(f"{title}: {numbers}{loaded}")
    return fired


def _spoiled(runs: Sequence[Run]) -> dict[str, tuple[Problem, ...]]:
    """Return what spoils each run that cannot be trusted, by its id."""
    return {each.id: found for each in runs if (found := tuple(_spoils(each)))}


def _spoils(one: Run) -> list[Problem]:
    failed = [sample for sample in one.measured if not sample.ok]
    found = [problem for problem in problems(one, summarise(one)) if problem.spoils]
    if failed or not one.measured:
        what = f"{failed[0].outcome.value}: {failed[0].error}" if failed else "nothing was answered"
        text = f"{len(failed)} of {count(len(one.measured), 'request')} failed ({what})"
        found.append(Problem(name="failed requests", text=text, spoils=True))
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _words(options: argparse.Namespace) -> Mapping[str, Any]:
    given = {word: getattr(options, f"word_{word}") for word in WORDS}
    return {word: _read(word, text) for word, text in given.items() if text is not None}


def _read(word: str, text: str) -> object:
    """Read a value as the marker takes it: JSON where it is that, else text."""
    if word == "prompt":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
