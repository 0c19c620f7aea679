"""Cold and warm: unload, see that the model is gone, load it by the first request. The marker ``ollama_cold_start``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from pytest_ollama_perf.analysis import BoundCheck, FindingMetric, check_bound
from pytest_ollama_perf.analysis.cold_warm import COLD_WARM_METRICS, ColdStart, build_cold_start, build_repeat
from pytest_ollama_perf.analysis.epochs import StoredRuns
from pytest_ollama_perf.analysis.run_value import POLICIES
from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.config.load_spec import LoadSpec, build_load_spec
from pytest_ollama_perf.config.markers import MARKERS
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.text import safe_repr
from pytest_ollama_perf.core.verdict import Problem, ProblemCode, VerdictStatus
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.experiments.experiment_results import ColdStartResult
from pytest_ollama_perf.experiments.load import ExperimentPart, combine_verdicts, find_last_findings
from pytest_ollama_perf.experiments.results import EvaluationRecorder, Measure
from pytest_ollama_perf.harness import ProgressListener
from pytest_ollama_perf.harness.evaluation import Evaluation, ExperimentContext
from pytest_ollama_perf.harness.history import HistoryComparison, count_gating_pairs
from pytest_ollama_perf.loadgen.recorder import LoadProgress
from pytest_ollama_perf.metrics import METRICS, Metric, Shape, format_seconds

_MARKER = MARKERS["ollama_cold_start"]
_DEFAULT_WARM_REQUESTS = 10


@dataclass(frozen=True)
class ColdStartTest:
    """What a series of cold starts is asked for."""

    cold: LoadSpec
    warm: LoadSpec
    repeats: int
    bounds: Mapping[str, float]

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are started."""
        return (self.warm.workload.model,)

    @property
    def gating(self) -> int:
        """The number of pairs (test, metric) that history can gate."""
        return count_gating_pairs(self.cold.margins) + count_gating_pairs(self.warm.margins)

    def run(self, context: ExperimentContext, test: str) -> Evaluation:
        """Measure the cold starts, and judge them."""
        return _ColdStartRunner(self, context, test).run()

    def result(self, recorder: EvaluationRecorder, test: str, measure: Measure) -> ColdStartResult:
        """Return the value of the fixture ``ollama_cold_start``."""
        return ColdStartResult(recorder, test, measure)


@dataclass(frozen=True)
class _LoadingListener:
    """Reports how long the model has been loading, until the first response arrives."""

    listener: ProgressListener
    model: str

    def begin(self, model: str, duration_s: float | None = None, *, captions: Sequence[str] = ()) -> None:
        self.listener.begin(model, duration_s, captions=captions)

    def show_message(self, text: str, *, time: str = "") -> None:
        self.listener.show_message(text, time=time)

    def update(self, progress: LoadProgress) -> None:
        self.listener.show_message(f"cold start: loading {self.model} ...", time=f"{progress.elapsed_s:.0f} s")


@dataclass(frozen=True)
class _HalfComparison:
    """Runs of one half, cold or warm, compared with their history."""

    half: str
    history: StoredRuns
    comparison: HistoryComparison
    runs: Sequence[Run]


