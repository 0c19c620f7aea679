"""Every number of a document in one flat list: what files for other tools are made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import count

import msgspec

from pytest_ollama_perf.metrics import METRICS, STATS, Shape
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


RESERVED_NAMES = frozenset({"baseline", "other"})
"""Names of series that are not loads of the test."""


def name_loads(loads: Sequence[LoadEntry]) -> list[str]:
    """Return one name for each load: what differs from the others, or ``run 1``, ``run 2`` if nothing does.

    Loads that are alike among others share a name, so that they can be shown as one.
    """
    if any(found := distinguish_loads(loads)):
        return [name or "other" for name in found]
    return ["this run"] if len(loads) == 1 else [f"run {number}" for number in range(1, len(loads) + 1)]


def distinguish_loads(loads: Sequence[LoadEntry]) -> list[str]:
    """Return for each load what differs from the others of its test: ``concurrency 4``; empty if nothing does.

    Two loads have the same name exactly if they are in the same group, see ``group_loads``.
    """
    fields = _list_differing_fields(loads)
    names: dict[int, str] = {}
    for load, group in zip(loads, group_loads(loads), strict=True):
        if group not in names:
            names[group] = _make_unique(_format_load_name(load, fields), names.values())
    return [names[group] for group in group_loads(loads)]


def group_loads(loads: Sequence[LoadEntry]) -> list[int]:
    """Return for each load the index of the first one that is alike: of equal arguments, model and servers."""
    fields = _list_differing_fields(loads)
    keys = [tuple(str(get(load)) for _, get in fields) for load in loads]
    return [keys.index(key) for key in keys]


def _list_differing_fields(loads: Sequence[LoadEntry]) -> list[tuple[str, Callable[[LoadEntry], object]]]:
    return [(form, get) for form, get in _DISTINGUISHING_FIELDS if len({str(get(load)) for load in loads}) > 1]


def _format_load_name(load: LoadEntry, fields: Sequence[tuple[str, Callable[[LoadEntry], object]]]) -> str:
    values = ((form, get(load)) for form, get in fields)
    return clean(", ".join(form.format(value) for form, value in values if value not in (None, "", [])), 80)


def _make_unique(name: str, taken: Collection[str]) -> str:
    """Return ``name``, numbered if it is taken: a name is cut, and a model may be called as a reserved one is."""
    if name not in taken and name not in RESERVED_NAMES:
        return name
    numbered = (f"{name} ({number})" for number in count(2))
    return next(each for each in numbered if each not in taken)


TYPICAL_STATS = ("", "p50", "p95", "p99")
"""What represents a metric if one number per run is wanted: its value, or these percentiles if it has none."""

_UNIT_SUFFIXES = {"B": "bytes", "°C": "celsius", "J/token": ""}
"""Units that a name outside has in other letters, or already."""


class MetricPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One number with its 95 % interval, in its metric's own unit; ``inf`` is a failed request's time.

    ``place`` identifies the load in its document: the index of the test and that of the first load that is alike.
    ``load`` is its name, empty if all loads of the test are alike. ``stat`` is empty for a value that is pooled or of
    the whole run; the number is computed from ``n`` values, ``failed`` of the requests failed.
    """

    place: tuple[int, int]
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
    for index, test in enumerate(document.tests):
        for load, group, name in zip(test.loads, group_loads(test.loads), distinguish_loads(test.loads), strict=True):
            yield from _list_load_points(test, load, (index, group), name)


def _list_load_points(test: TestEntry, load: LoadEntry, place: tuple[int, int], name: str) -> Iterator[MetricPoint]:
    for metric, entry in load.metrics.items():
        for stat in ("", *STATS):
            found = getattr(entry, stat or "value")
            if metric in METRICS and found is not msgspec.UNSET:
                yield _build_point(test, load, metric, stat, entry, found, place=place, name=name)


def _build_point(
    test: TestEntry,
    load: LoadEntry,
    metric: str,
    stat: str,
    entry: MetricEntry,
    value: float | None,
    *,
    place: tuple[int, int],
    name: str,
) -> MetricPoint:
    low, high = entry.ci.get(stat or "value", (None, None))
    return MetricPoint(
        place=place,
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
    alike: dict[tuple[tuple[int, int], str, str], list[MetricPoint]] = {}
    for point in list_points(document):
        alike.setdefault((point.place, point.metric, point.stat), []).append(point)
    return [_pick_median(group) for group in alike.values()]


def _is_typical(number: MetricPoint) -> bool:
    has_value = METRICS[number.metric].shape is not Shape.PER_REQUEST
    return number.stat == "" if has_value else number.stat in TYPICAL_STATS


def _pick_median(group: Sequence[MetricPoint]) -> MetricPoint:
    ordered = sorted(group, key=lambda number: number.value)
    return ordered[(len(ordered) - 1) // 2]
