"""Slow drift that no single comparison detects: a CUSUM (Page 1954) against a fixed reference.

The reference is the first runs of the epoch. It never moves; accepting a regression starts a new epoch. Before there
are enough later runs for the CUSUM, and to detect a reference that drifts itself, the first runs are tested for a
trend (Mann 1945, Kendall 1975).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import msgspec

from pytest_ollama_perf.analysis.epochs import Acceptance, Change, StoredRuns, find_epoch_starts, select_baseline
from pytest_ollama_perf.analysis.gate import BaselineFit, GateRule, fit_baseline
from pytest_ollama_perf.analysis.gate_parameters import GATE_PARAMETERS
from pytest_ollama_perf.analysis.run_value import POLICIES, RunEvidence, build_evidence, to_value
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.text import sanitize

REFERENCE_RUNS = 20
"""Number of runs, the first of the epoch, that form the reference."""

TREND_RUNS = REFERENCE_RUNS + 100
"""Number of runs that a drift is computed from: the reference and the newest ones."""

_CLIP = 2.0
_SLACK = 1.0
_THRESHOLD = 6.0
_RECENT_RUNS = 5
_MIN_LATER_RUNS = 7
"""The sum grows by at most 1 per run, so fewer later runs than this cannot exceed the threshold."""

_MIN_SLOPE_RUNS = 8
_SLOPE_Z = 3.29
"""A trend in the reference counts above this many standard deviations: one-sided p = 0.0005."""

_MIN_SLOPE_CHANGE = 0.02
"""A trend in the reference counts if its runs became slower by at least 2 %."""


@dataclass(frozen=True)
class DriftPoint:
    """A run's start (Unix seconds) and its cost (``run_value``)."""

    at: float
    cost: float


@dataclass(frozen=True)
class DriftResult:
    """The state after the last run.

    ``warns`` is set if the runs drifted; ``since`` is the time of the first run that did, ``slowdown`` how much slower
    the median of the newest five runs since then is (0.03: 3 %). ``missing`` is the number of runs that the reference
    lacks, ``undecided`` the number of runs until the absence of a warning means something. ``detectable`` is the
    slowdown that would have caused a warning. ``sums`` has the CUSUM after each run that follows the reference.
    """

    warns: bool = False
    since: float | None = None
    slowdown: float = 0.0
    missing: int = 0
    undecided: int = 0
    detectable: float | None = None
    sums: tuple[float, ...] = ()


def detect_drift(points: Iterable[DriftPoint], rule: GateRule) -> DriftResult:
    """Follow the runs of one epoch, oldest first. Runs without data (``NaN``) are skipped."""
    runs = [point for point in points if not math.isnan(point.cost)]
    early, later = runs[:REFERENCE_RUNS], runs[REFERENCE_RUNS:]
    found = _detect_early_drift(early, later)
    reference = fit_baseline((run.cost for run in early), rule)
    if len(early) < REFERENCE_RUNS or reference is None:
        missing = max(1, REFERENCE_RUNS - len(early))
        return replace(found, missing=missing, undecided=missing + _MIN_LATER_RUNS)
    sums = _compute_cusum(later, reference)
    found = replace(
        found,
        sums=sums,
        undecided=max(0, _MIN_LATER_RUNS - len(later)),
        detectable=math.expm1(_CLIP * reference.sd),
    )
    start = _find_start(sums)
    if found.warns or start == len(sums):
        return found
    recent = median(run.cost for run in later[start:][-_RECENT_RUNS:])
    return replace(
        found,
        warns=sums[-1] > _THRESHOLD,
        since=later[start].at,
        slowdown=_to_slowdown(recent - reference.mean),
    )


def _detect_early_drift(early: Sequence[DriftPoint], later: Sequence[DriftPoint]) -> DriftResult:
    """Test whether the first runs of the epoch became slower from run to run."""
    costs = [run.cost for run in early]
    if len(costs) < _MIN_SLOPE_RUNS or _compute_trend_z(costs) < _SLOPE_Z:
        return DriftResult()
    begin = median(costs[:_RECENT_RUNS])
    if median(costs[-_RECENT_RUNS:]) - begin < math.log1p(_MIN_SLOPE_CHANGE):
        return DriftResult()
    recent = median(run.cost for run in (*early, *later)[-_RECENT_RUNS:])
    return DriftResult(warns=True, since=early[0].at, slowdown=_to_slowdown(recent - begin))


def _compute_trend_z(values: Sequence[float]) -> float:
    """Return the Mann-Kendall statistic of a rising trend in standard deviations."""
    count = len(values)
    score = sum((later > value) - (later < value) for at, value in enumerate(values) for later in values[at + 1 :])
    return (score - 1) / math.sqrt(count * (count - 1) * (2 * count + 5) / 18)


def _to_slowdown(difference: float) -> float:
    return math.inf if difference == math.inf else math.expm1(difference)


def _compute_cusum(runs: Iterable[DriftPoint], reference: BaselineFit) -> tuple[float, ...]:
    sums, total = [], 0.0
    for run in runs:
        z = (run.cost - reference.mean) / reference.sd
        total = max(0.0, total + max(-_CLIP, min(_CLIP, z)) - _SLACK)
        sums.append(total)
    return tuple(sums)


def _find_start(sums: tuple[float, ...]) -> int:
    """Return the index of the first run after the sum was last 0; ``len(sums)`` if it is 0 now."""
    return next((index + 1 for index in range(len(sums) - 1, -1, -1) if sums[index] == 0.0), 0)


