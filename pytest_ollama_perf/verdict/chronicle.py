"""A test's past as values to be shown: one number for each run and metric, what started an epoch, what is compared.

Only the newest ``MOST`` runs are told of; the verdict itself looks at no more than the newest ``WINDOW`` of one epoch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec

from pytest_ollama_perf.run import Run
from pytest_ollama_perf.text import inert
from pytest_ollama_perf.verdict.epoch import Acceptance, Change, History, borders, epoch_of
from pytest_ollama_perf.verdict.evidence import Evidence, of_run
from pytest_ollama_perf.verdict.gate import WINDOW, Rule, fit
from pytest_ollama_perf.verdict.run_value import POLICIES, value
from pytest_ollama_perf.verdict.trend import REFERENCE, Point, trend

METRICS = ("tps", "ttft", "latency")
"""The numbers that are told of."""

MOST = 60
STEPS = 101


class PastRun(msgspec.Struct, frozen=True, kw_only=True):
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


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """Where the trend of a metric stands: ``reference`` is the mean of the epoch's first runs, ``None`` as long as
    there are too few of them; ``slowdown`` and ``since`` (Unix seconds) are set where the newest runs are away from it.
    """

    reference: float | None = None
    missing: int = 0
    warns: bool = False
    slowdown: float = 0.0
    since: float | None = None


class Chronicle(msgspec.Struct, frozen=True, kw_only=True):
    """All runs, oldest first, the new ones last, and the requests of those compared with.

    ``baseline`` holds by metric up to 101 evenly spread order statistics of all their requests, ``None`` for a failed
    request's infinite time.
    """

    runs: tuple[PastRun, ...]
    baseline: dict[str, tuple[float | None, ...]] = {}
    drift: dict[str, Drift] = {}


def chronicle(history: History, now: Sequence[Run]) -> Chronicle:
    """Return the past that ``now``, at least one new run, was judged against."""
    compared = epoch_of(history, now[0], WINDOW).runs
    comparable = [*epoch_of(history, now[0]).runs, *now]
    shown = [*history.runs, *now][-MOST:]
    evidence = {run.id: of_run(run) for run in (*shown, *comparable)}
    stored = [evidence[run.id] for run in compared]
    return Chronicle(
        runs=tuple(_runs(history, now, {run.id for run in compared}, evidence, _outliers(stored)))[-MOST:],
        baseline={name: found for name in METRICS if (found := _steps(stored, name))},
        drift={name: _drift([evidence[run.id] for run in comparable], name) for name in METRICS},
    )


def _runs(
    history: History,
    now: Sequence[Run],
    compared: Collection[str],
    evidence: Mapping[str, Evidence],
    outliers: Mapping[str, tuple[str, ...]],
) -> Iterator[PastRun]:
    whole = msgspec.structs.replace(history, runs=(*history.runs, *now))
    new = {run.id for run in now}
    epoch = 1
    for run, starts in zip(whole.runs, borders(whole), strict=True):
        epoch += bool(starts)
        if run.id in evidence:
            yield PastRun(
                id=run.id,
                started_at=run.started_at,
                epoch=epoch,
                values={name: _value(evidence[run.id], name) for name in METRICS},
                compared=run.id in compared,
                now=run.id in new,
                outlier=outliers.get(run.id, ()),
                border=", ".join(map(_say, starts)),
            )


def _say(start: Change | Acceptance) -> str:
    return str(start) if isinstance(start, Change) else f"accepted: {inert(start.why, 100)}"


def _value(evidence: Evidence, name: str) -> float | None:
    found = value(POLICIES[name], evidence.reading(POLICIES[name]))
    return found if math.isfinite(found) else None


def _outliers(stored: Sequence[Evidence]) -> dict[str, tuple[str, ...]]:
    """Return by run the metrics in which the comparison left it out."""
    found: dict[str, tuple[str, ...]] = {}
    for name in METRICS:
        costs = {run.run: run.reading(POLICIES[name]) for run in stored}
        baseline = fit(costs.values(), Rule.of(POLICIES[name]))
        dropped = baseline.dropped if baseline else ()
        found |= {run: (*found.get(run, ()), name) for run, cost in costs.items() if cost in dropped}
    return found


def _steps(stored: Sequence[Evidence], name: str) -> tuple[float | None, ...]:
    values = sorted(number for run in stored for number in run.values(name))
    if not any(map(math.isfinite, values)):
        return ()
    last = len(values) - 1
    places = range(len(values)) if last < STEPS else (round(step * last / (STEPS - 1)) for step in range(STEPS))
    return tuple(number if math.isfinite(number := values[at]) else None for at in places)


def _drift(runs: Sequence[Evidence], name: str) -> Drift:
    one = POLICIES[name]
    points = [Point(run.at or 0.0, run.reading(one)) for run in runs]
    found = trend(points, Rule.of(one))
    reference = fit((point.cost for point in points[:REFERENCE]), Rule.of(one)) if not found.missing else None
    return Drift(
        reference=value(one, reference.mean) if reference else None,
        missing=found.missing,
        warns=found.warns,
        slowdown=found.slowdown if math.isfinite(found.slowdown) else 0.0,
        since=found.since,
    )
