"""The verdict of a test against its history: the gate judges every gating metric, and the worst status counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from types import MappingProxyType

from pytest_ollama_perf.analysis.gate import ErrorBudget, GateRule, Judgement, compute_holm_levels, judge_runs
from pytest_ollama_perf.analysis.gate_parameters import GATE_PARAMETERS
from pytest_ollama_perf.analysis.run_value import (
    GATING_METRICS,
    POLICIES,
    MetricPolicy,
    RunEvidence,
    get_policy,
    sort_by_time,
    to_change,
    to_metric_change,
    to_value,
)
from pytest_ollama_perf.core.sample import Sample
from pytest_ollama_perf.core.verdict import Hint, HintCode, VerdictRow, VerdictStatus, get_worst_status
from pytest_ollama_perf.metrics import format_count, format_distinct, format_label, format_percent


@dataclass(frozen=True)
class MetricVerdict:
    """One metric of a test. ``history`` and ``candidates`` are the run values that ``judgement`` was made of."""

    policy: MetricPolicy
    rule: GateRule
    history: tuple[float, ...]
    candidates: tuple[float, ...]
    judgement: Judgement
    refusal: str = ""

    @property
    def status(self) -> VerdictStatus:
        """The status of this metric."""
        return VerdictStatus.UNSURE if self.refusal else self.judgement.status

    @property
    def baseline(self) -> float | None:
        """The mean of the stored runs, in the metric's unit."""
        return to_value(self.policy, self.judgement.baseline.mean) if self.judgement.baseline else None

    @property
    def now(self) -> float:
        """The candidate runs together, in the metric's own unit; ``NaN`` without data."""
        return to_value(self.policy, math.fsum(self.candidates) / len(self.candidates)) if self.candidates else math.nan

    @property
    def change(self) -> float:
        """The relative change of the metric itself: -0.1 for a tenth fewer tokens/s."""
        return to_change(self.policy, self.judgement.d)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of ``change``."""
        ends = (to_metric_change(self.policy, self.judgement.low), to_metric_change(self.policy, self.judgement.high))
        return (min(ends), max(ends))

    @property
    def reason(self) -> str:
        """One line that is complete by itself."""
        return self.refusal or _REASONS.get(self.status, _format_comparison)(self)

    @property
    def row(self) -> VerdictRow:
        """The row of the report's table."""
        low, high = self.interval
        return VerdictRow(
            metric=self.policy.metric.name,
            stat=self.policy.stat,
            status=self.status,
            value=self.now,
            reason=self.reason,
            baseline=self.baseline,
            change=self.change,
            low=low,
            high=high,
            margin=self.rule.margin,
        )


@dataclass(frozen=True)
class TestVerdict:
    """All judged metrics of a test; the most severe status is that of the test. Without a metric there was no data."""

    __test__ = False

    test: str
    metrics: tuple[MetricVerdict, ...]

    @property
    def status(self) -> VerdictStatus:
        """The most severe status of all metrics; unsure without metrics."""
        return (
            get_worst_status(tuple(metric.status for metric in self.metrics)) if self.metrics else VerdictStatus.UNSURE
        )

    @property
    def reason(self) -> str:
        """The reason for the status, on one line."""
        speaker = self.speaker
        return speaker.reason if speaker else "no data: no candidate run has a value for a metric that can gate"

    @property
    def speaker(self) -> MetricVerdict | None:
        """The metric that ``reason`` is about: the first with the most severe status."""
        return next((metric for metric in self.metrics if metric.status is self.status), None)

    @property
    def again(self) -> bool:
        """Whether one more candidate run is asked for."""
        return self.status is VerdictStatus.UNSURE and any(
            metric.judgement.again and not metric.refusal for metric in self.metrics
        )

    @property
    def suspect(self) -> bool:
        """Whether some metric looks so much worse that further runs could convict it."""
        return any(metric.judgement.suspect and not metric.refusal for metric in self.metrics)


def judge_test(
    history: Iterable[RunEvidence],
    candidates: Iterable[RunEvidence],
    names: Sequence[str] = (),
    *,
    margins: Mapping[str, float] | None = None,
    max_runs: int = GATE_PARAMETERS.max_runs,
    family: ErrorBudget | None = None,
) -> TestVerdict:
    """Judge the candidate runs of one test against its stored runs of the same epoch.

    Without ``names`` the metrics that gate by default are judged or, if none of those was recorded, all that were
    recorded. A metric that only the candidates have is new, and omitted if another one has a history. ``family`` is the
    error budget of the build; by default it covers only these metrics.
    """
    stored, fresh = sort_by_time(tuple(history)), tuple(candidates)
    policies = [get_policy(name) for name in names] or _select_recorded(stored, fresh)
    family = family or ErrorBudget(len(policies))
    metrics = tuple(_judge_metric(one, stored, fresh, margins or {}, max_runs, family.alpha) for one in policies)
    return TestVerdict(fresh[0].test if fresh else "", metrics)


