"""The maximum sustained concurrency: the marker ``ollama_max_concurrency``, ``ollama.find_max_concurrency(...)``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pytest_ollama_perf.analysis import BoundCheck, FindingMetric, check_bound
from pytest_ollama_perf.analysis.sustained import (
    MaxConcurrency,
    Probe,
    build_probe,
    is_settled,
    judge_probe,
    pool_runs,
    search_concurrency,
)
from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.config.load_spec import LoadSpec, build_load_spec
from pytest_ollama_perf.config.markers import MARKERS
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.text import safe_repr
from pytest_ollama_perf.core.verdict import Hint, Verdict, VerdictStatus
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.experiments.experiment_results import MaxConcurrencyResult
from pytest_ollama_perf.experiments.load import ExperimentPart, combine_verdicts, find_last_findings
from pytest_ollama_perf.experiments.results import EvaluationRecorder, Measure
from pytest_ollama_perf.harness.evaluation import Evaluation, ExperimentContext, run_load
from pytest_ollama_perf.harness.history import count_gating_pairs
from pytest_ollama_perf.metrics import METRICS, Shape

_MARKER = MARKERS["ollama_max_concurrency"]
_SHORT_LIMITS = {"max_latency": "max_p95_latency", "max_ttft": "max_p95_ttft"}
_MIN_REQUESTS_PER_CLIENT = 2


@dataclass(frozen=True)
class MaxConcurrencyTest:
    """What a search is asked for; ``words`` are those of every probe's load, ``spec`` is that of one client."""

    options: Mapping[str, Any]
    spec: LoadSpec
    start: int
    maximum: int
    repeats: int
    min_concurrency: int | None
    default_model: str | None

    @property
    def models(self) -> tuple[str, ...]:
        """The models that the search needs."""
        return (self.spec.workload.model,)

    @property
    def gating(self) -> int:
        """The number of pairs (test, metric) that history can gate."""
        return count_gating_pairs(self.spec.margins)

    def build_load(self, concurrency: int) -> LoadSpec:
        """Return the load of one probe: at least two requests a client, or not all of them would be at work at once."""
        options = {**self.options, "concurrency": concurrency}
        if "requests" in options:
            options["requests"] = max(options["requests"], _MIN_REQUESTS_PER_CLIENT * concurrency)
        return msgspec.structs.replace(build_load_spec(options, default_model=self.default_model), limits=())

    def run(self, context: ExperimentContext, test: str) -> Evaluation:
        """Search, and judge what was found."""
        return _MaxConcurrencyRunner(self, context, test).run()

    def result(self, recorder: EvaluationRecorder, test: str, measure: Measure) -> MaxConcurrencyResult:
        """Return the value of the fixture ``ollama_max_concurrency``."""
        return MaxConcurrencyResult(measure)


class _InvalidProbeError(Exception):
    """A probe that is no valid measurement ends the search."""


@dataclass
class _MaxConcurrencyRunner:
    """One search under way."""

    experiment: MaxConcurrencyTest
    context: ExperimentContext
    test: str
    parts: list[ExperimentPart] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)

    def run(self) -> Evaluation:
        self.context.collect_findings = lambda: (self._build_finding(),)
        try:
            search_concurrency(self.experiment.start, self.experiment.maximum, self._is_sustained)
        except _InvalidProbeError:
            return self._build_evaluation(combine_verdicts(self.parts, summary=""), self._build_finding())
        found = self._build_finding()
        self._record_history(found.concurrency)
        checks = tuple(self._check_bounds(found))
        found = msgspec.structs.replace(found, checks=checks)
        judged = [part for part in self.parts if part.verdict.status is not VerdictStatus.OK]
        verdict = combine_verdicts(judged, summary=_build_summary(found), checks=checks)
        if not found.concurrency and verdict.status is VerdictStatus.OK:
            verdict = msgspec.structs.replace(verdict, status=VerdictStatus.BROKEN)
        return self._build_evaluation(msgspec.structs.replace(verdict, hints=self._list_hints()), found)

    def _is_sustained(self, concurrency: int) -> bool:
        spec, runs = self.experiment.build_load(concurrency), []
        for turn in range(1, self.experiment.repeats + 1):
            again = f", run {turn} of at most {self.experiment.repeats}: too few requests so far" if turn > 1 else ""
            self.context.listener.show_message(f"trying concurrency {concurrency}{again}")
            runs.append(self._fire_probe(spec.workload, f"concurrency {concurrency}"))
            whole = pool_runs(runs)
            judged = judge_probe(self.experiment.spec.limits, *whole)
            if is_settled(judged):
                break
        self.probes.append(build_probe(concurrency, runs, whole, judged))
        return self.probes[-1].sustained

    def _fire_probe(self, workload: Workload, where: str) -> Run:
        evaluation = self.context.add_caption(where).fire(workload, self.test)
        cannot = not evaluation.verdict.is_usable
        self.parts.append(ExperimentPart(where, evaluation if cannot else _to_unjudged(evaluation)))
        if cannot:
            raise _InvalidProbeError
        return evaluation.run

    def _record_history(self, concurrency: int) -> None:
        """Keep and judge the load at the border as any other load, where this build has a history."""
        if not concurrency:
            return
        spec = self.experiment.build_load(concurrency)
        if self.context.history.is_active_for(self.context.history.load_runs(self.test, spec.workload, spec.baseline)):
            self.parts.append(ExperimentPart(f"concurrency {concurrency}", run_load(self.context, spec, self.test)))

    def _build_finding(self) -> MaxConcurrency:
        borne = [probe.concurrency for probe in self.probes if probe.sustained]
        broken = [probe for probe in self.probes if not probe.sustained]
        return MaxConcurrency(
            concurrency=max(borne, default=0),
            maximum=self.experiment.maximum,
            criteria=tuple(f"{limit.metric} {limit.stat}".rstrip() for limit in self.experiment.spec.limits),
            probes=tuple(self.probes),
            breach=min(broken, key=lambda probe: probe.concurrency, default=None),
        )

    def _check_bounds(self, found: MaxConcurrency) -> list[BoundCheck]:
        least = self.experiment.min_concurrency
        if least is None:
            return []
        one = check_bound(FindingMetric.MAX_CONCURRENCY, found.concurrency, ">=", least)
        if one.status is VerdictStatus.BROKEN and found.breach:
            reason = f"{one.reason}; concurrency {found.breach.concurrency}: {found.breach.reason}"
            return [msgspec.structs.replace(one, reason=reason)]
        borne = any(probe.sustained and probe.conclusive and probe.concurrency >= least for probe in self.probes)
        if one.status is VerdictStatus.OK and not borne:
            reason = f"{one.reason}, but there were too few requests to be conclusive; raise requests or repeats"
            return [msgspec.structs.replace(one, status=VerdictStatus.UNSURE, reason=reason)]
        return [one]

    def _list_hints(self) -> tuple[Hint, ...]:
        """What the greatest load suggests."""
        greatest = max(self.parts, key=lambda part: part.evaluation.run.workload.clients, default=None)
        return greatest.verdict.hints if greatest else ()

    def _build_evaluation(self, verdict: Verdict, found: MaxConcurrency) -> Evaluation:
        loads = tuple(load for part in self.parts for load in part.evaluation.loads)
        return Evaluation(verdict, loads, (found, *find_last_findings(self.parts)))


