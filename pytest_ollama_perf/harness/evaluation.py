"""One load test from its options to its verdict: measure, summarise, judge. Does not depend on pytest."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeVar

import msgspec

from pytest_ollama_perf.analysis import Finding
from pytest_ollama_perf.analysis.drift import HistoryView
from pytest_ollama_perf.analysis.epochs import StoredRuns
from pytest_ollama_perf.analysis.limits import Limit, collect_latency_limits
from pytest_ollama_perf.analysis.load_profile import build_timeline, summarise_servers
from pytest_ollama_perf.analysis.thresholds import judge_contract
from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.config.load_spec import LoadSpec
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.verdict import (
    FAILING_STATUSES,
    Problem,
    ProblemCode,
    Verdict,
    VerdictStatus,
    get_worst_status,
)
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.harness import Harness, ProgressListener
from pytest_ollama_perf.harness.history import HistoryComparison, RunHistory
from pytest_ollama_perf.harness.servers import TargetServer
from pytest_ollama_perf.loadgen.recorder import LoadProgress
from pytest_ollama_perf.metrics import format_count
from pytest_ollama_perf.metrics.summary import Summary, summarise


class MeasuredLoad(msgspec.Struct, frozen=True):
    """One load: what happened, and the numbers computed from it."""

    run: Run
    summary: Summary


class TestResult(msgspec.Struct, frozen=True):
    """One test item: its node id, its verdict, every load it fired, in their order, what experiments found, and the
    past it was judged against, where a report is to show it."""

    __test__: ClassVar[bool] = False

    test: str
    verdict: Verdict
    loads: tuple[MeasuredLoad, ...] = ()
    findings: tuple[Finding, ...] = ()
    past: HistoryView | None = None


_T = TypeVar("_T")


@dataclass(frozen=True)
class Evaluation:
    """One judged load; ``loads`` is empty where nothing was measured, and has several runs where one was not enough."""

    verdict: Verdict
    loads: tuple[MeasuredLoad, ...] = ()
    findings: tuple[Finding, ...] = ()
    comparison: HistoryComparison | None = None
    """The comparison with the history, if there was one."""

    def is_failing(self, settings: Settings) -> bool:
        """Whether this verdict fails its test."""
        return (
            self.verdict.status in FAILING_STATUSES
            or (settings.strict and self.verdict.status in {VerdictStatus.UNSURE, VerdictStatus.INCOMPARABLE})
            or (settings.require_baseline and self.verdict.status in {VerdictStatus.NEW, VerdictStatus.INCOMPARABLE})
        )

    @property
    def is_invalid_measurement(self) -> bool:
        """Whether something was measured, but the measurement is invalid."""
        return self.verdict.status is VerdictStatus.INVALID and bool(self.loads)

    @property
    def run(self) -> Run:
        """The run it judges, the last of several."""
        return self.loads[-1].run

    def to_unjudged(self) -> Evaluation:
        """Return the evaluation of a load that is only measured; without a successful request it still fails."""
        if any(load.summary.ok for load in self.loads):
            return replace(self, verdict=Verdict(status=VerdictStatus.OK, reason="measured, not judged"))
        return self


class LoadStoppedError(Exception):
    """The load was cancelled."""


@dataclass(frozen=True)
class StoppableListener:
    """A listener with which another thread can stop the load: it raises ``LoadStoppedError`` once ``stop`` is set."""

    listener: ProgressListener
    stop: threading.Event

    def begin(self, model: str, duration_s: float | None = None, *, captions: Sequence[str] = ()) -> None:
        """Forward the start of a load unless the experiment was stopped."""
        self._raise_if_stopped()
        self.listener.begin(model, duration_s, captions=captions)

    def show_message(self, text: str, *, time: str = "") -> None:
        """Forward a message unless the experiment was stopped."""
        self._raise_if_stopped()
        self.listener.show_message(text, time=time)

    def update(self, progress: LoadProgress) -> None:
        """Forward progress unless the experiment was stopped."""
        self._raise_if_stopped()
        self.listener.update(progress)

    def _raise_if_stopped(self) -> None:
        if self.stop.is_set():
            raise LoadStoppedError("the test was cancelled")


def note_insecure_tls(evaluation: Evaluation) -> Evaluation:
    """Return ``evaluation`` with a note, which every report shows, if one of its servers is reached over https."""
    urls = {sample.url for load in evaluation.loads for sample in load.run.samples}
    if not any(url.startswith("https:") for url in urls):
        return evaluation
    text = "the server's certificate was not verified (--ollama-insecure): another host may have answered"
    problem = Problem(code=ProblemCode.INSECURE_TLS, text=text, invalidates=False)
    verdict = evaluation.verdict
    verdict = msgspec.structs.replace(verdict, problems=(*verdict.problems, problem))
    return replace(evaluation, verdict=verdict)


@dataclass(frozen=True)
class CaptionedListener:
    """A listener that adds a caption to every message: ``run 2 of at most 3``."""

    listener: ProgressListener
    caption: str

    def begin(self, model: str, duration_s: float | None = None, *, captions: Sequence[str] = ()) -> None:
        """Forward the start of a load with the caption."""
        self.listener.begin(model, duration_s, captions=(self.caption, *captions))

    def show_message(self, text: str, *, time: str = "") -> None:
        """Forward a message with the caption."""
        self.listener.show_message(f"{self.caption}: {text}", time=time)

    def update(self, progress: LoadProgress) -> None:
        """Forward progress."""
        self.listener.update(progress)


@dataclass
class ExperimentContext:
    """What an experiment works with: servers, history and the listener for progress.

    ``loads`` holds every finished load, ``broken`` the verdicts of those that broke a limit, and ``collect_findings``
    returns their findings, for a report after an interruption. ``precondition`` returns why a run must not start, see
    ``Harness.measure``.
    """

    harness: Harness
    history: RunHistory
    listener: ProgressListener
    loads: list[MeasuredLoad] = field(default_factory=list)
    broken: list[Verdict] = field(default_factory=list)
    collect_findings: Callable[[], tuple[Finding, ...]] = tuple
    precondition: Callable[[Run], str] = lambda draft: ""

    @property
    def settings(self) -> Settings:
        """The settings of the session."""
        return self.harness.settings

    def fire(
        self,
        workload: Workload,
        test: str,
        limits: Sequence[Limit] = (),
        *,
        fresh: bool = False,
        servers: Sequence[TargetServer] = (),
    ) -> Evaluation:
        """Run one load and judge it only by its limits; ``fresh`` reloads the model first.

        ``servers`` defaults to the servers under test.
        """
        run = self.harness.measure(
            workload, test, fresh=fresh, listener=self.listener, servers=servers, precondition=self.precondition
        )
        evaluation = evaluate_run(run, limits, strict=self.settings.strict)
        if self.settings.insecure:
            evaluation = note_insecure_tls(evaluation)
        self.loads += evaluation.loads
        if evaluation.verdict.status is VerdictStatus.BROKEN:
            self.broken.append(evaluation.verdict)
        return evaluation

    def add_caption(self, caption: str) -> ExperimentContext:
        """Return a copy whose listener adds ``caption``, which says which of several loads the next one is."""
        return replace(self, listener=CaptionedListener(self.listener, caption))

    def build_failed_evaluation(self, reason: str) -> Evaluation:
        """Return what had been measured when ``reason`` ended the experiment, with a verdict that never passes."""
        if not self.loads:
            return build_unmeasured(reason)
        verdict = Verdict(
            status=VerdictStatus.INVALID, reason=f"stopped after {format_count(len(self.loads), 'load')}: {reason}"
        )
        if self.broken:
            first = self.broken[0]
            verdict = msgspec.structs.replace(first, reason=f"{first.reason}; {verdict.reason}")
        return Evaluation(verdict, tuple(self.loads), self.collect_findings())

    def build_partial_evaluation(self) -> Evaluation | None:
        """Return what had been measured when something stopped the experiment; ``None`` where that is nothing."""
        if self.harness.partial_run is not None:
            last = evaluate_run(self.harness.partial_run, (), strict=False)
            return Evaluation(last.verdict, (*self.loads, *last.loads), self.collect_findings())
        if not self.loads:
            return None
        stopped = Verdict(status=VerdictStatus.ABORTED, reason=f"stopped after {format_count(len(self.loads), 'load')}")
        return Evaluation(stopped, tuple(self.loads), self.collect_findings())


def run_load(context: ExperimentContext, spec: LoadSpec, test: str) -> Evaluation:
    """Run the load of ``spec`` and judge it, with up to ``settings.max_runs`` runs.

    Further runs are measured while the comparison with the history is inconclusive, and instead of runs that are
    invalid because this machine was busy.

    Raises:
        OllamaPerfError: nothing could be measured. Whatever interrupts the load passes through.
    """
    return _LoadRunner(context, spec, test).run()


BUSY_MACHINE_CODES = frozenset({ProblemCode.CLIENT_BOUND, ProblemCode.BEHIND_SCHEDULE})
"""Problems that invalidate a run because the machine that sends the requests was busy."""


def is_machine_busy(verdict: Verdict) -> bool:
    """Whether the measurement is invalid only because this machine was busy, so that another run may be valid."""
    found = {problem.code for problem in verdict.problems if problem.invalidates}
    return verdict.status is VerdictStatus.INVALID and bool(found) and found <= BUSY_MACHINE_CODES


@dataclass
class _LoadRunner:
    """The runs of one load: ``runs`` are judged, ``discarded`` were invalid and measured again."""

    context: ExperimentContext
    spec: LoadSpec
    test: str
    runs: list[Evaluation] = field(default_factory=list)
    discarded: list[Evaluation] = field(default_factory=list)

    def run(self) -> Evaluation:
        history = self.context.history.load_runs(self.test, self.spec.workload, self.spec.baseline)
        judged = self.context.history.is_active_for(history)
        first = self._measure_valid(fresh=judged)
        if not judged or not first.verdict.is_usable:
            return replace(first, verdict=self._note_discarded(first.verdict))
        return self._judge_against(history)

    def _judge_against(self, history: StoredRuns) -> Evaluation:
        """Compare with the history, and measure further runs while that is inconclusive."""
        first = self.runs[0]
        compared = self._compare(history)
        # A broken limit has failed already; only what will be stored has to be known better.
        worthwhile = self.context.settings.save or first.verdict.status is not VerdictStatus.BROKEN
        while compared.needs_more_runs and worthwhile and self._count_runs_left():
            if compared.is_suspect:
                self._wait_for_spacing(f"inconclusive, {self._format_turn()}")
            self.context.listener.show_message(f"inconclusive, {self._format_turn()}")
            last = self._measure_valid(fresh=True)
            if not last.verdict.is_usable:
                return Evaluation(self._note_discarded(last.verdict), _list_loads(self.runs), last.findings)
            compared = self._compare(history)
        verdict = self.context.history.apply_comparison(first.verdict, compared, self._list_runs(), history)
        loads, findings = _list_loads(self.runs), self.runs[-1].findings
        return Evaluation(self._note_discarded(verdict), loads, findings, comparison=compared)

    def _compare(self, history: StoredRuns) -> HistoryComparison:
        return self.context.history.compare(history, self._list_runs(), self.spec.margins, self.spec.gating)

    def _list_runs(self) -> list[Run]:
        return [evaluation.run for evaluation in self.runs]

    def _measure_valid(self, *, fresh: bool) -> Evaluation:
        """Measure a run, again while this machine was busy and runs are left."""
        evaluation = self._measure(fresh=fresh)
        while is_machine_busy(evaluation.verdict) and self._count_runs_left() > 1:
            self.discarded.append(evaluation)
            self.context.listener.show_message(f"this machine was busy, {self._format_turn()}")
            evaluation = self._measure(fresh=fresh)
        self.runs.append(evaluation)
        return evaluation

    def _measure(self, *, fresh: bool) -> Evaluation:
        is_first = not self.runs and not self.discarded
        context = self.context if is_first else self.context.add_caption(self._format_turn())
        return context.fire(self.spec.workload, self.test, self.spec.limits, fresh=fresh)

    def _count_runs_left(self) -> int:
        return self.context.settings.max_runs - len(self.runs) - len(self.discarded)

    def _format_turn(self) -> str:
        return f"run {len(self.runs) + len(self.discarded) + 1} of at most {self.context.settings.max_runs}"

    def _wait_for_spacing(self, message: str) -> None:
        """Wait until the next run may count as evidence next to the last one."""
        while left := self.context.harness.compute_wait_s():
            self.context.listener.show_message(f"{message} in", time=f"{math.ceil(left)} s")
            time.sleep(min(left, 1.0))

    def _note_discarded(self, verdict: Verdict) -> Verdict:
        """Return ``verdict`` with a note of the runs that were measured again."""
        if not self.discarded:
            return verdict
        many = format_count(len(self.discarded), "run")
        text = f"{many} measured again, because this machine was busy: {self.discarded[0].verdict.reason}"
        note = Problem(code=ProblemCode.CLIENT_BOUND, text=text, invalidates=False)
        return msgspec.structs.replace(verdict, problems=(*verdict.problems, note))


def _list_loads(evaluations: Sequence[Evaluation]) -> tuple[MeasuredLoad, ...]:
    return tuple(load for evaluation in evaluations for load in evaluation.loads)


def evaluate_run(run: Run, limits: Sequence[Limit], *, strict: bool) -> Evaluation:
    """Judge one run against its absolute limits."""
    summary = summarise(run, collect_latency_limits(limits))
    verdict = judge_contract(run, summary, limits, strict=strict)
    return Evaluation(verdict, (MeasuredLoad(run, summary),), (*summarise_servers(run, summary), *build_timeline(run)))


def build_unmeasured(reason: str) -> Evaluation:
    """Return the evaluation of a load that could not be run: a run without data never passes."""
    return Evaluation(Verdict(status=VerdictStatus.INVALID, reason=reason))


def merge_evaluations(test: str, evaluations: Sequence[Evaluation]) -> TestResult:
    """Return the result of a test with several loads: the most severe verdict, with the rows of all."""
    worst = get_worst_status(tuple(evaluation.verdict.status for evaluation in evaluations))
    speaker = next(evaluation.verdict for evaluation in evaluations if evaluation.verdict.status is worst)
    if len(evaluations) > 1:
        speaker = Verdict(
            status=worst,
            reason=speaker.reason,
            rows=tuple(row for evaluation in evaluations for row in evaluation.verdict.rows),
            problems=_drop_duplicates(problem for evaluation in evaluations for problem in evaluation.verdict.problems),
            hints=_drop_duplicates(hint for evaluation in evaluations for hint in evaluation.verdict.hints),
            changed=_drop_duplicates(change for evaluation in evaluations for change in evaluation.verdict.changed),
            accept=speaker.accept,
            stored=speaker.stored,
        )
    return TestResult(
        test,
        speaker,
        _list_loads(evaluations),
        tuple(found for evaluation in evaluations for found in evaluation.findings),
        next(
            (
                evaluation.comparison.history_view
                for evaluation in reversed(evaluations)
                if evaluation.comparison and evaluation.comparison.history_view
            ),
            None,
        ),
    )


def _drop_duplicates(values: Iterable[_T]) -> tuple[_T, ...]:
    return tuple(dict.fromkeys(values))
