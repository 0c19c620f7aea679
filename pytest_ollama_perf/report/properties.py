"""Properties of a test for the reports of others: JUnit XML, pytest-reportlog, pytest-html, Allure.

Names carry their unit: ``_s`` are seconds, ``tps`` tokens per second, ``qps`` requests per second, a rate is a share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from statistics import median_low

from pytest_ollama_perf.metric import METRICS, Unit
from pytest_ollama_perf.report.layout import clean
from pytest_ollama_perf.report.result import LoadResult, TestResult
from pytest_ollama_perf.workload import identity

PREFIX = "ollama."

SHOWN = (
    ("tps", ("",)),
    ("throughput", ("",)),
    ("qps", ("",)),
    ("ttft", ("p50", "p95")),
    ("latency", ("p50", "p95")),
    ("queue", ("p50",)),
    ("error_rate", ("",)),
)

Property = tuple[str, str | float]


def properties(result: TestResult) -> list[Property]:
    """Return the verdict and the main numbers of a test, ``ollama.verdict``, ``ollama.ttft_p50_s``.

    Of several runs of one load the median; the loads of a test that fired different ones are told apart by a number,
    ``ollama.2.tps``. An infinite number, a failed request's time, is the text ``inf``: JSON has no other.
    """
    verdict = result.verdict
    found: list[Property] = [(f"{PREFIX}verdict", verdict.word.value), (f"{PREFIX}reason", clean(verdict.reason))]
    groups: dict[str, list[LoadResult]] = {}
    for load in result.loads:
        groups.setdefault(identity(load.run.workload), []).append(load)
    for number, group in enumerate(groups.values(), 1):
        found += _of_load(group, PREFIX if len(groups) == 1 else f"{PREFIX}{number}.")
    return found


def renewed(before: Iterable[tuple[str, object]], result: TestResult) -> list[tuple[str, object]]:
    """Return the properties a test has, with ours in place of those of an earlier phase or run."""
    return [*(each for each in before if not each[0].startswith(PREFIX)), *properties(result)]


def _of_load(runs: Sequence[LoadResult], prefix: str) -> Iterator[Property]:
    workload = runs[0].run.workload
    yield f"{prefix}model", clean(workload.model)
    if workload.concurrency is not None:
        yield f"{prefix}concurrency", workload.concurrency
    if workload.rate is not None:
        yield f"{prefix}rate_per_s", workload.rate
    yield f"{prefix}runs", len(runs)
    yield f"{prefix}requests", sum(run.summary.requests for run in runs)
    for metric, stats in SHOWN:
        for stat in stats:
            if (value := _median(runs, metric, stat)) is not None:
                yield f"{prefix}{_name(metric, stat)}", value if math.isfinite(value) else "inf"


def _name(metric: str, stat: str) -> str:
    unit = {Unit.SECONDS: "_s", Unit.TOKENS_PER_SECOND: "" if metric.endswith("tps") else "_tps"}
    return "_".join(filter(None, (metric, stat))) + unit.get(METRICS[metric].unit, "")


def _median(runs: Sequence[LoadResult], metric: str, stat: str) -> float | None:
    found = [run.summary.metrics[metric].get(stat) for run in runs if metric in run.summary.metrics]
    numbers = [float(number) for number in found if number is not None]
    return median_low(numbers) if numbers else None
