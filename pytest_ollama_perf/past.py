"""A build and its past: the stored runs of a test, the verdict of new runs against them, and what is kept of those."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone

import msgspec

from pytest_ollama_perf.errors import StoreError
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.settings import DEFAULT_STORE, Settings
from pytest_ollama_perf.store import LIMIT, Store, open_store
from pytest_ollama_perf.verdict.chronicle import Chronicle, chronicle
from pytest_ollama_perf.verdict.epoch import Baseline, History, Kind, epoch_of
from pytest_ollama_perf.verdict.evidence import of_run
from pytest_ollama_perf.verdict.family import Family
from pytest_ollama_perf.verdict.gate import Rule
from pytest_ollama_perf.verdict.history import TestVerdict, judge_test
from pytest_ollama_perf.verdict.phases import explain, moves, phase_medians
from pytest_ollama_perf.verdict.run_value import GATING, POLICIES, Policy
from pytest_ollama_perf.verdict.trend import Point, trend
from pytest_ollama_perf.verdict.wording import percent
from pytest_ollama_perf.verdict.words import Problem, Row, Verdict, Word, worst
from pytest_ollama_perf.workload import Workload, identity

REPORTED = ("latency", "throughput")
"""Numbers shown beside the gating ones, without a say in the verdict."""


@dataclass(frozen=True)
class Compared:
    """New runs against the past: the verdict's parts, whether one more run is asked for, whether these look slower, and
    that past as a report is to show it, where one is to be written."""

    word: Word
    reason: str
    rows: tuple[Row, ...]
    changed: tuple[str, ...]
    again: bool
    suspect: bool = False
    regressed_pairs: int = 0
    hints: tuple[str, ...] = ()
    past: Chronicle | None = None


class Past:
    """The history of one build's tests.

    ``pairs`` is how many (test, metric) pairs of the build gate: they share the chance of a false alarm.
    """

    def __init__(self, settings: Settings, pairs: int) -> None:
        self._settings = settings
        self._store: Store = open_store(settings.store)
        self._family = Family(pairs)
        self.unsaved: list[str] = []

    def close(self) -> None:
        """Give back the store."""
        self._store.close()

    def of(self, test: str, workload: Workload) -> History:
        """Return every stored run of the test's load, oldest first."""
        return self._store.history(test, identity=identity(workload), limit=None)

    def matters(self, history: History) -> bool:
        """Whether this test is to be judged by history: there is some, or it is to be made or required."""
        return bool(history.runs or history.damaged or self._settings.save or self._settings.require_baseline)

    def compare(
        self,
        history: History,
        runs: Sequence[Run],
        margins: Mapping[str, float],
        gating: Sequence[str] | None = None,
    ) -> Compared:
        """Judge ``runs``, each of a freshly loaded model, against the runs they may be compared with.

        ``gating`` names the numbers that may fail, where they are not the usual ones and those with ``margins``.
        """
        if gating is not None and not gating:
            return Compared(Word.OK, "", (), (), again=False)
        found = self._compared(history, runs, margins, gating)
        return replace(found, past=chronicle(history, runs)) if self._settings.reports else found

    def _compared(
        self, history: History, runs: Sequence[Run], margins: Mapping[str, float], gating: Sequence[str] | None
    ) -> Compared:
        baseline = epoch_of(history, runs[0], LIMIT)
        if not baseline.runs:
            return _without(history, baseline)
        stored, fresh = [of_run(run) for run in baseline.runs], [of_run(run) for run in runs]
        everywhere = self._settings.margins
        names = _gating(runs[0], {**everywhere, **margins}, asked=margins) if gating is None else list(gating)
        found = judge_test(
            stored,
            fresh,
            names,
            margins={**everywhere, **margins},
            max_runs=self._settings.max_runs,
            family=self._family,
        )
        beside = judge_test(stored, fresh, [name for name in REPORTED if name not in names], margins=everywhere)
        return Compared(
            word=found.word,
            reason=_reason(found, baseline, runs),
            rows=(*(metric.row for metric in found.metrics), *_beside(beside)),
            changed=tuple(map(str, baseline.changed)) if found.word is not Word.OK else (),
            again=found.again,
            suspect=found.suspect,
            regressed_pairs=sum(metric.word is Word.REGRESSED for metric in found.metrics),
            hints=(*(_powerless(runs[0], everywhere, names) if gating is None else ()), *_too_short(found)),
        )

    def conclude(self, verdict: Verdict, compared: Compared, runs: Sequence[Run], history: History) -> Verdict:
        """Keep what is to be kept, and return the verdict with what the past adds to it."""
        self._family = self._family.after(compared.regressed_pairs)
        whole = _joined(verdict, compared, len(epoch_of(history, runs[0], LIMIT).runs), _damage(history))
        if compared.word is Word.REGRESSED:
            whole = msgspec.structs.replace(whole, accept=self._accept_command(runs[0].test))
        whole = msgspec.structs.replace(whole, hints=(*whole.hints, *compared.hints, *drift(history, runs)))
        # Runs slower than history are kept apart; a broken limit beside that changes nothing.
        return self.keep(whole, runs, Kind.REGRESSED if compared.word is Word.REGRESSED else Kind.SAVED)

    def keep(self, verdict: Verdict, runs: Sequence[Run], kind: Kind = Kind.SAVED) -> Verdict:
        """Store valid runs where that was asked for; the verdict then names what could not be stored."""
        if not self._settings.save or verdict.word in {Word.INVALID, Word.ABORTED}:
            return verdict
        try:
            for run in runs:
                self._store.add(run, kind)
        except StoreError as error:
            self.unsaved.append(str(error))
            lost = Problem(name="not saved", text=str(error), spoils=False)
            return msgspec.structs.replace(verdict, problems=(*verdict.problems, lost))
        return verdict

    def _accept_command(self, test: str) -> str:
        # A database's name lacks its credentials, and so would not open it.
        named = "<as --ollama-store>" if "://" in self._settings.store else shlex.quote(self._settings.store)
        where = "" if self._settings.store == DEFAULT_STORE else f" --store {named}"
        return f'pytest-ollama-perf accept {shlex.quote(test)} --why "..."{where}'


