"""One load test from its words to its verdict: measure, summarise, judge. Knows no pytest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pytest_ollama_perf.bench import Bench, Onlooker
from pytest_ollama_perf.marks import LoadSpec
from pytest_ollama_perf.report.result import LoadResult, TestResult
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.summary import summarise
from pytest_ollama_perf.verdict.contract import judge_contract
from pytest_ollama_perf.verdict.limits import Limit, latency_limits
from pytest_ollama_perf.verdict.words import FAILING, Verdict, Word, worst

_T = TypeVar("_T")


@dataclass(frozen=True)
class Trial:
    """One judged load; ``loads`` is empty where nothing could be measured."""

    verdict: Verdict
    loads: tuple[LoadResult, ...] = ()

    def fails(self, *, strict: bool) -> bool:
        """Whether this verdict fails its test."""
        return self.verdict.word in FAILING or (strict and self.verdict.word in {Word.UNSURE, Word.INCOMPARABLE})

    def unjudged(self) -> Trial:
        """The same load as one that was only to be measured; without a single success that is still not green."""
        if any(load.summary.ok for load in self.loads):
            return Trial(Verdict(word=Word.OK, reason="measured, not judged"), self.loads)
        return self


def conduct(bench: Bench, spec: LoadSpec, test: str, *, onlooker: Onlooker) -> Trial:
    """Fire the load of ``spec`` and judge it.

    Raises:
        OllamaPerfError: nothing could be measured. Whatever interrupts the load passes through; ``bench.partial`` then
            holds what had been measured.
    """
    return judge(bench.measure(spec.workload, test, onlooker=onlooker), spec.limits, strict=bench.settings.strict)


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
    return TestResult(test, speaker, tuple(load for trial in trials for load in trial.loads))


def _once(values: Iterable[_T]) -> tuple[_T, ...]:
    return tuple(dict.fromkeys(values))