VIEW_METRICS = ("tps", "ttft", "latency")
"""Metrics whose drift is computed."""

MAX_VIEW_RUNS = 60
MAX_ORDER_STATISTICS = 101


class HistoryRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run. ``values`` has its value of each metric in the metric's unit; ``None`` if it has none.

    ``epoch`` increases with every border, and ``border`` describes what caused it. ``compared`` is set if the new runs
    were compared with this one; ``outlier`` lists the metrics in which it was excluded as an outlier.
    """

    id: str
    started_at: float
    epoch: int
    values: dict[str, float | None]
    compared: bool = False
    now: bool = False
    outlier: tuple[str, ...] = ()
    border: str = ""


class MetricDrift(msgspec.Struct, frozen=True, kw_only=True):
    """The drift of a metric: ``reference`` is the mean of the epoch's first runs, ``None`` until there are enough of
    them; ``slowdown`` and ``since`` (Unix seconds) are set if the newest runs differ from it.
    """

    reference: float | None = None
    missing: int = 0
    warns: bool = False
    slowdown: float = 0.0
    since: float | None = None


class HistoryView(msgspec.Struct, frozen=True, kw_only=True):
    """The newest runs, oldest first, the new ones last, and the requests of the baseline.

    ``baseline`` has for each metric up to 101 evenly spaced order statistics of all its requests; ``None`` is the
    infinite time of a failed request.
    """

    runs: tuple[HistoryRun, ...]
    baseline: dict[str, tuple[float | None, ...]] = {}
    drift: dict[str, MetricDrift] = {}


def build_history_view(history: StoredRuns, now: Sequence[Run]) -> HistoryView:
    """Return the history that ``now``, at least one new run, was compared with."""
    compared = select_baseline(history, now[0], GATE_PARAMETERS.window).runs
    comparable = [*select_baseline(history, now[0]).runs, *now]
    shown = [*history.runs, *now][-MAX_VIEW_RUNS:]
    evidence = {run.id: build_evidence(run) for run in (*shown, *comparable)}
    stored = [evidence[run.id] for run in compared]
    return HistoryView(
        runs=tuple(_list_runs(history, now, {run.id for run in compared}, evidence, _find_outliers(stored)))[
            -MAX_VIEW_RUNS:
        ],
        baseline={name: found for name in VIEW_METRICS if (found := _compute_order_statistics(stored, name))},
        drift={name: _build_drift([evidence[run.id] for run in comparable], name) for name in VIEW_METRICS},
    )


def _list_runs(
    history: StoredRuns,
    now: Sequence[Run],
    compared: Collection[str],
    evidence: Mapping[str, RunEvidence],
    outliers: Mapping[str, tuple[str, ...]],
) -> Iterator[HistoryRun]:
    whole = msgspec.structs.replace(history, runs=(*history.runs, *now))
    new = {run.id for run in now}
    epoch = 1
    for run, starts in zip(whole.runs, find_epoch_starts(whole), strict=True):
        epoch += bool(starts)
        if run.id in evidence:
            yield HistoryRun(
                id=run.id,
                started_at=run.started_at,
                epoch=epoch,
                values={name: _get_run_value(evidence[run.id], name) for name in VIEW_METRICS},
                compared=run.id in compared,
                now=run.id in new,
                outlier=outliers.get(run.id, ()),
                border=", ".join(map(_format_epoch_start, starts)),
            )


def _format_epoch_start(start: Change | Acceptance) -> str:
    return str(start) if isinstance(start, Change) else f"accepted: {sanitize(start.why, 100)}"


def _get_run_value(evidence: RunEvidence, name: str) -> float | None:
    found = to_value(POLICIES[name], evidence.compute_cost(POLICIES[name]))
    return found if math.isfinite(found) else None


def _find_outliers(stored: Sequence[RunEvidence]) -> dict[str, tuple[str, ...]]:
    """Return for each run the metrics in which it was excluded as an outlier."""
    found: dict[str, tuple[str, ...]] = {}
    for name in VIEW_METRICS:
        costs = {run.run: run.compute_cost(POLICIES[name]) for run in stored}
        baseline = fit_baseline(costs.values(), GateRule.from_policy(POLICIES[name]))
        dropped = baseline.dropped if baseline else ()
        found |= {run: (*found.get(run, ()), name) for run, cost in costs.items() if cost in dropped}
    return found


def _compute_order_statistics(stored: Sequence[RunEvidence], name: str) -> tuple[float | None, ...]:
    values = sorted(number for run in stored for number in run.values(name))
    if not any(map(math.isfinite, values)):
        return ()
    last = len(values) - 1
    places = (
        range(len(values))
        if last < MAX_ORDER_STATISTICS
        else (round(step * last / (MAX_ORDER_STATISTICS - 1)) for step in range(MAX_ORDER_STATISTICS))
    )
    return tuple(number if math.isfinite(number := values[at]) else None for at in places)


def _build_drift(runs: Sequence[RunEvidence], name: str) -> MetricDrift:
    one = POLICIES[name]
    points = [DriftPoint(run.at or 0.0, run.compute_cost(one)) for run in runs]
    found = detect_drift(points, GateRule.from_policy(one))
    reference = (
        fit_baseline((point.cost for point in points[:REFERENCE_RUNS]), GateRule.from_policy(one))
        if not found.missing
        else None
    )
    return MetricDrift(
        reference=to_value(one, reference.mean) if reference else None,
        missing=found.missing,
        warns=found.warns,
        slowdown=found.slowdown if math.isfinite(found.slowdown) else 0.0,
        since=found.since,
    )