@dataclass
class _ColdStartRunner:
    """A series of cold starts under way."""

    experiment: ColdStartTest
    context: ExperimentContext
    test: str
    cold: list[Evaluation] = field(default_factory=list)
    warm: list[Evaluation] = field(default_factory=list)

    def run(self) -> Evaluation:
        self.context.collect_findings = lambda: (self._build_finding(),)
        going = all(self._measure_start(turn) for turn in range(1, self.experiment.repeats + 1))
        compared = self._compare_halves() if going else []
        while (
            any(each.comparison.needs_more_runs for each in compared)
            and len(self.cold) < self.context.settings.max_runs
            and going
        ):
            going = self._measure_start(len(self.cold) + 1)
            compared = self._compare_halves() if going else []
        found = self._build_finding()
        found = msgspec.structs.replace(found, checks=tuple(self._check_bounds(found)))
        verdict = combine_verdicts(self._build_parts(compared), summary=_build_summary(found), checks=found.checks)
        evaluations = (*self.cold, *self.warm)
        loads = tuple(load for evaluation in evaluations for load in evaluation.loads)
        return Evaluation(
            verdict, loads, (found, *find_last_findings([ExperimentPart("", evaluation) for evaluation in evaluations]))
        )

    def _measure_start(self, turn: int) -> bool:
        """Measure one repeat; say whether it makes sense to go on."""
        again = (
            f"{turn}: inconclusive so far" if turn > self.experiment.repeats else f"{turn} of {self.experiment.repeats}"
        )
        self.context.listener.show_message(f"cold start {again}")
        model = self.experiment.cold.workload.model or "the model"
        context = replace(self.context, listener=_LoadingListener(self.context.listener, model))
        self.cold.append(
            _invalidate_if_loaded(context.fire(self._build_cold_workload(), self.test, self.experiment.cold.limits))
        )
        if not self.cold[-1].verdict.is_usable or not self.cold[-1].loads[0].summary.ok:
            return False
        context = self.context.add_caption(f"cold start {again}, then warm")
        self.warm.append(context.fire(self.experiment.warm.workload, self.test, self.experiment.warm.limits))
        return self.warm[-1].verdict.is_usable

    def _build_cold_workload(self) -> Workload:
        """One request for each server at the same time, so that each loads the model by its own."""
        servers = len(self.context.harness.servers)
        return msgspec.structs.replace(self.experiment.cold.workload, requests=servers, concurrency=servers)

    def _build_finding(self) -> ColdStart:
        runs = zip(self.cold, self.warm, strict=False)
        starts = [build_repeat(cold.run, warm.run) for cold, warm in runs]
        model = self.cold[0].run.workload.model if self.cold else self.experiment.cold.workload.model
        return build_cold_start(model, starts)

    def _check_bounds(self, found: ColdStart) -> list[BoundCheck]:
        return [_check_limit(found, name, bound) for name, bound in self.experiment.bounds.items()]

    def _compare_halves(self) -> list[_HalfComparison]:
        """Judge cold and warm runs against their own histories: every repeat loaded the model, and so is evidence."""
        found = []
        for where, spec, evaluations in (
            ("cold", self.experiment.cold, self.cold),
            ("warm", self.experiment.warm, self.warm),
        ):
            history = self.context.history.load_runs(self.test, evaluations[0].run.workload, spec.baseline)
            if self.context.history.is_active_for(history):
                runs = [evaluation.run for evaluation in evaluations]
                compared = self.context.history.compare(history, runs, spec.margins, spec.gating)
                found.append(_HalfComparison(where, history, compared, runs))
        return found

    def _build_parts(self, compared: Sequence[_HalfComparison]) -> list[ExperimentPart]:
        """The judged halves: cold and warm, each with the worst of its verdicts and what its past adds to that."""
        against = {each.half: each for each in compared}
        parts = []
        for where, evaluations in (("cold", self.cold), ("warm", self.warm)):
            worst = max(
                evaluations, key=lambda evaluation: list(VerdictStatus).index(evaluation.verdict.status), default=None
            )
            if worst is not None:
                verdict = worst.verdict
                if one := against.get(where):
                    verdict = self.context.history.apply_comparison(verdict, one.comparison, one.runs, one.history)
                parts.append(ExperimentPart(where, Evaluation(verdict)))
        return parts


def _invalidate_if_loaded(evaluation: Evaluation) -> Evaluation:
    """Void a cold start whose model was still there when the request was sent: something else uses the server."""
    loaded = [url for url, state in evaluation.run.before.items() if state.loaded]
    if not loaded:
        return evaluation
    text = "the model was loaded again before the cold request was sent; something else is using the server"
    problem = Problem(code=ProblemCode.NOT_COLD, text=text, invalidates=True)
    verdict = msgspec.structs.replace(
        evaluation.verdict,
        status=VerdictStatus.INVALID,
        reason=f"not a valid measurement: {text}",
        problems=(*evaluation.verdict.problems, problem),
    )
    return replace(evaluation, verdict=verdict)


