"""Reading run records of every form, judging them, and saying what was found: what ``judge`` does when it runs."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import msgspec

from pytest_ollama_perf.errors import ConfigError, OllamaPerfError
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.settings import parse_margin
from pytest_ollama_perf.store import record as stored_form
from pytest_ollama_perf.text import inert
from pytest_ollama_perf.verdict.evidence import Evidence, in_order, of_minimal, of_run
from pytest_ollama_perf.verdict.gate import MAX_RUNS
from pytest_ollama_perf.verdict.history import MetricVerdict, TestVerdict, judge_build, judge_test
from pytest_ollama_perf.verdict.run_value import policy
from pytest_ollama_perf.verdict.words import Word

_UNREADABLE = (OllamaPerfError, OSError, OverflowError, RecursionError, TypeError, ValueError, msgspec.MsgspecError)


def run(options: argparse.Namespace) -> int:
    """Judge what the options name."""
    _check(options)
    if options.batch is None:
        return _judge_folders(options)
    if options.batch == "-":
        return _judge_lines(sys.stdin, options)
    try:
        with open(options.batch, encoding="utf-8", errors="surrogateescape") as lines:
            return _judge_lines(lines, options)
    except OSError as error:
        raise ConfigError(f"--batch {options.batch}: {error.strerror or error}") from error


def _check(options: argparse.Namespace) -> None:
    for name in options.metric:
        policy(name)
    options.margins = dict(parse_margin(text, "--margin") for text in options.margin)
    for name in options.margins:
        policy(name)
    options.max_runs = MAX_RUNS if options.max_runs is None else options.max_runs
    if options.max_runs < 1:
        raise ConfigError(f"--max-runs {options.max_runs}: expected 1 or more")
    folders = [options.history, options.candidates]
    if options.batch is not None and any(folders):
        raise ConfigError("--batch brings its own history and candidates: leave out --history and --candidates")
    if options.batch is None and not all(folders):
        raise ConfigError("give --history DIR and --candidates DIR, or --batch FILE")


def _judge(history: Iterable[Evidence], candidates: Sequence[Evidence], options: argparse.Namespace) -> TestVerdict:
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
        except _UNREADABLE as error:
            print(f"line {number}: {inert(str(error))}", file=sys.stderr)
            status = 2
            answer = _json({"id": _id_of(line), "verdict": Word.UNSURE.value, "error": inert(str(error))})
        print(answer, flush=True)
    return status


def _id_of(line: str) -> object:
    """Return the id of a line that could not be judged: who joins answers to cases must miss none."""
    try:
        body = json.loads(line)
    except _UNREADABLE:
        return None
    found = body.get("id") if isinstance(body, dict) else None
    return found if isinstance(found, (str, int)) else None


def _judge_line(line: str, options: argparse.Namespace) -> str:
    body = json.loads(line)
    if not isinstance(body, dict):
        raise TypeError('expected an object {"id", "history", "candidates"}')
    history, candidates = (_records(body, name) for name in ("history", "candidates"))
    verdict = _judge(history, candidates, options)
    return _json({"id": body.get("id"), **_plain(verdict)})


def _records(body: dict[str, Any], name: str) -> list[Evidence]:
    records = body.get(name)
    if not isinstance(records, list):
        raise TypeError(f"{name}: expected a list of records")
    return [_evidence(record, f"{name}[{position}]") for position, record in enumerate(records)]


def _evidence(record: object, where: str) -> Evidence:
    """Return what a decoded record says, whichever of the three forms it has."""
    if not isinstance(record, dict):
        raise TypeError(f"{where}: expected an object, got {type(record).__name__}")
    try:
        if "check" in record:
            return of_run(stored_form.decode(msgspec.json.encode(record), where))
        if "samples" in record:
            return of_run(msgspec.convert(record, Run))
        return of_minimal(record)
    except (TypeError, msgspec.ValidationError) as error:
        raise ValueError(f"{where}: {error}") from error


def _judge_folders(options: argparse.Namespace) -> int:
    problems: list[str] = []
    history = list(_read(options.history, "--history", problems))
    if problems and not history:
        raise ConfigError(f"the history cannot be read, which is not the same as none: {problems[0]}")
    candidates = list(_read(options.candidates, "--candidates", problems))
    if not candidates and not problems:
        raise ConfigError(f"--candidates {options.candidates}: no *.json file in it")
    tests = {run.test: [one for one in candidates if one.test == run.test] for run in candidates}
    found = judge_build([_judge(history, in_order(runs), options) for runs in tests.values()])
    print(_json([_plain(test) for test in found]) if options.json else "\n".join(_text(found)))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 2 if problems else 1 if any(test.word is Word.REGRESSED for test in found) else 0


def _read(place: Path, flag: str, problems: list[str]) -> Iterator[Evidence]:
    """Yield the runs of every file at ``place`` by name; what cannot be read is added to ``problems``."""
    if not place.exists():
        raise ConfigError(f"{flag} {place}: there is no such folder")
    aside = {"epochs", "regressed"} if flag == "--history" else {"epochs"}
    found = (file for file in place.rglob("*.json") if not _beside_runs(file, aside))
    files = sorted(found, key=_natural) if place.is_dir() else [place]
    for file in files:
        try:
            body = json.loads(file.read_bytes())
            records = body if isinstance(body, list) else [body]
            yield from [_evidence(record, f"record {number}") for number, record in enumerate(records, start=1)]
        except _UNREADABLE as error:
            problems.append(f"{file}: {inert(str(error))}")


def _beside_runs(path: Path, aside: Collection[str]) -> bool:
    """Tell what a store keeps beside the runs of a test: its name, acceptances, runs that nobody accepted."""
    folder = path.parent
    return path.name == "test.json" or (folder.name in aside and (folder.parent / "test.json").exists())


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order ``run-9`` before ``run-10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", str(path))]


def _plain(verdict: TestVerdict) -> dict[str, Any]:
    return {
        "test": verdict.test,
        "verdict": verdict.word.value,
        "reason": verdict.reason,
        "again": verdict.again,
        "metrics": {metric.policy.name: _plain_metric(metric) for metric in verdict.metrics},
    }


def _plain_metric(metric: MetricVerdict) -> dict[str, Any]:
    found = metric.judgement
    low, high = metric.interval
    return {
        "verdict": metric.word.value,
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


def _json(body: object) -> str:
    """Encode ``body``; numbers that do not exist or are infinite become ``null``."""
    return msgspec.json.encode(body).decode()


def _text(tests: Sequence[TestVerdict]) -> Iterator[str]:
    for test in tests:
        yield f"{inert(test.test) or '(no test named)'}: {test.word.value}"
        for metric in test.metrics:
            yield f"  {metric.word.value:9}  {metric.reason}"
            yield from (f"  {'':9}  {note}" for note in metric.judgement.notes)
        if not test.metrics:
            yield f"  {test.reason}"
