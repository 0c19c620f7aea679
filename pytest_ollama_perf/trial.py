"""One load test from its words to its verdict: measure, summarise, judge. Knows no pytest."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pytest_ollama_perf.bench import Bench, Onlooker
from pytest_ollama_perf.finding import Finding
from pytest_ollama_perf.finding.servers import servers
from pytest_ollama_perf.finding.timeline import timeline
from pytest_ollama_perf.fleet import Server
from pytest_ollama_perf.load.recorder import Progress
from pytest_ollama_perf.marks import LoadSpec
from pytest_ollama_perf.past import Compared, Past
from pytest_ollama_perf.report.result import LoadResult, TestResult
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.settings import Settings
from pytest_ollama_perf.summary import summarise
from pytest_ollama_perf.verdict.contract import judge_contract
from pytest_ollama_perf.verdict.limits import Limit, latency_limits
from pytest_ollama_perf.verdict.wording import count
from pytest_ollama_perf.verdict.words import FAILING, Verdict, Word, worst
from pytest_ollama_perf.workload import Workload

_T = TypeVar("_T")


@dataclass(frozen=True)
class Trial:
    """One judged load; ``loads`` is empty where nothing was measured, and has several runs where one was not enough."""

    verdict: Verdict
    loads: tuple[LoadResult, ...] = ()
    findings: tuple[Finding, ...] = ()
    compared: Compared | None = None
    """What the past said of it, where that was asked."""

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
            return replace(self, verdict=Verdict(word=Word.OK, reason="measured, not judged"))
        return self


class Stopped(Exception):
    """Whoever asked for the load no longer wants it."""


@dataclass(frozen=True)
class Stoppable:
    """An onlooker through which another thread can stop the load: it raises ``Stopped`` once ``stop`` is set."""

    onlooker: Onlooker
    stop: threading.Event

    def begin(self, model: str, duration_s: float | None = None) -> None:
        self._look()
        self.onlooker.begin(model, duration_s)

    def message(self, text: str) -> None:
        self._look()
        self.onlooker.message(text)

    def update(self, progress: Progress) -> None:
        self._look()
        self.onlooker.update(progress)

    def _look(self) -> None:
        if self.stop.is_set():
            raise Stopped("the test was cancelled")


@dataclass(frozen=True)
class Captioned:
    """An onlooker that hears which of several loads one is: ``run 2 of at most 3``."""

    onlooker: Onlooker
    caption: str

    def begin(self, model: str, duration_s: float | None = None) -> None:
        self.onlooker.begin(f"{self.caption}, {model}", duration_s)

    def message(self, text: str) -> None:
        self.onlooker.message(f"{self.caption}: {text}")

    def update(self, progress: Progress) -> None:
        self.onlooker.update(progress)


@dataclass
class Lab:
    """The instruments of one experiment: servers, history, and who is told how it comes along.

    ``loads`` holds every load that was finished, for whoever catches what interrupts the experiment; ``found`` returns
    what those show by then; ``admit`` says of a run that is about to begin why it must not, see ``Bench.measure``.
    """

    bench: Bench
    past: Past
    onlooker: Onlooker
    loads: list[LoadResult] = field(default_factory=list)
    found: Callable[[], tuple[Finding, ...]] = tuple
    admit: Callable[[Run], str] = lambda draft: ""

    @property
    def settings(self) -> Settings:
        return self.bench.settings

    def fire(
        self,
        workload: Workload,
        test: str,
        limits: Sequence[Limit] = (),
        *,
        fresh: bool = False,
        servers: Sequence[Server] = (),
    ) -> Trial:
        """Fire one load and judge it by its limits alone; ``fresh`` loads the model anew before.

        ``servers`` are those under test unless others are named.
        """
        run = self.bench.measure(workload, test, fresh=fresh, onlooker=self.onlooker, servers=servers, admit=self.admit)
        trial = judge(run, limits, strict=self.settings.strict)
        self.loads += trial.loads
        return trial

    def captioned(self, caption: str) -> Lab:
        """Return the same instruments, whose onlooker hears which of several loads the next one is."""
        return replace(self, onlooker=Captioned(self.onlooker, caption))

    def interrupted(self) -> Trial | None:
        """Return what had been measured when something stopped the experiment; ``None`` where that is nothing."""
        if self.bench.partial is not None:
            last = judge(self.bench.partial, (), strict=False)
            return Trial(last.verdict, (*self.loads, *last.loads), self.found())
        if not self.loads:
            return None
        stopped = Verdict(word=Word.ABORTED, reason=f"stopped after {count(len(self.loads), 'load')}")
        return Trial(stopped, tuple(self.loads), self.found())


def conduct(lab: Lab, spec: LoadSpec, test: str) -> Trial:
    """Fire the load of ``spec`` and judge it, with up to ``settings.max_runs`` runs where history asks for more.

    Raises:
        OllamaPerfError: nothing could be measured. Whatever interrupts the load passes through.
    """
    history = lab.past.of(test, spec.workload)
    if not lab.past.matters(history):
        return lab.fire(spec.workload, test, spec.limits)
    first = lab.fire(spec.workload, test, spec.limits, fresh=True)
    if first.verdict.word in {Word.INVALID, Word.ABORTED}:
        return first
    runs = [first]
    compared = lab.past.compare(history, [first.run], spec.margins, spec.gating)
    # A broken contract has failed already; only what is to be stored has to be known better.
    while compared.again and (lab.settings.save or first.verdict.word is not Word.BROKEN):
        turn = f"run {len(runs) + 1} of at most {lab.settings.max_runs}"
        why = f"not sure yet, {turn}"
        if compared.suspect:
            _wait(lab, runs[-1].run, why)
        lab.onlooker.message(why)
        runs.append(lab.captioned(turn).fire(spec.workload, test, spec.limits, fresh=True))
        if runs[-1].verdict.word is Word.INVALID:
            return Trial(runs[-1].verdict, _loads(runs), runs[-1].findings)
        compared = lab.past.compare(history, [run.run for run in runs], spec.margins, spec.gating)
    verdict = lab.past.conclude(first.verdict, compared, [run.run for run in runs], history)
    return Trial(verdict, _loads(runs), runs[-1].findings, compared=compared)


def _wait(lab: Lab, before: Run, why: str) -> None:
    """Wait until the next run may speak against a build beside the one ``before``."""
    while left := lab.bench.rest_s(before):
        lab.onlooker.message(f"{why} in {math.ceil(left)} s")
        time.sleep(min(left, 1.0))


def _loads(trials: Sequence[Trial]) -> tuple[LoadResult, ...]:
    return tuple(load for trial in trials for load in trial.loads)


def judge(run: Run, limits: Sequence[Limit], *, strict: bool) -> Trial:
    """Judge one run against its absolute limits."""
    summary = summarise(run, latency_limits(limits))
    verdict = judge_contract(run, summary, limits, strict=strict)
    return Trial(verdict, (LoadResult(run, summary),), (*servers(run, summary), *timeline(run)))


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
            stored=speaker.stored,
        )
    return TestResult(
        test,
        speaker,
        _loads(trials),
        tuple(found for trial in trials for found in trial.findings),
        next((trial.compared.past for trial in reversed(trials) if trial.compared and trial.compared.past), None),
    )


def _once(values: Iterable[_T]) -> tuple[_T, ...]:
    return tuple(dict.fromkeys(values))
