"""Every number of a document in one flat list: what files for other tools are made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import msgspec

from pytest_ollama_perf.metrics.definitions import METRICS, STATS, Shape
from pytest_ollama_perf.report.document import Document, LoadEntry, MetricEntry, TestEntry
from pytest_ollama_perf.report.facts import redact_url
from pytest_ollama_perf.report.tables import clean

_DISTINGUISHING_FIELDS: tuple[tuple[str, Callable[[LoadEntry], object]], ...] = (
    ("{}", lambda load: load.workload.model),
    ("concurrency {}", lambda load: load.workload.concurrency),
    ("{} requests/s", lambda load: load.workload.rate),
    ("{}", lambda load: ", ".join(sorted(map(redact_url, load.before)))),
    ("num_ctx {}", lambda load: load.workload.num_ctx),
    ("prompt {} words", lambda load: load.workload.prompt_words),
    ("num_predict {}", lambda load: load.workload.num_predict),
    ("{}", lambda load: load.workload.endpoint.value),
    ("{}", lambda load: "cold" if load.workload.cold else "warm"),
    ("options {}", lambda load: sorted(load.workload.options.items(), key=str)),
)


def name_loads(loads: Sequence[LoadEntry]) -> list[str]:
    """Return one name for each load: what tells it from the others, or ``run 1``, ``run 2`` where nothing does.

    Loads that are alike among others share a name, so that they can be shown as one.
    """
    if any(found := distinguish_loads(loads)):
        return [name or "other" for name in found]
    return ["this run"] if len(loads) == 1 else [f"run {number}" for number in range(1, len(loads) + 1)]


def distinguish_loads(loads: Sequence[LoadEntry]) -> list[str]:
    """Return for each load what tells it from the others of its test: ``concurrency 4``; empty where nothing does."""
    telling = [(form, get) for form, get in _DISTINGUISHING_FIELDS if len({str(get(load)) for load in loads}) > 1]
    return [_format_load_name(load, telling) for load in loads]


def _format_load_name(load: LoadEntry, telling: Sequence[tuple[str, Callable[[LoadEntry], object]]]) -> str:
    values = ((form, get(load)) for form, get in telling)
    return clean(", ".join(form.format(value) for form, value in values if value not in (None, "", [])), 80)


TYPICAL_STATS = ("", "p50", "p95", "p99")
"""What stands for a metric where one number a run has to do: its value, or these percentiles where it has none."""

_UNIT_SUFFIXES = {"B": "bytes", "°C": "celsius", "J/token": ""}
"""Units that a name outside has in other letters, or already."""


class MetricPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One number with its 95 % interval, in its metric's own unit; ``inf`` is a failed request's time.

    ``load`` tells the loads of one test apart and is empty where they are alike; ``stat`` is empty for a value that is
    pooled or of the whole run; ``n`` values stand behind it, ``failed`` of the requests failed.
    """

    test: str
    verdict: str
    load: str
    run_id: str
    started_at: float
    model: str
    metric: str
    stat: str
    unit: str
    better: str
    value: float
    low: float | None
    high: float | None
    n: int
    failed: int

    @property
    def name(self) -> str:
        """What the number is called outside, its unit in the name: ``ttft_p50_s``."""
        unit = _UNIT_SUFFIXES.get(self.unit, self.unit.replace("/", "_per_"))
        return "_".join(filter(None, (self.metric, self.stat, unit)))

    @property
    def benchmark(self) -> str:
        """The test, and which of its loads."""
        return f"{self.test} ({self.load})" if self.load else self.test


def list_points(document: Document) -> Iterator[MetricPoint]:
    """Yield every number of every load, in the order of the document."""
    for test in document.tests:
        for load, name in zip(test.loads, distinguish_loads(test.loads), strict=True):
            yield from list_load_points(test, load, name)


def list_load_points(test: TestEntry, load: LoadEntry, name: str) -> Iterator[MetricPoint]:
    """Yield every number of one load of a test; ``name`` tells it from the others."""
    for metric, entry in load.metrics.items():
        for stat in ("", *STATS):
            found = getattr(entry, stat or "value")
            if metric in METRICS and found is not msgspec.UNSET:
                yield _build_point(test, load, name, metric, stat, entry, found)


def _build_point(
    test: TestEntry, load: LoadEntry, name: str, metric: str, stat: str, entry: MetricEntry, value: float | None
) -> MetricPoint:
    low, high = entry.ci.get(stat or "value", (None, None))
    return MetricPoint(
        test=clean(test.test),
        verdict=test.verdict.value,
        load=name,
        run_id=clean(load.run_id, 100),
        started_at=load.started_at,
        model=clean(load.model, 200),
        metric=metric,
        stat=stat,
        unit=entry.unit,
        better=entry.better,
        value=math.inf if value is None else float(value),
        low=low,
        high=high,
        n=entry.n,
        failed=entry.failed,
    )


def select_typical(document: Document) -> list[MetricPoint]:
    """Return one number for each test, load and ``TYPICAL`` statistic: of loads that are alike, the median run's."""
    return [number for number in select_medians(document) if _is_typical(number)]


def select_medians(document: Document) -> list[MetricPoint]:
    """Return every number once for each test and load: of loads that are alike, the median run's."""
    chosen = list(list_points(document))
    ordered = sorted(chosen, key=_build_point_key)
    medians = {same: _pick_median(list(group)) for same, group in groupby(ordered, key=_build_point_key)}
    return [medians[same] for same in dict.fromkeys(map(_build_point_key, chosen))]


def _is_typical(number: MetricPoint) -> bool:
    has_value = METRICS[number.metric].shape is not Shape.PER_REQUEST
    return number.stat == "" if has_value else number.stat in TYPICAL_STATS


def _build_point_key(number: MetricPoint) -> tuple[str, str, str, str]:
    return number.test, number.load, number.metric, number.stat


def _pick_median(group: Sequence[MetricPoint]) -> MetricPoint:
    ordered = sorted(group, key=lambda number: number.value)
    return ordered[(len(ordered) - 1) // 2]
