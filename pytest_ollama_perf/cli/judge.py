"""``pytest-ollama-perf judge``: the gate's verdict for run records, recorded or simulated, without a server."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import msgspec

from pytest_ollama_perf.analysis.gate_parameters import GATE_PARAMETERS
from pytest_ollama_perf.analysis.regression import MetricVerdict, TestVerdict, judge_build, judge_test
from pytest_ollama_perf.analysis.run_value import (
    RunEvidence,
    build_evidence,
    get_policy,
    parse_minimal_record,
    sort_by_time,
)
from pytest_ollama_perf.cli.common import add_gate_options
from pytest_ollama_perf.config import parse_margin
from pytest_ollama_perf.core import ConfigError, OllamaPerfError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.verdict import VerdictStatus
from pytest_ollama_perf.store import record as stored_form

EPILOG = """\
A record is one JSON object, either a run as this package stores it or the minimal form
  {"test": "chat", "run": 7, "requests": [{"eval_tps": 84.1, "ttft_s": 0.18, "latency_s": 0.9}], "throughput_tps": 300}
where null, or a value that only some requests have, means a failed request. A folder holds such files (*.json, one
record or a list of them each). Runs count oldest first: by their time or, where every "run" is a number, by that,
otherwise in the given order; the newest 20 stored runs are the history.

unsure with fewer than three candidate runs means that another run is needed.

exit status: 0, 1 where a test regressed (not with --batch), 2 where something could not be read (the rest is judged)
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the description and the arguments of ``judge``."""
    parser.description = "Judge run records, recorded or simulated, without a server."
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--history", metavar="DIR", type=Path, help="folder (or file) of stored runs")
    parser.add_argument(
        "--candidates", metavar="DIR", type=Path, help="folder (or file) of one to three new runs per test"
    )
    parser.add_argument(
        "--batch",
        metavar="FILE",
        help='judge JSON lines {"id", "history": [records], "candidates": [records]}; - reads standard input',
    )
    add_gate_options(parser, than="history")
    parser.add_argument(
        "--max-runs",
        type=int,
        metavar="N",
        help="how many candidate runs there can be (default 3); with 1 the first decides",
    )
    parser.add_argument("--json", action="store_true", help="print JSON; --batch always does")
    parser.set_defaults(run=main)


_UNREADABLE_ERRORS = (
    OllamaPerfError,
    OSError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    msgspec.MsgspecError,
)


def main(options: argparse.Namespace) -> int:
    """Judge what the options name."""
    _validate_options(options)
    if options.batch is None:
        return _judge_folders(options)
    if options.batch == "-":
        return _judge_lines(sys.stdin, options)
    try:
        with open(options.batch, encoding="utf-8", errors="surrogateescape") as lines:
            return _judge_lines(lines, options)
    except OSError as error:
        raise ConfigError(f"--batch {options.batch}: {error.strerror or error}") from error


def _validate_options(options: argparse.Namespace) -> None:
    for name in options.metric:
        get_policy(name)
    options.margins = dict(parse_margin(text, "--margin") for text in options.margin)
    for name in options.margins:
        get_policy(name)
    options.max_runs = GATE_PARAMETERS.max_runs if options.max_runs is None else options.max_runs
    if options.max_runs < 1:
        raise ConfigError(f"--max-runs {options.max_runs}: expected 1 or more")
    folders = [options.history, options.candidates]
    if options.batch is not None and any(folders):
        raise ConfigError("--batch brings its own history and candidates: leave out --history and --candidates")
    if options.batch is None and not all(folders):
        raise ConfigError("give --history DIR and --candidates DIR, or --batch FILE")


def _judge_candidates(
    history: Iterable[RunEvidence], candidates: Sequence[RunEvidence], options: argparse.Namespace
) -> TestVerdict:
    tests = {run.test for run in candidates}
    if len(tests) > 1:
        raise ValueError(f"candidates of {len(tests)} tests, expected one")
    same = [run for run in history if run.test in tests or not run.test or "" in tests]
    return judge_test(same, candidates, options.metric, margins=options.margins, max_runs=options.max_runs)


def _judge_lines(lines: TextIO, options: argparse.Namespace) -> int:
    status = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            answer = _judge_line(line, options)
        except _UNREADABLE_ERRORS as error:
            print(f"line {number}: {sanitize(str(error))}", file=sys.stderr)
            status = 2
            answer = _encode_json(
                {"id": _read_case_id(line), "verdict": VerdictStatus.UNSURE.value, "error": sanitize(str(error))}
            )
        print(answer, flush=True)
    return status


def _read_case_id(line: str) -> object:
    """Return the id of a line that could not be judged: who joins answers to cases must miss none."""
    try:
        body = json.loads(line)
    except _UNREADABLE_ERRORS:
        return None
    found = body.get("id") if isinstance(body, dict) else None
    return found if isinstance(found, (str, int)) else None


def _judge_line(line: str, options: argparse.Namespace) -> str:
    body = json.loads(line)
    if not isinstance(body, dict):
        raise TypeError('expected an object {"id", "history", "candidates"}')
    history, candidates = (_read_records(body, name) for name in ("history", "candidates"))
    verdict = _judge_candidates(history, candidates, options)
    return _encode_json({"id": body.get("id"), **_build_verdict_json(verdict)})


def _read_records(body: dict[str, Any], name: str) -> list[RunEvidence]:
    records = body.get(name)
    if not isinstance(records, list):
        raise TypeError(f"{name}: expected a list of records")
    return [_parse_evidence(record, f"{name}[{position}]") for position, record in enumerate(records)]


def _parse_evidence(record: object, where: str) -> RunEvidence:
    """Return what a decoded record says, whichever of the three forms it has."""
    if not isinstance(record, dict):
        raise TypeError(f"{where}: expected an object, got {type(record).__name__}")
    try:
        if "check" in record:
            return build_evidence(stored_form.decode_run(msgspec.json.encode(record), where))
        if "samples" in record:
            return build_evidence(msgspec.convert(record, Run))
        return parse_minimal_record(record)
    except (TypeError, msgspec.ValidationError) as error:
        raise ValueError(f"{where}: {error}") from error


def _judge_folders(options: argparse.Namespace) -> int:
    problems: list[str] = []
    history = list(_read_folder(options.history, "--history", problems))
    if problems and not history:
        raise ConfigError(f"the history cannot be read, which is not the same as none: {problems[0]}")
    candidates = list(_read_folder(options.candidates, "--candidates", problems))
    if not candidates and not problems:
        raise ConfigError(f"--candidates {options.candidates}: no *.json file in it")
    tests = {run.test: [one for one in candidates if one.test == run.test] for run in candidates}
    found = judge_build([_judge_candidates(history, sort_by_time(runs), options) for runs in tests.values()])
    print(
        _encode_json([_build_verdict_json(test) for test in found])
        if options.json
        else "\n".join(_format_verdicts(found))
    )
    for problem in problems:
        print(problem, file=sys.stderr)
    return 2 if problems else 1 if any(test.status is VerdictStatus.REGRESSED for test in found) else 0


def _read_folder(place: Path, flag: str, problems: list[str]) -> Iterator[RunEvidence]:
    """Yield the runs of every file at ``place`` by name; what cannot be read is added to ``problems``."""
    if not place.exists():
        raise ConfigError(f"{flag} {place}: there is no such folder")
    aside = {"epochs", "regressed"} if flag == "--history" else {"epochs"}
    found = (file for file in place.rglob("*.json") if not _is_store_metadata(file, aside))
    files = sorted(found, key=_build_natural_key) if place.is_dir() else [place]
    for file in files:
        try:
            body = json.loads(file.read_bytes())
            records = body if isinstance(body, list) else [body]
            yield from [_parse_evidence(record, f"record {number}") for number, record in enumerate(records, start=1)]
        except _UNREADABLE_ERRORS as error:
            problems.append(f"{file}: {sanitize(str(error))}")


def _is_store_metadata(path: Path, aside: Collection[str]) -> bool:
    """Whether a file of a store is no saved run: the name of the test, an acceptance, or a regressed run."""
    folder = path.parent
    return path.name == "test.json" or (folder.name in aside and (folder.parent / "test.json").exists())


def _build_natural_key(path: Path) -> list[tuple[int, str]]:
    """Order ``run-9`` before ``run-10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", str(path))]