def gating_pairs(margins: Mapping[str, float]) -> int:
    """Return how many metrics of a test gate when it has these margins of its own."""
    return len({*GATING, *margins})


def drift(history: History, runs: Sequence[Run]) -> tuple[str, ...]:
    """Return a warning for each gating metric that has drifted away from the first runs of its epoch."""
    whole = [*epoch_of(history, runs[0]).runs, *runs]
    readings = [of_run(run) for run in whole]
    warnings = []
    for name in GATING:
        one = POLICIES[name]
        found = trend(
            (Point(run.started_at, each.reading(one)) for run, each in zip(whole, readings, strict=True)), Rule.of(one)
        )
        if found.warns and found.since is not None:
            warnings.append(
                f"{name} drifts: {percent(found.slowdown)} slower than the first runs of this epoch, "
                f"since {_day(found.since)}; see pytest-ollama-perf trend"
            )
    return tuple(warnings)


def _without(history: History, baseline: Baseline) -> Compared:
    """Nothing to compare with, for one of three reasons that must not be mistaken for each other."""
    changed = tuple(map(str, baseline.changed))
    if history.damaged and not history.runs:
        return Compared(
            Word.INVALID, f"the history of this test cannot be read: {history.damaged[0]}", (), (), again=False
        )
    if baseline.incomparable:
        apart = ", ".join(str(change) for change in baseline.changed if change.separates)
        return Compared(
            Word.INCOMPARABLE, f"no stored run may be compared with this one: {apart}", (), changed, again=False
        )
    return Compared(Word.NEW, "no baseline yet: save some runs with --ollama-save", (), (), again=False)


def _gating(run: Run, margins: Mapping[str, float], *, asked: Mapping[str, float]) -> list[str]:
    """Return the numbers that gate: those that always do where the run has them, and those given a margin.

    A margin set for all tests gates only where a run has requests enough; one on the test itself was checked with it.
    """
    evidence = of_run(run)
    return [
        name
        for name in dict.fromkeys([*GATING, *margins])
        if name in asked or (_has(evidence.values(POLICIES[name].metric.name)) and not _refused(POLICIES[name], run))
    ]


def _powerless(run: Run, everywhere: Iterable[str], gating: Sequence[str]) -> tuple[str, ...]:
    """Say of each margin set for all tests that it has no say in this one, and why."""
    return tuple(
        f"--ollama-margin {name} has no say here: {_refused(POLICIES[name], run) or 'the load has no such number'}"
        for name in everywhere
        if name not in gating
    )


def _too_short(found: TestVerdict) -> tuple[str, ...]:
    """Say what would tell more where the requests of single runs scatter too widely for a verdict to be sure of."""
    wide = [metric.policy.name for metric in found.metrics if metric.rule.scattered]
    if not wide or found.word not in {Word.UNSURE, Word.REGRESSED}:
        return ()
    return (f"{' and '.join(wide)} of one run scatter widely: longer runs would tell more (requests, num_predict)",)


def _has(values: Sequence[float]) -> bool:
    return len(values) > 0


def _refused(one: Policy, run: Run) -> str:
    return one.refusal(len(run.measured))


def _beside(found: TestVerdict) -> tuple[Row, ...]:
    return tuple(
        msgspec.structs.replace(metric.row, gating=False)
        for metric in found.metrics
        if metric.baseline is not None and metric.candidates
    )


def _reason(found: TestVerdict, baseline: Baseline, runs: Sequence[Run]) -> str:
    if found.word is not Word.REGRESSED:
        return found.reason
    before = [phase_medians(run.measured) for run in baseline.runs]
    moved = explain(moves(before, [phase_medians(run.measured) for run in runs]))
    return f"{found.reason}: {moved}" if moved else found.reason


def _joined(verdict: Verdict, compared: Compared, stored: int, damage: tuple[Problem, ...]) -> Verdict:
    """One verdict of contract and history: the gravest word speaks, the contract where both are as grave."""
    word = worst((verdict.word, compared.word))
    return msgspec.structs.replace(
        verdict,
        word=word,
        reason=compared.reason if compared.word is word and verdict.word is not word else verdict.reason,
        rows=(*verdict.rows, *compared.rows),
        changed=compared.changed,
        problems=(*verdict.problems, *damage),
        stored=stored,
    )


def _damage(history: History) -> tuple[Problem, ...]:
    return tuple(Problem(name="damaged history", text=text, spoils=False) for text in history.damaged)


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d")
