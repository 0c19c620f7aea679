"""``pytest-ollama-perf init``: a contract file written from measured values."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_ollama_perf.analysis.thresholds import judge_contract
from pytest_ollama_perf.cli.common import CommandLineSource, add_load_options, add_server_options, read_load_options
from pytest_ollama_perf.config import resolve_settings
from pytest_ollama_perf.config.load_spec import build_load_spec
from pytest_ollama_perf.contracts import SUFFIX
from pytest_ollama_perf.contracts.generate import MeasuredRuns, generate_contract
from pytest_ollama_perf.contracts.parse import parse_contract
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.verdict import FAILING_STATUSES
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.harness import Harness
from pytest_ollama_perf.metrics import format_count, format_value
from pytest_ollama_perf.metrics.summary import summarise
from pytest_ollama_perf.report.document import write_report
from pytest_ollama_perf.report.facts import format_load_label
from pytest_ollama_perf.report.progress import LiveProgress

DESCRIPTION = """\
Measure a model at each concurrency, several times on a freshly loaded model, and
write a contract that pytest collects: limits and margins that this server keeps,
never tighter than the measured noise allows.
"""
EPILOG = """\
exit status: 0 written, 1 a run was no valid measurement and nothing was written,
2 an option is wrong, the file exists, or the server or model is missing
"""
DEFAULT_RUNS = 3

INIT_LOAD_OPTIONS = ("endpoint", "requests", "num_predict", "num_ctx", "prompt_words")
"""Marker arguments that are options here; they are written into the contract."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the description and the arguments of ``init``."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", metavar="NAME", help="the model (default: the only one the server has)")
    parser.add_argument(
        "--concurrency",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="number of clients; one load for each value",
    )
    parser.add_argument(
        "--runs", type=int, default=DEFAULT_RUNS, metavar="N", help="runs of each load (default: %(default)s)"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write it (default: MODEL.ollama.toml)")
    parser.add_argument("--force", action="store_true", help="overwrite the file where it exists")
    add_load_options(parser.add_argument_group("load", "marker arguments"), INIT_LOAD_OPTIONS)
    add_server_options(parser)
    parser.set_defaults(run=main)


class _InvalidRunError(Exception):
    """A run that says nothing of the server; the message says why."""


def main(options: argparse.Namespace) -> int:
    """Measure, write, and say what was written."""
    if options.runs < 1:
        raise ConfigError(f"--runs {options.runs}: expected 1 or more")
    if len(set(options.concurrency)) < len(options.concurrency):
        raise ConfigError(f"--concurrency {' '.join(map(str, options.concurrency))}: duplicate value")
    common = read_load_options(options, INIT_LOAD_OPTIONS)
    for clients in options.concurrency:
        build_load_spec({**common, "concurrency": clients})
    if options.output is not None:
        _reject_output_path(Path(options.output), options.force)
    settings = resolve_settings(CommandLineSource(options))
    harness = Harness(settings, root=Path.cwd())
    try:
        return _write_contract(harness, common, options)
    except _InvalidRunError as error:
        print(f"pytest-ollama-perf: {error}; nothing was written", file=sys.stderr)
        return 1
    finally:
        harness.close()


def _reject_output_path(path: Path, force: bool) -> None:
    """Refuse, before anything is measured, a place that will not do."""
    if not path.name.endswith(SUFFIX) or path.name == SUFFIX:
        raise ConfigError(f"-o {path}: pytest collects contracts by their name; give NAME{SUFFIX}")
    if path.exists() and not force:
        raise ConfigError(f"-o {path}: the file exists; overwrite it with --force, or give another name")


def _write_contract(harness: Harness, common: Mapping[str, Any], options: argparse.Namespace) -> int:
    first = harness.resolve_workload(
        build_load_spec({**common, "concurrency": 1}, default_model=options.model).workload
    )
    path = Path(options.output or re.sub(r"[^A-Za-z0-9]+", "-", first.model).strip("-") + SUFFIX)
    _reject_output_path(path, options.force)
    loads = [_measure_load(harness, first.model, common, clients, options.runs) for clients in options.concurrency]
    text = generate_contract(first.model, common, loads)
    clauses = sum(
        len(group.clauses) for group in parse_contract(text, str(path), settings=harness.settings, folder=path.parent)
    )
    write_report(path, text.encode(), option="-o")
    where = "".join(f" --ollama-url={shlex.quote(url)}" for url in options.ollama_url or ())
    print(
        f"{path}: {format_count(len(loads), 'load')}, {format_count(clauses, 'clause')}; check it: pytest {path}{where}"
    )
    return 0


def _measure_load(harness: Harness, model: str, common: Mapping[str, Any], clients: int, runs: int) -> MeasuredRuns:
    workload = build_load_spec({**common, "model": model, "concurrency": clients}).workload
    found = [_measure_run(harness, workload, f"run {number} of {runs}") for number in range(1, runs + 1)]
    return MeasuredRuns({"concurrency": clients}, tuple(found), tuple(summarise(each) for each in found))


def _measure_run(harness: Harness, workload: Workload, title: str) -> Run:
    place = ", ".join(format_load_label(workload))
    with LiveProgress(sys.stderr) as progress:
        fired = harness.measure(workload, "init", fresh=True, listener=progress)
    summary = summarise(fired)
    verdict = judge_contract(fired, summary, build_load_spec({}).limits)
    if verdict.status in FAILING_STATUSES:
        raise _InvalidRunError(f"{place}, {title}: {verdict.reason}")
    shown = (
        (name, summary.metrics[name].get(stat))
        for name, stat in (("tps", ""), ("ttft", "p50"), ("latency", "p50"))
        if name in summary.metrics
    )
    numbers = ", ".join(f"{name} {format_value(name, number)}" for name, number in shown)
    print(f"{place}, {title}: {numbers}", file=sys.stderr, flush=True)
    return fired