def _build_verdict_json(verdict: TestVerdict) -> dict[str, Any]:
    return {
        "test": verdict.test,
        "verdict": verdict.status.value,
        "reason": verdict.reason,
        "again": verdict.again,
        "metrics": {metric.policy.name: _build_metric_json(metric) for metric in verdict.metrics},
    }


def _build_metric_json(metric: MetricVerdict) -> dict[str, Any]:
    found = metric.judgement
    low, high = metric.interval
    return {
        "verdict": metric.status.value,
        "reason": metric.reason,
        "unit": metric.policy.metric.unit.value,
        "baseline": metric.baseline,
        "now": metric.now,
        "change": metric.change,
        "low": low,
        "high": high,
        "margin": metric.rule.margin,
        "p": found.p,
        "detectable": found.detectable,
        "runs": found.runs,
        "stored": len(found.baseline.kept) if found.baseline else 0,
        "dropped": len(found.baseline.dropped) if found.baseline else 0,
        "again": found.again,
        "more_runs": found.more_runs,
        "more_stored": found.more_stored,
        "notes": list(found.notes),
    }


def _encode_json(body: object) -> str:
    """Encode ``body``; numbers that do not exist or are infinite become ``null``."""
    return msgspec.json.encode(body).decode()


def _format_verdicts(tests: Sequence[TestVerdict]) -> Iterator[str]:
    for test in tests:
        yield f"{sanitize(test.test) or '(no test named)'}: {test.status.value}"
        for metric in test.metrics:
            yield f"  {metric.status.value:9}  {metric.reason}"
            yield from (f"  {'':9}  {note}" for note in metric.judgement.notes)
        if not test.metrics:
            yield f"  {test.reason}"
