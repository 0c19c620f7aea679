"""``pytest-ollama-perf compare``: two runs, or two stores, without pytest."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from pytest_ollama_perf.analysis.epochs import (
    Change,
    StoredRuns,
    compare_counter_meaning,
    compare_runs,
    compare_workloads,
    select_baseline,
)
from pytest_ollama_perf.analysis.gate_parameters import GATE_PARAMETERS
from pytest_ollama_perf.analysis.regression import MetricVerdict, TestVerdict, judge_build, judge_test
from pytest_ollama_perf.analysis.run_value import build_evidence, get_policy
from pytest_ollama_perf.cli.common import (
    add_gate_options,
    add_store_options,
    build_table,
    build_text,
    find_run,
    open_console,
    print_json,
    warn,
)
from pytest_ollama_perf.config import parse_margin
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.verdict import VerdictRow, VerdictStatus, get_worst_status
from pytest_ollama_perf.core.workload import compute_identity
from pytest_ollama_perf.metrics import format_count, format_distinct, format_label, format_percent
from pytest_ollama_perf.store import open_store

EPILOG = """\
A and B are two runs (ids, beginnings of ids, or files) or two stores (folders or database URLs). Of stores, the newest
session of every test in B (up to three runs) is judged against the current epoch of that test in A.
Model, GPU and settings may differ: what changed is named. Another load, or counters that mean something else, may not.

