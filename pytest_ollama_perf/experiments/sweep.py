"""The sweep: one load at every level of an axis, or of a product of axes. The marker ``ollama_sweep``."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pytest_ollama_perf.analysis import BoundCheck, FindingMetric, check_bound
from pytest_ollama_perf.analysis.limits import Limit
from pytest_ollama_perf.analysis.scaling import (
    LOAD_AXES,
    AxisValues,
    Curve,
    Knee,
    Sweep,
    SweepPoint,
    build_curve,
    build_sweep_point,
    format_position,
)
from pytest_ollama_perf.analysis.thresholds import judge_limit
from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.config.load_options import LOAD_OPTIONS
from pytest_ollama_perf.config.load_spec import LoadSpec, build_load_spec
from pytest_ollama_perf.config.markers import MARKERS, SWEEP_AXES
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.text import safe_repr
from pytest_ollama_perf.core.verdict import Verdict, VerdictStatus
from pytest_ollama_perf.experiments.load import ExperimentPart, combine_verdicts, find_last_findings
from pytest_ollama_perf.experiments.results import EvaluationRecorder, Measure
from pytest_ollama_perf.experiments.sweep_points import SweepResult
from pytest_ollama_perf.harness.evaluation import Evaluation, ExperimentContext, run_load
from pytest_ollama_perf.harness.history import count_gating_pairs
from pytest_ollama_perf.metrics import format_count, format_number, format_seconds
from pytest_ollama_perf.metrics.summary import Summary

DEFAULT_CONCURRENCY = (1, 2, 4, 8)
SINGLE_REQUESTS = 5
_MARKER = MARKERS["ollama_sweep"]
_SYSTEM_METRICS = ("throughput", "throughput_whole", "qps", "goodput")
"""What the whole server makes: a limit on it holds for the best level, any other limit at every level."""


@dataclass(frozen=True)
class SweepTest:
    """What a sweep is asked for: a load for each level, in the order they are fired."""

    axis: str
    curves: tuple[tuple[AxisValues, tuple[tuple[AxisValues, LoadSpec], ...]], ...]
    single: tuple[LoadSpec | None, ...]
    best: tuple[Limit, ...]
    stop_success_rate: float
    stop_latency_s: float
    min_knee: float | None = None
    min_speedup: float | None = None

    @property
    def specs(self) -> tuple[LoadSpec, ...]:
        """Every load of the sweep."""
        levels = [spec for _, levels in self.curves for _, spec in levels]
        return (*levels, *(spec for spec in self.single if spec is not None))

    @property
    def models(self) -> tuple[str, ...]:
        """The models of all points."""
        return tuple(dict.fromkeys(spec.workload.model for spec in self.specs))

    @property
    def gating(self) -> int:
        """The number of pairs (test, metric) that history can gate."""
        return sum(count_gating_pairs(spec.margins) for spec in self.specs)

    def run(self, context: ExperimentContext, test: str) -> Evaluation:
        """Measure every curve, and judge its levels and the whole."""
        return _SweepRunner(self, context, test).run()

    def result(self, recorder: EvaluationRecorder, test: str, measure: Measure) -> SweepResult:
        """Return the value of the fixture ``ollama_sweep``."""
        return SweepResult(recorder, test, measure)


@dataclass
class _SweepRunner:
    """One sweep under way."""

    experiment: SweepTest
    context: ExperimentContext
    test: str
    parts: list[ExperimentPart] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    _fired: int = 0

    def run(self) -> Evaluation:
        self._check_models()
        self.context.collect_findings = lambda: (Sweep(axis=self.experiment.axis, curves=tuple(self.curves)),)
        for (at, levels), single in zip(self.experiment.curves, self.experiment.single, strict=True):
            self._measure_curve(at, levels, single)
        found = Sweep(axis=self.experiment.axis, curves=tuple(self.curves), checks=tuple(self._check_bounds()))
        verdict = combine_verdicts(self._judge_parts(), summary=_build_summary(found), checks=found.checks)
        loads = tuple(load for part in self.parts for load in part.evaluation.loads)
        return Evaluation(verdict, loads, (found, *find_last_findings(self.parts)))

    def _check_models(self) -> None:
        """Learn that a model is missing before hours were spent on the others."""
        for model in self.experiment.models if len(self.experiment.models) > 1 else ():
            for server in self.context.harness.servers:
                server.control.get_installed(model)

    def _measure_curve(
        self, at: AxisValues, levels: Sequence[tuple[AxisValues, LoadSpec]], single: LoadSpec | None
    ) -> None:
        alone = self._measure_point({**at, "concurrency": 1}, single, alone=True) if single else None
        rows: list[SweepPoint] = []
        stopped = ""
        self.curves.append(build_curve(self.experiment.axis, at, rows, alone))
        for index, (where, spec) in enumerate(levels):
            rows.append(self._measure_point(where, spec))
            if self.experiment.axis in LOAD_AXES and index + 1 < len(levels):
                stopped = self._explain_stop(rows[-1])
            rest = levels[index + 1 :] if stopped else ()
            missing = ", ".join(format_position(at) for at, _ in rest)
            text = f"{stopped}; {missing} not measured" if stopped else ""
            self.curves[-1] = build_curve(self.experiment.axis, at, rows, alone, text)
            if stopped:
                self._note_missing(rest, stopped)
                return

    def _measure_point(self, at: AxisValues, spec: LoadSpec, *, alone: bool = False) -> SweepPoint:
        self._fired += 1
        level = f"level {self._fired} of {len(self.experiment.specs)}"
        self.context.listener.show_message(f"{level}: {format_position(at)}")
        evaluation = run_load(self.context.add_caption(level), spec, self.test)
        self.parts.append(ExperimentPart(f"{format_position(at)}, alone" if alone else format_position(at), evaluation))
        middle = sorted(evaluation.loads, key=lambda load: _get_throughput(load.summary))[
            (len(evaluation.loads) - 1) // 2
        ]
        verdict = evaluation.verdict
        return build_sweep_point(at, middle.run, middle.summary, verdict.status, verdict.reason, single=alone)

    def _explain_stop(self, level: SweepPoint) -> str:
        """Explain in one line why the sweep stops here; empty while the server sustains the load."""
        if level.success_rate < self.experiment.stop_success_rate:
            failed = f"{level.requests - level.ok} of {format_count(level.requests, 'request')} failed"
            least = f"stop_success_rate={self.experiment.stop_success_rate:g}"
            return f"stopped after {format_position(level.at)}: {failed} ({least})"
        latency = level.latency_p50_s
        if latency is not None and latency > self.experiment.stop_latency_s:
            limit = f"stop_latency={self.experiment.stop_latency_s:g}"
            return f"stopped after {format_position(level.at)}: latency p50 {format_seconds(latency)} ({limit})"
        return ""

    def _note_missing(self, rest: Sequence[tuple[AxisValues, LoadSpec]], stopped: str) -> None:
        """Add a broken part for each level with limits that was not measured."""
        for at, spec in rest:
            if any(limit.metric != "error_rate" for limit in spec.limits):
                verdict = Verdict(status=VerdictStatus.BROKEN, reason=f"not measured: {stopped}")
                self.parts.append(ExperimentPart(format_position(at), Evaluation(verdict)))

    def _check_bounds(self) -> Iterator[BoundCheck]:
        """Compare knee and speedup of every curve with their limits; each curve has to meet them."""
        for curve in self.curves:
            where = format_position(curve.at)
            if self.experiment.min_knee is not None:
                yield _check_knee(curve, where, self.experiment.min_knee)
            if self.experiment.min_speedup is not None:
                missing = "the single client made nothing"
                yield check_bound(
                    FindingMetric.SPEEDUP,
                    curve.speedup,
                    ">=",
                    self.experiment.min_speedup,
                    where=where,
                    unit="x",
                    missing=missing,
                )

    def _judge_parts(self) -> list[ExperimentPart]:
        """The parts, and for every curve the best level compared with the limits on the whole system."""
        if not self.experiment.best:
            return self.parts
        return [*self.parts, *(self._judge_best(curve) for curve in self.curves)]

    def _judge_best(self, curve: Curve) -> ExperimentPart:
        best = curve.best
        load = next(
            load for part in self.parts for load in part.evaluation.loads if best and load.run.id == best.run_id
        )
        rows = tuple(judge_limit(limit, load.run, load.summary) for limit in self.experiment.best)
        speaker = max(rows, key=lambda row: list(VerdictStatus).index(row.status))
        verdict = Verdict(status=speaker.status, reason=speaker.reason, rows=rows)
        return ExperimentPart(f"best level, {format_position(best.at)}" if best else "best level", Evaluation(verdict))


def _check_knee(curve: Curve, where: str, least: float) -> BoundCheck:
    knee = curve.knee
    one = check_bound(
        FindingMetric.KNEE, knee.at if knee else None, ">=", least, where=where, missing="no request succeeded"
    )
    if knee is None:
        return one
    grew = "stops growing at" if knee.reached else "still grows at"
    place, speed = _format_knee(knee), _format_throughput(curve, knee.throughput)
    return msgspec.structs.replace(one, reason=f"throughput {grew} {place} ({speed}), limit min_knee={least:g}")


def list_option_names() -> tuple[str, ...]:
    """Return every argument of the marker."""
    return _MARKER.list_option_names()


def parse_options(options: Mapping[str, Any], settings: Settings) -> SweepTest:
    """Parse the marker's arguments; ``ConfigError`` explains what is wrong with them."""
    own = _MARKER.read_own_options(options)
    rest = {name: value for name, value in options.items() if name not in own}
    axes = _parse_axes(rest)
    axis = next((name for name in LOAD_AXES if name in axes), list(axes)[-1])
    fixed = {word: value for word, value in rest.items() if word not in axes}
    every, best = _split_limits(
        build_load_spec({**fixed, **_select_first_values(axes)}, default_model=settings.model).limits
    )
    _check_min_knee(own["min_knee"], axis, axes)
    single_at = own["single"] and axis in LOAD_AXES and 1 not in axes.get("concurrency", ())
    curves, singles = [], []
    for chosen in itertools.product(*(values for name, values in axes.items() if name != axis)):
        at = dict(zip((name for name in axes if name != axis), chosen, strict=True))
        levels = [{**at, axis: value} for value in axes[axis]]
        specs = [
            _reject_unfilled_point(build_load_spec({**fixed, **level}, default_model=settings.model))
            for level in levels
        ]
        curves.append(
            (at, tuple((level, _replace_limits(spec, every)) for level, spec in zip(levels, specs, strict=True)))
        )
        singles.append(_build_single_load({**fixed, **at}, settings) if single_at else None)
    return SweepTest(
        axis=axis,
        curves=tuple(curves),
        single=tuple(singles),
        best=best,
        stop_success_rate=own["stop_success_rate"],
        stop_latency_s=own["stop_latency"],
        min_knee=own["min_knee"],
        min_speedup=own["min_speedup"],
    )