def judge_build(tests: Sequence[TestVerdict]) -> tuple[TestVerdict, ...]:
    """Judge tests again as one build: a regression has to hold at the level that Holm 1979 leaves it."""
    p_values = [_get_p(metric) for test in tests for metric in test.metrics]
    levels = iter(compute_holm_levels(p_values))
    return tuple(
        replace(test, metrics=tuple(_judge_at(metric, next(levels)) for metric in test.metrics)) for test in tests
    )


def _get_p(metric: MetricVerdict) -> float:
    return 1.0 if math.isnan(metric.judgement.p) else metric.judgement.p


def _judge_at(metric: MetricVerdict, alpha: float) -> MetricVerdict:
    if metric.status is not VerdictStatus.REGRESSED:
        return metric
    return replace(metric, judgement=judge_runs(metric.history, metric.candidates, metric.rule, alpha))


def _select_recorded(stored: Sequence[RunEvidence], fresh: Sequence[RunEvidence]) -> list[MetricPolicy]:
    """Return the gating metrics with a history, or those only candidates have; other metrics where there are none."""
    pooled = [one for one in POLICIES.values() if not one.stat]
    for gating in (True, False):
        for runs in (stored, fresh):
            found = [one for one in pooled if (one.name in GATING_METRICS) is gating and _has_values(runs, one)]
            if found:
                return found
    return []


def _has_values(runs: Iterable[RunEvidence], one: MetricPolicy) -> bool:
    return any(not math.isnan(run.compute_cost(one)) for run in runs)


def _judge_metric(
    one: MetricPolicy,
    stored: Sequence[RunEvidence],
    fresh: Sequence[RunEvidence],
    margins: Mapping[str, float],
    max_runs: int,
    alpha: float,
) -> MetricVerdict:
    rule = GateRule.from_policy(
        one, margins.get(one.name), max_runs, _estimate_scatter(one, [*stored[-GATE_PARAMETERS.window :], *fresh])
    )
    history = tuple(run.compute_cost(one) for run in stored)
    candidates = tuple(run.compute_cost(one) for run in fresh)
    fewest = min((run.requests for run in fresh if run.requests), default=one.least_requests)
    return MetricVerdict(
        one,
        rule,
        history,
        candidates,
        judge_runs(history, candidates, rule, alpha),
        one.explain_refusal(fewest),
    )


def _estimate_scatter(one: MetricPolicy, runs: Sequence[RunEvidence]) -> float:
    """Return the median of the runs' standard errors from their requests; a stalled run does not count more."""
    found = [run.estimate_scatter(one) for run in runs]
    return median(found) if found else 0.0


def _format_metric_name(metric: MetricVerdict) -> str:
    return format_label(metric.policy.metric.name, metric.policy.stat)


def _format_comparison(metric: MetricVerdict) -> str:
    """``tps -9.1 % (84.1 /s -> 76.5 /s), margin 5 %, 2 runs against 10 stored``."""
    found = metric.judgement
    before, after = format_distinct(metric.policy.metric.name, metric.baseline or 0.0, metric.now)
    stored = len(found.baseline.kept) if found.baseline else 0
    return (
        f"{_format_metric_name(metric)} {format_percent(metric.change, signed=True)} ({before} -> {after}), "
        f"margin {format_percent(metric.rule.margin)}, {format_count(found.runs, 'run')} against {stored} stored"
    )


def _format_unsure(metric: MetricVerdict) -> str:
    found = metric.judgement
    if math.isnan(found.d):
        return f"{_format_metric_name(metric)}: a candidate run has no data"
    return f"{_format_comparison(metric)}: inconclusive, {_format_settling(found)}"


def _format_settling(found: Judgement) -> str:
    smallest = f"changes below {format_percent(found.detectable)} cannot be detected yet"
    if found.more_runs is not None:
        return f"{smallest}; conclusive with {format_count(found.more_runs, 'run')}"
    if found.more_stored is not None:
        return f"{smallest}; conclusive with {format_count(found.more_stored, 'stored run')}"
    return f"{smallest}; more than 20 runs would be needed"