def _to_unjudged(evaluation: Evaluation) -> Evaluation:
    """Return the trial of a probe as no judgement: that every request fails is what the search is there to find."""
    verdict = msgspec.structs.replace(evaluation.verdict, status=VerdictStatus.OK, reason="measured, not judged")
    return Evaluation(verdict, evaluation.loads, evaluation.findings)


def _build_summary(found: MaxConcurrency) -> str:
    """Say in one line what was found."""
    breach = found.breach
    if breach is None:
        return f"sustained concurrency {found.concurrency} (highest level tested, maximum={found.maximum})"
    what = f"sustained concurrency {found.concurrency}" if found.concurrency else "no concurrency is sustained"
    unsure = "" if found.conclusive else " (too few requests to be conclusive)"
    return f"{what}{unsure}; concurrency {breach.concurrency}: {breach.reason}"


def list_option_names() -> tuple[str, ...]:
    """Return every argument of the marker."""
    return _MARKER.list_option_names()


def parse_options(options: Mapping[str, Any], settings: Settings) -> MaxConcurrencyTest:
    """Parse the marker's arguments; ``ConfigError`` explains what is wrong with them."""
    for name in _MARKER.excluded:
        if name in options:
            raise ConfigError(f"{name}={safe_repr(options[name])}: the search sets the load; pass start and maximum")
    own = _MARKER.read_own_options(options)
    load = {name: value for name, value in options.items() if name not in own} | _build_limits(own, options)
    spec = build_load_spec({**load, "concurrency": 1}, default_model=settings.model)
    _check_criteria(spec)
    _check_range(own)
    return MaxConcurrencyTest(
        options=load,
        spec=spec,
        start=own["start"],
        maximum=own["maximum"],
        repeats=own["repeats"],
        min_concurrency=own["min_concurrency"],
        default_model=settings.model,
    )


def _check_range(own: Mapping[str, Any]) -> None:
    start, maximum, least = own["start"], own["maximum"], own["min_concurrency"]
    if start > maximum:
        raise ConfigError(f"start={start}: it is above maximum={maximum}")
    if least is not None and least > maximum:
        raise ConfigError(f"min_concurrency={least}: it is above maximum={maximum}; raise maximum")


def _build_limits(own: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the search's own limits as those of a load: ``max_latency`` limits p95, ``success_rate`` the errors."""
    found = {}
    for name, long in _SHORT_LIMITS.items():
        if name in options:
            if long in options:
                raise ConfigError(f"{name} and {long} are the same limit: give one of them")
            found[long] = options[name]
    if "max_error_rate" in options:
        if "success_rate" in options:
            raise ConfigError("success_rate and max_error_rate are the same limit: give one of them")
        return found
    return found | {"max_error_rate": round(1 - own["success_rate"], 9)}


def _check_criteria(spec: LoadSpec) -> None:
    for limit in spec.limits:
        if METRICS[limit.metric].shape is Shape.PER_RUN and limit.metric != "error_rate":
            raise ConfigError(
                f"{limit.text}: {limit.metric} is a number of the whole server, not of one client; "
                "use max_latency, max_ttft, min_tps or another limit on a single request"
            )