exit status: 0, 1 where a test regressed (with --strict also where one is unsure), 2 where something could not be
read or compared
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the description and the arguments of ``compare``."""
    parser.description = "Judge B against A: two runs, or two stores."
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("before", metavar="A", help="the baseline")
    parser.add_argument("after", metavar="B", help="what is judged")
    add_gate_options(parser, than="A")
    parser.add_argument("--strict", action="store_true", help="also exit with 1 if the result is inconclusive (unsure)")
    add_store_options(parser)
    parser.set_defaults(run=main)


_STYLES = {
    VerdictStatus.REGRESSED: "bold red",
    VerdictStatus.INCOMPARABLE: "yellow",
    VerdictStatus.UNSURE: "yellow",
    VerdictStatus.FASTER: "green",
}


@dataclass(frozen=True)
class RunPair:
    """The runs of one load on both sides; ``verdict`` is missing where they may not be compared."""

    test: str
    before: tuple[Run, ...]
    after: tuple[Run, ...]
    changed: tuple[Change, ...] = ()
    separating: tuple[Change, ...] = ()
    verdict: TestVerdict | None = None

    @property
    def status(self) -> VerdictStatus:
        """The verdict on the pair; new or incomparable without one."""
        return (
            self.verdict.status
            if self.verdict
            else VerdictStatus.INCOMPARABLE
            if self.separating
            else VerdictStatus.NEW
        )

    @property
    def reason(self) -> str:
        """The reason for the status, on one line."""
        if self.verdict:
            return self.verdict.reason
        if self.separating:
            return f"may not be compared: {', '.join(map(str, self.separating))}"
        return "no run of this test in A"


@dataclass
class _PairedRuns:
    """Pairs in the making, and what could not be read on the way."""

    pairs: list[RunPair] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def main(options: argparse.Namespace) -> int:
    """Compare A and B; the status is for CI: 1 where a test regressed, 2 where something could not be compared."""
    margins = dict(parse_margin(text, "--margin") for text in options.margin)
    for name in (*options.metric, *margins):
        get_policy(name)
    sides = _collect_pairs(options)
    if not sides.pairs:
        warn(sides.damaged)
        raise ConfigError("nothing to compare: B has no run that can be read")
    pairs = _judge_pairs(sides.pairs, options.metric, margins)
    if options.json:
        print_json(
            {
                "verdict": get_worst_status(tuple(pair.status for pair in pairs)),
                "tests": [_to_json(pair) for pair in pairs],
            }
        )
    else:
        for pair in pairs:
            _print_pair(open_console(), pair)
    warn(sides.damaged)
    return _compute_exit_status(
        pairs,
        sides.damaged,
        {VerdictStatus.REGRESSED, VerdictStatus.UNSURE} if options.strict else {VerdictStatus.REGRESSED},
    )


def _compute_exit_status(pairs: Sequence[RunPair], damaged: Sequence[str], failing: Set[VerdictStatus]) -> int:
    if any(pair.status in failing for pair in pairs):
        return 1
    blind = all(pair.status is VerdictStatus.NEW for pair in pairs)
    return 2 if damaged or blind or any(pair.status is VerdictStatus.INCOMPARABLE for pair in pairs) else 0


def _collect_pairs(options: argparse.Namespace) -> _PairedRuns:
    stores = [_is_store(options.before), _is_store(options.after)]
    if all(stores):
        return _pair_stores(options.before, options.after)
    if any(stores):
        one, other = ("A", "B") if stores[0] else ("B", "A")
        raise ConfigError(f"{one} is a store and {other} is a run: give two runs or two stores")
    store = open_store(options.store)
    before, after = find_run(store, options.before), find_run(store, options.after)
    store.close()
    return _PairedRuns([_build_pair(after.test or before.test, (before,), (after,))])


def _is_store(text: str) -> bool:
    return "://" in text or Path(text).is_dir()


def _pair_stores(before: str, after: str) -> _PairedRuns:
    old, new = open_store(before), open_store(after)
    sides = _PairedRuns()
    for test in new.list_tests():
        known, fresh = old.read_history(test, limit=None), new.read_history(test, limit=None)
        sides.damaged += [*known.damaged, *fresh.damaged]
        sides.pairs += _pair_test_runs(test, known, fresh)
    old.close()
    new.close()
    return sides


def _pair_test_runs(test: str, known: StoredRuns, fresh: StoredRuns) -> Iterator[RunPair]:
    """Yield a pair for each load in ``fresh``: its newest session against the current epoch of ``known``."""
    for last in {compute_identity(run.workload): run for run in fresh.runs}.values():
        load = compute_identity(last.workload)
        session = [run for run in fresh.runs if run.session == last.session and compute_identity(run.workload) == load]
        same = [run for run in known.runs if compute_identity(run.workload) == load] or list(known.runs)
        baseline = (*select_baseline(known, same[-1]).runs, same[-1]) if same else ()
        yield _build_pair(test, baseline, tuple(session[-GATE_PARAMETERS.max_runs :]))


def _build_pair(test: str, before: tuple[Run, ...], after: tuple[Run, ...]) -> RunPair:
    if not before:
        return RunPair(test, before, after)
    old, new = before[-1], after[-1]
    apart = (*compare_workloads(old.workload, new.workload), *compare_counter_meaning(old.fingerprint, new.fingerprint))
    return RunPair(test, before, after, changed=compare_runs(old, new), separating=apart)


def _judge_pairs(pairs: Sequence[RunPair], names: Sequence[str], margins: dict[str, float]) -> list[RunPair]:
    """Return ``pairs`` with verdicts, those that may be compared judged as one build."""
    fit = [pair for pair in pairs if pair.before and not pair.separating]
    found = judge_build(
        [
            judge_test(
                map(build_evidence, pair.before),
                map(build_evidence, pair.after),
                names,
                margins=margins,
                max_runs=len(pair.after),
            )
            for pair in fit
        ]
    )
    verdicts = {id(pair): verdict for pair, verdict in zip(fit, found, strict=True)}
    return [
        RunPair(pair.test, pair.before, pair.after, pair.changed, pair.separating, verdicts.get(id(pair)))
        for pair in pairs
    ]


def _print_pair(out: Console, pair: RunPair) -> None:
    out.print(build_text(f"{pair.status.value}: {pair.test or '(no test named)'}", _STYLES.get(pair.status, "")))
    if pair.verdict is None:
        out.print(build_text(f"  {pair.reason}"))
        return
    rows = build_table("  metric", "A", "B", "change", "95 % CI", "margin", "verdict")
    for metric in pair.verdict.metrics:
        rows.add_row(*_format_cells(metric))
    out.print(rows)
    sizes = f"{format_count(len(pair.before), 'run')} in A, {format_count(len(pair.after), 'run')} in B"
    out.print(build_text(f"  {sizes}; {pair.reason}", "dim"))
    if pair.changed:
        out.print(build_text(f"  changed: {', '.join(map(str, pair.changed))}"))


def _format_cells(metric: MetricVerdict) -> tuple[str, ...]:
    row: VerdictRow = metric.row
    if row.baseline is None or row.change is None:
        return (f"  {format_label(row.metric, row.stat)}", "-", "-", "-", "-", "-", metric.status.value)
    old, new = format_distinct(row.metric, row.baseline, row.value)
    between = f"{format_percent(row.low or 0.0, signed=True)} .. {format_percent(row.high or 0.0, signed=True)}"
    return (
        f"  {format_label(row.metric, row.stat)}",
        old,
        new,
        format_percent(row.change, signed=True),
        between,
        format_percent(row.margin or 0.0),
        metric.status.value,
    )


def _to_json(pair: RunPair) -> dict[str, object]:
    return {
        "test": pair.test,
        "verdict": pair.status,
        "reason": pair.reason,
        "before": [run.id for run in pair.before],
        "after": [run.id for run in pair.after],
        "changed": [str(change) for change in pair.changed],
        "metrics": [metric.row for metric in pair.verdict.metrics] if pair.verdict else [],
    }