def _format_new(metric: MetricVerdict) -> str:
    return f"{_format_metric_name(metric)}: no stored run to compare with"


_REASONS = {VerdictStatus.UNSURE: _format_unsure, VerdictStatus.NEW: _format_new}


PHASES = MappingProxyType(
    {
        "load": "loading the model",
        "queue": "the server's queue",
        "prefill": "prefill",
        "decode": "decode",
        "network": "network and client",
    }
)
"""Phases in the order of a request, and their names in a sentence."""

_MIN_SHARE = 0.2
_MIN_CHANGE = 0.03
_MIN_CHANGE_S = 0.001
_DEVIATIONS = 3.0


@dataclass(frozen=True)
class PhaseChange:
    """One phase in the baseline and now, in seconds; ``direction``: +1 grew, -1 shrank, 0 no clear change."""

    phase: str
    baseline_s: float
    now_s: float
    direction: int


def compute_phase_medians(samples: Iterable[Sample]) -> dict[str, float]:
    """Return the median seconds of each phase over the requests that succeeded; empty without server counters.

    Network and client is what is left of the latency: ``latency - total_duration``.
    """
    splits = [_split_phases(sample) for sample in samples if sample.ok and sample.counters.total_duration_ns]
    return {phase: median(split[phase] for split in splits) / 1e9 for phase in PHASES} if splits else {}


def _split_phases(sample: Sample) -> dict[str, int]:
    counters = sample.counters
    return {
        "load": counters.load_duration_ns or 0,
        "queue": counters.queue_ns or 0,
        "prefill": counters.prompt_eval_duration_ns or 0,
        "decode": counters.eval_duration_ns or 0,
        "network": max(0, sample.done_ns - sample.start_ns - (counters.total_duration_ns or 0)),
    }


def compare_phases(
    baseline: Sequence[Mapping[str, float]], now: Sequence[Mapping[str, float]]
) -> tuple[PhaseChange, ...]:
    """Compare the phases of the baseline's runs with those of the candidate runs.

    A phase moved where the medians differ by more than its usual spread between runs (three standard deviations by the
    MAD), by 3 % and 1 ms, and by at least a fifth of the largest move.
    """
    pairs = {phase: (_list_values(baseline, phase), _list_values(now, phase)) for phase in PHASES}
    known = {phase: (before, after) for phase, (before, after) in pairs.items() if before and after}
    largest = max((abs(median(after) - median(before)) for before, after in known.values()), default=0.0)
    return tuple(_compare_phase(phase, before, after, largest) for phase, (before, after) in known.items())


def _list_values(runs: Iterable[Mapping[str, float]], phase: str) -> list[float]:
    return [run[phase] for run in runs if phase in run]


def _compare_phase(phase: str, before: Sequence[float], after: Sequence[float], largest: float) -> PhaseChange:
    was, is_ = median(before), median(after)
    spread = 1.4826 * median(abs(value - was) for value in before)
    least = max(_MIN_CHANGE_S, _MIN_CHANGE * was, _DEVIATIONS * spread, _MIN_SHARE * largest)
    direction = 0 if abs(is_ - was) < least else 1 if is_ > was else -1
    return PhaseChange(phase, was, is_, direction)


def explain_phases(found: Sequence[PhaseChange]) -> str:
    """Name the phases that changed: "the server's queue grew, prefill and decode did not"; empty if none did."""
    grew = [PHASES[move.phase] for move in found if move.direction > 0]
    shrank = [PHASES[move.phase] for move in found if move.direction < 0]
    still = [PHASES[move.phase] for move in found if move.phase in _NAMED_WHEN_UNCHANGED and not move.direction]
    if not grew and not shrank:
        return ""
    parts = [f"{_join_names(names)} {verb}" for names, verb in ((grew, "grew"), (shrank, "shrank")) if names]
    rest = [f"{_join_names(still)} did not"] if still else []
    return ", ".join([*parts, *rest])


_NAMED_WHEN_UNCHANGED = frozenset({"queue", "prefill", "decode"})


def _join_names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def suggest_longer_runs(found: TestVerdict) -> tuple[Hint, ...]:
    """Suggest longer runs if the requests of single runs vary too much for a conclusive verdict."""
    wide = [metric.policy.name for metric in found.metrics if metric.rule.has_shared_variance]
    if not wide or found.status not in {VerdictStatus.UNSURE, VerdictStatus.REGRESSED}:
        return ()
    text = f"{' and '.join(wide)} varies widely within a run: use longer runs (requests, num_predict)"
    return (Hint(code=HintCode.LONGER_RUNS, text=text),)
