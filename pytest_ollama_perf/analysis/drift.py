"""Slow drift that no single comparison sees: a CUSUM (Page 1954) against a reference that stays where it was pinned.

The reference is the first runs of the epoch and never moves by itself; accepting a regression starts a new epoch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import msgspec

from pytest_ollama_perf.analysis.epochs import Acceptance, Change, StoredRuns, find_epoch_starts, select_baseline
from pytest_ollama_perf.analysis.gate import BaselineFit, GateRule, fit_baseline
from pytest_ollama_perf.analysis.gate_parameters import GATE_PARAMETERS
from pytest_ollama_perf.analysis.run_value import POLICIES, RunEvidence, build_evidence, to_value
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.text import sanitize

REFERENCE_RUNS = 20
"""How many runs, the first of the epoch, are the reference."""

_CLIP = 2.0
_SLACK = 1.0
_THRESHOLD = 6.0
_RECENT_RUNS = 5


@dataclass(frozen=True)
class DriftPoint:
    """A run's time (Unix seconds) and its cost (``run_value``)."""

    at: float
    cost: float


@dataclass(frozen=True)
class DriftResult:
    """What the sum says after the last run.

    ``warns`` is set while it stands above the threshold; ``since`` is the time of the first run after it last stood at
    0, ``slowdown`` how much the median of the newest five runs since then is above the reference (0.03: 3 % slower).
    ``missing`` says how many runs the reference still lacks. ``sums`` has one value for each run after it.
    """

    warns: bool = False
    since: float | None = None
    slowdown: float = 0.0
    missing: int = 0
    sums: tuple[float, ...] = ()


def detect_drift(points: Iterable[DriftPoint], rule: GateRule) -> DriftResult:
    """Follow the runs of one epoch, oldest first. Runs without data (``NaN``) are passed over."""
    runs = [point for point in points if not math.isnan(point.cost)]
    reference = fit_baseline((run.cost for run in runs[:REFERENCE_RUNS]), rule)
    if len(runs) < REFERENCE_RUNS or reference is None:
        return DriftResult(missing=max(1, REFERENCE_RUNS - len(runs)))
    later = runs[REFERENCE_RUNS:]
    sums = _compute_cusum(later, reference)
    start = _find_start(sums)
    if start == len(sums):
        return DriftResult(sums=sums)
    recent = median(run.cost for run in later[start:][-_RECENT_RUNS:])
    slowdown = math.inf if recent == math.inf else math.expm1(recent - reference.mean)
    return DriftResult(sums[-1] > _THRESHOLD, later[start].at, slowdown, sums=sums)


def _compute_cusum(runs: Iterable[DriftPoint], reference: BaselineFit) -> tuple[float, ...]:
    sums, total = [], 0.0
    for run in runs:
        z = (run.cost - reference.mean) / reference.sd
        total = max(0.0, total + max(-_CLIP, min(_CLIP, z)) - _SLACK)
        sums.append(total)
    return tuple(sums)


def _find_start(sums: tuple[float, ...]) -> int:
    """Return the index of the first run after the sum last stood at 0; ``len(sums)`` where it stands there now."""
    return next((index + 1 for index in range(len(sums) - 1, -1, -1) if sums[index] == 0.0), 0)


VIEW_METRICS = ("tps", "ttft", "latency")
"""The numbers that are told of."""

MAX_VIEW_RUNS = 60
MAX_ORDER_STATISTICS = 101


class HistoryRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run. ``values`` holds its run values by metric, in the metric's own unit; ``None`` where it has none.

    ``epoch`` counts up with every border; ``border`` says in words what that was; ``compared`` tells whether the new
    runs were judged against it, ``outlier`` in which metrics it was left out of that.
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
    """Where the trend of a metric stands: ``reference`` is the mean of the epoch's first runs, ``None`` as long as
    there are too few of them; ``slowdown`` and ``since`` (Unix seconds) are set where the newest runs are away from it.
    """

    reference: float | None = None
    missing: int = 0
    warns: bool = False
    slowdown: float = 0.0
    since: float | None = None


class HistoryView(msgspec.Struct, frozen=True, kw_only=True):
    """All runs, oldest first, the new ones last, and the requests of those compared with.

    ``baseline`` holds by metric up to 101 evenly spread order statistics of all their requests, ``None`` for a failed
    request's infinite time.
    """

    runs: tuple[HistoryRun, ...]
    baseline: dict[str, tuple[float | None, ...]] = {}
    drift: dict[str, MetricDrift] = {}


def build_history_view(history: StoredRuns, now: Sequence[Run]) -> HistoryView:
    """Return the past that ``now``, at least one new run, was judged against."""
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
    """Return by run the metrics in which the comparison left it out."""
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