def _parse_axes(options: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return the words that hold a list, in the order of ``AXES``."""
    axes = {name: _parse_values(name, options[name]) for name in SWEEP_AXES if _is_list(options.get(name))}
    if "concurrency" in axes and "rate" in options:
        raise ConfigError("concurrency and rate contradict each other: sweep over one of them")
    if "rate" in axes and "concurrency" in options:
        raise ConfigError("concurrency and rate contradict each other: sweep over one of them")
    if not axes and ("concurrency" in options or "rate" in options):
        raise ConfigError(f"a sweep needs a list: concurrency=[1, 2, 4, 8], or one of {', '.join(SWEEP_AXES)}")
    return axes or {"concurrency": DEFAULT_CONCURRENCY}


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple, range, set, frozenset))


def _parse_values(name: str, given: Collection[Any]) -> tuple[Any, ...]:
    """Return the values of one axis, each checked by itself, in increasing order where they are loads."""
    if not given:
        raise ConfigError(f"{name}={safe_repr(given)}: expected a list with at least one value")
    for value in given:
        LOAD_OPTIONS[name].parse(value)
    values = tuple(dict.fromkeys(given))
    return tuple(sorted(values)) if name in LOAD_AXES else values


def _select_first_values(axes: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    return {name: values[0] for name, values in axes.items()}


def _split_limits(limits: Sequence[Limit]) -> tuple[tuple[Limit, ...], tuple[Limit, ...]]:
    """Return the limits that hold at every level, and those that hold for the best one."""
    every = tuple(limit for limit in limits if limit.metric not in _SYSTEM_METRICS)
    return every, tuple(limit for limit in limits if limit.metric in _SYSTEM_METRICS)


def _replace_limits(spec: LoadSpec, limits: tuple[Limit, ...]) -> LoadSpec:
    return msgspec.structs.replace(spec, limits=limits)


def _reject_unfilled_point(spec: LoadSpec) -> LoadSpec:
    """Refuse a level that its own requests could not fill."""
    requests, clients = spec.workload.requests, spec.workload.concurrency
    if requests is not None and clients is not None and requests < clients:
        raise ConfigError(
            f"requests={requests}: fewer than the {clients} clients of a level, which would never be at work at once; "
            "give more, or none for 5 a client and at least 20"
        )
    return spec


def _build_single_load(options: Mapping[str, Any], settings: Settings) -> LoadSpec:
    """Return the load of one client: what the levels are compared with."""
    kept = {word: value for word, value in options.items() if word not in {"rate", "arrival", "duration", "drain"}}
    load = build_load_spec({**kept, "concurrency": 1, "requests": SINGLE_REQUESTS}, default_model=settings.model)
    return msgspec.structs.replace(load, limits=tuple(limit for limit in load.limits if limit.metric == "error_rate"))


def _check_min_knee(least: float | None, axis: str, axes: Mapping[str, tuple[Any, ...]]) -> None:
    if least is None:
        return
    if axis not in LOAD_AXES:
        raise ConfigError(f"min_knee={least:g}: a sweep over {axis} has no knee; sweep over concurrency or rate")
    if least > axes[axis][-1]:
        raise ConfigError(f"min_knee={least:g}: no level is that high; add it to {axis}={safe_repr(list(axes[axis]))}")


def _get_throughput(summary: Summary) -> float:
    for name in ("throughput", "throughput_whole", "qps"):
        if name in summary.metrics:
            return summary.metrics[name].value or 0.0
    return 0.0


def _build_summary(found: Sweep) -> str:
    """Say in one line what the sweep found, of the first curve."""
    levels = sum(len(curve.levels) for curve in found.curves)
    curve = found.curves[0]
    parts = [format_count(levels, "level")]
    if curve.knee:
        where, speed = _format_knee(curve.knee), _format_throughput(curve, curve.knee.throughput)
        grew = "throughput stops growing at" if curve.knee.reached else "throughput still grows at"
        parts.append(f"{grew} {where} ({speed})")
    if curve.saturation:
        parts.append(f"TTFT takes off at {format_number(curve.saturation.at)}")
    if curve.stopped:
        parts.append("stopped early")
    return ", ".join(parts) + (f"; {len(found.curves) - 1} more curves" if len(found.curves) > 1 else "")


def _format_knee(knee: Knee) -> str:
    return format_position({knee.axis: int(knee.at) if knee.axis == "concurrency" else knee.at})


def _format_throughput(curve: Curve, made: float) -> str:
    return f"{format_number(made)} {'requests' if curve.levels[0].throughput is None else 'tokens'}/s"
