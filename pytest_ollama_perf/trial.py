"""One load test from its words to its verdict: measure, summarise, judge. Knows no pytest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pytest_ollama_perf.bench import Bench, Onlooker
from pytest_ollama_perf.marks import LoadSpec
from pytest_ollama_perf.report.result import LoadResult, TestResult
from pytest_ollama_perf.past import Past
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.settings import Settings
from pytest_ollama_perf.summary import summarise
from pytest_ollama_perf.verdict.contract import judge_contract
from pytest_ollama_perf.verdict.limits import Limit, latency_limits
from pytest_ollama_perf.verdict.words import FAILING, Verdict, Word, worst

_T = TypeVar("_T")


@dataclass(frozen=True)
class Trial:
    """One judged load; ``loads`` is empty where nothing could be measured, and has several runs where one was not enough."""

    verdict: Verdict
    loads: tuple[LoadResult, ...] = ()

    def fails(self, settings: Settings) -> bool:
        """Whether this verdict fails its test."""
        return (
            self.verdict.word in FAILING
            or (settings.strict and self.verdict.word in {Word.UNSURE, Word.INCOMPARABLE})
            or (settings.require_baseline and self.verdict.word in {Word.NEW, Word.INCOMPARABLE})
        )

    @property
    def run(self) -> Run:
        """The run it judges, the last of several."""
        return self.loads[-1].run

    def unjudged(self) -> Trial:
        """The same load as one that was only to be measured; without a single success that is still not green."""
        if any(load.summary.ok for load in self.loads):
            return Trial(Verdict(word=Word.OK, reason="measured, not judged"), self.loads)
        return self


def conduct(bench: Bench, past: Past, spec: LoadSpec, test: str, *, onlooker: Onlooker) -> Trial:
    """Fire the load of ``spec`` and judge it, with up to ``settings.max_runs`` runs where history asks for more than one.

    Raises:
        OllamaPerfError: nothing could be measured. Whatever interrupts the load passes through; ``bench.partial`` then
            holds what had been measured.
    """
    history = past.of(test, spec.workload)
    if not past.matters(history):
        return _run(bench, spec, test, onlooker, fresh=False)
    first = _run(bench, spec, test, onlooker, fresh=True)
    if first.verdict.word in {Word.INVALID, Word.ABORTED}:
        return first
    runs = [first]
    compared = past.compare(history, [first.run], spec.margins)
    while compared.again and first.verdict.word is not Word.BROKEN:
        onlooker.message(f"not sure yet, run {len(runs) + 1} of at most {bench.settings.max_runs}")
        runs.append(_run(bench, spec, test, onlooker, fresh=True))
        if runs[-1].verdict.word is Word.INVALID:
            return Trial(runs[-1].verdict, _loads(runs))
        compared = past.compare(history, [run.run for run in runs], spec.margins)
    return Trial(past.conclude(first.verdict, compared, [run.run for run in runs], history), _loads(runs))


def _run(bench: Bench, spec: LoadSpec, test: str, onlooker: Onlooker, *, fresh: bool) -> Trial:
    run = bench.measure(spec.workload, test, fresh=fresh, onlooker=onlooker)
    return judge(run, spec.limits, strict=bench.settings.strict)


def _loads(trials: Sequence[Trial]) -> tuple[LoadResult, ...]:
    return tuple(load for trial in trials for load in trial.loads)


def aborted(run: Run, spec: LoadSpec) -> Trial:
    """Judge the part of a run that was measured before something stopped it."""
    return judge(run, spec.limits, strict=False)


def judge(run: Run, limits: Sequence[Limit], *, strict: bool) -> Trial:
    """Judge one run against its absolute limits."""
    summary = summarise(run, latency_limits(limits))
    return Trial(judge_contract(run, summary, limits, strict=strict), (LoadResult(run, summary),))


def unmeasured(reason: str) -> Trial:
    """The trial of a load that could not be fired: no data is never green."""
    return Trial(Verdict(word=Word.INVALID, reason=reason))


def merge(test: str, trials: Sequence[Trial]) -> TestResult:
    """Return the one result of a test that fired several loads: the gravest verdict speaks, every row is kept."""
    gravest = worst(tuple(trial.verdict.word for trial in trials))
    speaker = next(trial.verdict for trial in trials if trial.verdict.word is gravest)
    if len(trials) > 1:
        speaker = Verdict(
            word=gravest,
            reason=speaker.reason,
            rows=tuple(row for trial in trials for row in trial.verdict.rows),
            problems=_once(problem for trial in trials for problem in trial.verdict.problems),
            hints=_once(hint for trial in trials for hint in trial.verdict.hints),
            changed=_once(change for trial in trials for change in trial.verdict.changed),
            accept=speaker.accept,
        )
    return TestResult(test, speaker, _loads(trials))


def _once(values: Iterable[_T]) -> tuple[_T, ...]:
    return tuple(dict.fromkeys(values))