def _check_limit(found: ColdStart, name: str, bound: float) -> BoundCheck:
    """Compare the median with its bound; if single repeats exceed it, the result is inconclusive."""
    unit = "x" if name == "ratio" else "s"
    one = check_bound(
        FindingMetric(name),
        found.get(name),
        "<=",
        bound,
        unit=unit,
        missing="no start succeeded, or the server does not report it",
    )
    beyond = [start for start in found.starts if (value := start.get(name)) is not None and value > bound]
    if one.status is VerdictStatus.OK and beyond:
        reason = f"{one.reason}: the median meets it, {len(beyond)} of {len(found.starts)} starts did not"
        return msgspec.structs.replace(one, status=VerdictStatus.UNSURE, reason=reason)
    return one


def _build_summary(found: ColdStart) -> str:
    """Say in one line what was found."""
    if found.cold_latency_s is None:
        return "no cold start succeeded"
    parts = [f"load {format_seconds(found.load_time_s)}"] if found.load_time_s is not None else []
    if found.cold_ttft_s is not None and found.warm_ttft_s is not None:
        parts.append(f"TTFT {format_seconds(found.cold_ttft_s)} cold, {format_seconds(found.warm_ttft_s)} warm")
    elif found.warm_latency_s is not None:
        parts.append(
            f"latency {format_seconds(found.cold_latency_s)} cold, {format_seconds(found.warm_latency_s)} warm"
        )
    return ", ".join(parts)


def list_option_names() -> tuple[str, ...]:
    """Return every argument of the marker."""
    return _MARKER.list_option_names()


def parse_options(options: Mapping[str, Any], settings: Settings) -> ColdStartTest:
    """Parse the marker's arguments; ``ConfigError`` explains what is wrong with them."""
    for name in _MARKER.excluded:
        if name in options:
            valid = "repeats, requests (warm ones) and load_timeout"
            given = f"{name}={safe_repr(options[name])}"
            raise ConfigError(f"{given}: a cold start is one request at a time; valid: {valid}")
    own = _MARKER.read_own_options(options)
    load = {name: value for name, value in options.items() if name not in own}
    load.setdefault("requests", _DEFAULT_WARM_REQUESTS)
    warm = build_load_spec(load, default_model=settings.model)
    return ColdStartTest(
        cold=_build_cold_load(warm, own["load_timeout"], settings.margins),
        warm=warm,
        repeats=own["repeats"],
        bounds={name: own[f"max_{name}"] for name in COLD_WARM_METRICS if own[f"max_{name}"] is not None},
    )


def _build_cold_load(warm: LoadSpec, patience: float, everywhere: Mapping[str, float]) -> LoadSpec:
    """Return the load of the one cold request: separate timeouts, and ``load_time`` is compared with history too."""
    usual = warm.workload.timeouts
    total = max(usual.total_s, patience + usual.total_s)
    timeouts = msgspec.structs.replace(usual, first_token_s=patience, total_s=total)
    workload = msgspec.structs.replace(warm.workload, cold=True, requests=1, warmup=0, timeouts=timeouts)
    limits = tuple(limit for limit in warm.limits if limit.metric == "error_rate")
    # One request has no percentiles and no throughput, so margins on those say nothing of it.
    margins = {
        name: share for name, share in warm.margins.items() if name in METRICS and _is_per_request(METRICS[name])
    }
    margins.setdefault("load_time", everywhere.get("load_time", POLICIES["load_time"].margin))
    return LoadSpec(workload=workload, limits=limits, margins=margins, baseline=warm.baseline)


def _is_per_request(metric: Metric) -> bool:
    return metric.shape is not Shape.PER_RUN
