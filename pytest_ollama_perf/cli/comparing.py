"""What ``compare`` does: pair the runs of A and B, judge them as one build, and say what was found."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from pytest_ollama_perf.cli.place import find_run
from pytest_ollama_perf.cli.screen import console, line, print_json, table, warn
from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.settings import parse_margin
from pytest_ollama_perf.store import open_store
from pytest_ollama_perf.verdict.epoch import Change, History, epoch_of, meaning_changes, run_changes, workload_changes
from pytest_ollama_perf.verdict.evidence import of_run
from pytest_ollama_perf.verdict.gate import MAX_RUNS
from pytest_ollama_perf.verdict.history import MetricVerdict, TestVerdict, judge_build, judge_test
from pytest_ollama_perf.verdict.run_value import policy
from pytest_ollama_perf.verdict.wording import count, label, percent, show_apart
from pytest_ollama_perf.verdict.words import Row, Word, worst
from pytest_ollama_perf.workload import identity

_STYLE = {Word.REGRESSED: "bold red", Word.INCOMPARABLE: "yellow", Word.UNSURE: "yellow", Word.FASTER: "green"}


@dataclass(frozen=True)
class Pair:
    """The runs of one load on both sides; ``verdict`` is missing where they may not be compared."""

    test: str
    before: tuple[Run, ...]
    after: tuple[Run, ...]
    changed: tuple[Change, ...] = ()
    apart: tuple[Change, ...] = ()
    verdict: TestVerdict | None = None

    @property
    def word(self) -> Word:
        return self.verdict.word if self.verdict else Word.INCOMPARABLE if self.apart else Word.NEW

    @property
    def reason(self) -> str:
        if self.verdict:
            return self.verdict.reason
        if self.apart:
            return f"may not be compared: {', '.join(map(str, self.apart))}"
        return "no run of this test in A"


@dataclass
class _Sides:
    """Pairs in the making, and what could not be read on the way."""

    pairs: list[Pair] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def run(options: argparse.Namespace) -> int:
    """Compare A and B; the status is for CI: 1 where a test regressed, 2 where something could not be compared."""
    margins = dict(parse_margin(text, "--margin") for text in options.margin)
    for name in (*options.metric, *margins):
        policy(name)
    sides = _sides(options)
    if not sides.pairs:
        warn(sides.damaged)
        raise ConfigError("nothing to compare: B has no run that can be read")
    pairs = _judged(sides.pairs, options.metric, margins)
    if options.json:
        print_json({"verdict": worst(tuple(pair.word for pair in pairs)), "tests": [_plain(pair) for pair in pairs]})
    else:
        for pair in pairs:
            _print(console(), pair)
    warn(sides.damaged)
    return _status(pairs, sides.damaged, {Word.REGRESSED, Word.UNSURE} if options.strict else {Word.REGRESSED})


def _status(pairs: Sequence[Pair], damaged: Sequence[str], failing: Set[Word]) -> int:
    if any(pair.word in failing for pair in pairs):
        return 1
    blind = all(pair.word is Word.NEW for pair in pairs)
    return 2 if damaged or blind or any(pair.word is Word.INCOMPARABLE for pair in pairs) else 0


def _sides(options: argparse.Namespace) -> _Sides:
    stores = [_is_store(options.before), _is_store(options.after)]
    if all(stores):
        return _of_stores(options.before, options.after)
    if any(stores):
        one, other = ("A", "B") if stores[0] else ("B", "A")
        raise ConfigError(f"{one} is a store and {other} is none: give two runs or two stores")
    store = open_store(options.store)
    before, after = find_run(store, options.before), find_run(store, options.after)
    store.close()
    return _Sides([_pair(after.test or before.test, (before,), (after,))])


def _is_store(text: str) -> bool:
    return "://" in text or Path(text).is_dir()


def _of_stores(before: str, after: str) -> _Sides:
    old, new = open_store(before), open_store(after)
    sides = _Sides()
    for test in new.tests():
        known, fresh = old.history(test, limit=None), new.history(test, limit=None)
        sides.damaged += [*known.damaged, *fresh.damaged]
        sides.pairs += _of_test(test, known, fresh)
    old.close()
    new.close()
    return sides


def _of_test(test: str, known: History, fresh: History) -> Iterator[Pair]:
    """Yield a pair for each load in ``fresh``: its newest session against the current epoch of ``known``."""
    for last in {identity(run.workload): run for run in fresh.runs}.values():
        load = identity(last.workload)
        session = [run for run in fresh.runs if run.session == last.session and identity(run.workload) == load]
        same = [run for run in known.runs if identity(run.workload) == load] or list(known.runs)
        baseline = (*epoch_of(known, same[-1]).runs, same[-1]) if same else ()
        yield _pair(test, baseline, tuple(session[-MAX_RUNS:]))


def _pair(test: str, before: tuple[Run, ...], after: tuple[Run, ...]) -> Pair:
    if not before:
        return Pair(test, before, after)
    old, new = before[-1], after[-1]
    apart = (*workload_changes(old.workload, new.workload), *meaning_changes(old.fingerprint, new.fingerprint))
    return Pair(test, before, after, changed=run_changes(old, new), apart=apart)


def _judged(pairs: Sequence[Pair], names: Sequence[str], margins: dict[str, float]) -> list[Pair]:
    """Return ``pairs`` with verdicts, those that may be compared judged as one build."""
    fit = [pair for pair in pairs if pair.before and not pair.apart]
    found = judge_build(
        [
            judge_test(
                map(of_run, pair.before), map(of_run, pair.after), names, margins=margins, max_runs=len(pair.after)
            )
            for pair in fit
        ]
    )
    verdicts = {id(pair): verdict for pair, verdict in zip(fit, found, strict=True)}
    return [
        Pair(pair.test, pair.before, pair.after, pair.changed, pair.apart, verdicts.get(id(pair))) for pair in pairs
    ]


def _print(out: Console, pair: Pair) -> None:
    out.print(line(f"{pair.word.value}: {pair.test or '(no test named)'}", _STYLE.get(pair.word, "")))
    if pair.verdict is None:
        out.print(line(f"  {pair.reason}"))
        return
    rows = table("  metric", "A", "B", "change", "95 % CI", "margin", "verdict")
    for metric in pair.verdict.metrics:
        rows.add_row(*_cells(metric))
    out.print(rows)
    sizes = f"{count(len(pair.before), 'run')} in A, {count(len(pair.after), 'run')} in B"
    out.print(line(f"  {sizes}; {pair.reason}", "dim"))
    if pair.changed:
        out.print(line(f"  changed: {', '.join(map(str, pair.changed))}"))


def _cells(metric: MetricVerdict) -> tuple[str, ...]:
    row: Row = metric.row
    if row.baseline is None or row.change is None:
        return (f"  {label(row.metric, row.stat)}", "-", "-", "-", "-", "-", metric.word.value)
    old, new = show_apart(row.metric, row.baseline, row.value)
    between = f"{percent(row.low or 0.0, signed=True)} .. {percent(row.high or 0.0, signed=True)}"
    return (
        f"  {label(row.metric, row.stat)}",
        old,
        new,
        percent(row.change, signed=True),
        between,
        percent(row.margin or 0.0),
        metric.word.value,
    )


def _plain(pair: Pair) -> dict[str, object]:
    return {
        "test": pair.test,
        "verdict": pair.word,
        "reason": pair.reason,
        "before": [run.id for run in pair.before],
        "after": [run.id for run in pair.after],
        "changed": [str(change) for change in pair.changed],
        "metrics": [metric.row for metric in pair.verdict.metrics] if pair.verdict else [],
    }
