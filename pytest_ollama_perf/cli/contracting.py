"""What ``init`` does: measure each load several times, and write the contract that those runs bear out."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_ollama_perf.bench import Bench
from pytest_ollama_perf.cli.init import WORDS
from pytest_ollama_perf.cli.server import Given
from pytest_ollama_perf.contract import SUFFIX
from pytest_ollama_perf.contract.reading import read
from pytest_ollama_perf.contract.written import Measured, contract_text
from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.marks import load_spec
from pytest_ollama_perf.report.facts import pace
from pytest_ollama_perf.report.json_report import write
from pytest_ollama_perf.report.progress import LiveProgress
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.settings import resolve
from pytest_ollama_perf.summary import summarise
from pytest_ollama_perf.verdict.contract import judge_contract
from pytest_ollama_perf.verdict.wording import count, show
from pytest_ollama_perf.verdict.words import FAILING
from pytest_ollama_perf.workload import Workload


class _Spoiled(Exception):
    """A run that says nothing of the server; the message says why."""


def run(options: argparse.Namespace) -> int:
    """Measure, write, and say what was written."""
    if options.runs < 1:
        raise ConfigError(f"--runs {options.runs}: expected 1 or more")
    if len(set(options.concurrency)) < len(options.concurrency):
        raise ConfigError(f"--concurrency {' '.join(map(str, options.concurrency))}: a number stands twice")
    common = {word: given for word in WORDS if (given := getattr(options, f"word_{word}")) is not None}
    for clients in options.concurrency:
        load_spec({**common, "concurrency": clients})
    if options.output is not None:
        _refuse(Path(options.output), options.force)
    settings = resolve(Given(options))
    bench = Bench(settings, root=Path.cwd())
    try:
        return _write(bench, common, options)
    except _Spoiled as error:
        print(f"pytest-ollama-perf: {error}; nothing was written", file=sys.stderr)
        return 1
    finally:
        bench.close()


def _refuse(path: Path, force: bool) -> None:
    """Refuse, before anything is measured, a place that will not do."""
    if not path.name.endswith(SUFFIX) or path.name == SUFFIX:
        raise ConfigError(f"-o {path}: pytest collects contracts by their name; give NAME{SUFFIX}")
    if path.exists() and not force:
        raise ConfigError(f"-o {path}: the file exists; overwrite it with --force, or give another name")


def _write(bench: Bench, common: Mapping[str, Any], options: argparse.Namespace) -> int:
    first = bench.completed(load_spec({**common, "concurrency": 1}, default_model=options.model).workload)
    path = Path(options.output or re.sub(r"[^A-Za-z0-9]+", "-", first.model).strip("-") + SUFFIX)
    _refuse(path, options.force)
    loads = [_measured(bench, first.model, common, clients, options.runs) for clients in options.concurrency]
    text = contract_text(first.model, common, loads)
    clauses = sum(len(group.clauses) for group in read(text, str(path), settings=bench.settings, folder=path.parent))
    write(path, text.encode(), option="-o")
    where = "".join(f" --ollama-url={shlex.quote(url)}" for url in options.ollama_url or ())
    print(f"{path}: {count(len(loads), 'load')}, {count(clauses, 'clause')}; check it: pytest {path}{where}")
    return 0


def _measured(bench: Bench, model: str, common: Mapping[str, Any], clients: int, runs: int) -> Measured:
    workload = load_spec({**common, "model": model, "concurrency": clients}).workload
    found = [_run(bench, workload, f"run {number} of {runs}") for number in range(1, runs + 1)]
    return Measured({"concurrency": clients}, tuple(found), tuple(summarise(each) for each in found))


def _run(bench: Bench, workload: Workload, title: str) -> Run:
    place = ", ".join(pace(workload))
    with LiveProgress(sys.stderr) as progress:
        fired = bench.measure(workload, "init", fresh=True, onlooker=progress)
    summary = summarise(fired)
    verdict = judge_contract(fired, summary, load_spec({}).limits)
    if verdict.word in FAILING:
        raise _Spoiled(f"{place}, {title}: {verdict.reason}")
    shown = (
        (name, summary.metrics[name].get(stat))
        for name, stat in (("tps", ""), ("ttft", "p50"), ("latency", "p50"))
        if name in summary.metrics
    )
    numbers = ", ".join(f"{name} {show(name, number)}" for name, number in shown)
    print(f"{place}, {title}: {numbers}", file=sys.stderr, flush=True)
    return fired
