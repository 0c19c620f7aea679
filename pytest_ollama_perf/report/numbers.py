"""Every number of a document in one flat list: what files for other tools are made from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import msgspec

from pytest_ollama_perf.metric import METRICS, STATS, Shape
from pytest_ollama_perf.report import series
from pytest_ollama_perf.report.json_report import Document, LoadEntry, MetricEntry, TestEntry
from pytest_ollama_perf.report.layout import clean

TYPICAL = ("", "p50", "p95", "p99")
"""What stands for a metric where one number a run has to do: its value, or these percentiles where it has none."""

_UNITS = {"B": "bytes", "°C": "celsius", "J/token": ""}
"""Units that a name outside has in other letters, or already."""


class Number(msgspec.Struct, frozen=True, kw_only=True):
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
        unit = _UNITS.get(self.unit, self.unit.replace("/", "_per_"))
        return "_".join(filter(None, (self.metric, self.stat, unit)))

    @property
    def benchmark(self) -> str:
        """The test, and which of its loads."""
        return f"{self.test} ({self.load})" if self.load else self.test


def numbers(document: Document) -> Iterator[Number]:
    """Yield every number of every load, in the order of the document."""
    for test in document.tests:
        for load, name in zip(test.loads, series.apart(test.loads), strict=True):
            yield from numbers_of(test, load, name)


def numbers_of(test: TestEntry, load: LoadEntry, name: str) -> Iterator[Number]:
    """Yield every number of one load of a test; ``name`` tells it from the others."""
    for metric, entry in load.metrics.items():
        for stat in ("", *STATS):
            found = getattr(entry, stat or "value")
            if metric in METRICS and found is not msgspec.UNSET:
                yield _number(test, load, name, metric, stat, entry, found)


def _number(
    test: TestEntry, load: LoadEntry, name: str, metric: str, stat: str, entry: MetricEntry, value: float | None
) -> Number:
    low, high = entry.ci.get(stat or "value", (None, None))
    return Number(
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


def typical(document: Document) -> list[Number]:
    """Return one number for each test, load and ``TYPICAL`` statistic: of loads that are alike, the median run's."""
    return [number for number in medians(document) if _is_typical(number)]


def medians(document: Document) -> list[Number]:
    """Return every number once for each test and load: of loads that are alike, the median run's."""
    chosen = list(numbers(document))
    ordered = sorted(chosen, key=_same)
    medians = {same: _median(list(group)) for same, group in groupby(ordered, key=_same)}
    return [medians[same] for same in dict.fromkeys(map(_same, chosen))]


def _is_typical(number: Number) -> bool:
    has_value = METRICS[number.metric].shape is not Shape.PER_REQUEST
    return number.stat == "" if has_value else number.stat in TYPICAL


def _same(number: Number) -> tuple[str, str, str, str]:
    return number.test, number.load, number.metric, number.stat


def _median(group: Sequence[Number]) -> Number:
    ordered = sorted(group, key=lambda number: number.value)
    return ordered[(len(ordered) - 1) // 2]
