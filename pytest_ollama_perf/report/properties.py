"""Properties of a test for the reports of others: JUnit XML, pytest-reportlog, pytest-html, Allure.

Names carry their unit: ``_s`` are seconds, ``tps`` tokens per second, ``qps`` requests per second, a rate is a share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from statistics import median_low

from pytest_ollama_perf.core.verdict import ProblemCode
from pytest_ollama_perf.core.workload import compute_identity
from pytest_ollama_perf.harness.results import MeasuredLoad, TestResult
from pytest_ollama_perf.metrics.definitions import METRICS, Unit
from pytest_ollama_perf.report.tables import clean

PROPERTY_PREFIX = "ollama."

REPORTED_STATS = (
    ("tps", ("",)),
    ("throughput", ("",)),
    ("qps", ("",)),
    ("ttft", ("p50", "p95")),
    ("latency", ("p50", "p95")),
    ("queue", ("p50",)),
    ("error_rate", ("",)),
)

Property = tuple[str, str | float]


def build_properties(result: TestResult) -> list[Property]:
    """Return the verdict and the main numbers of a test, ``ollama.verdict``, ``ollama.ttft_p50_s``.

    Of several runs of one load the median; different loads of one test are numbered,
    ``ollama.2.tps``. An infinite number, a failed request's time, is the text ``inf``: JSON has no other.
    """
    found = _build_verdict_properties(result)
    groups: dict[str, list[MeasuredLoad]] = {}
    for load in result.loads:
        groups.setdefault(compute_identity(load.run.workload), []).append(load)
    for number, group in enumerate(groups.values(), 1):
        found += _build_load_properties(group, PROPERTY_PREFIX if len(groups) == 1 else f"{PROPERTY_PREFIX}{number}.")
    return found


def _build_verdict_properties(result: TestResult) -> list[Property]:
    verdict = result.verdict
    damaged = [problem.text for problem in verdict.problems if problem.code is ProblemCode.DAMAGED_HISTORY]
    return [
        (f"{PROPERTY_PREFIX}verdict", verdict.word.value),
        (f"{PROPERTY_PREFIX}reason", clean(verdict.reason)),
        *((f"{PROPERTY_PREFIX}damaged_history", clean(text)) for text in damaged),
    ]


def replace_properties(before: Iterable[tuple[str, object]], result: TestResult) -> list[tuple[str, object]]:
    """Return the properties a test has, with ours in place of those of an earlier phase or run."""
    kept = [each for each in before if not each[0].startswith(PROPERTY_PREFIX)]
    try:
        return [*kept, *build_properties(result)]
    except Exception:  # a number that cannot be written must not take the verdict
        return [*kept, *_build_verdict_properties(result)]


def _build_load_properties(runs: Sequence[MeasuredLoad], prefix: str) -> Iterator[Property]:
    workload = runs[0].run.workload
    yield f"{prefix}model", clean(workload.model)
    if workload.concurrency is not None:
        yield f"{prefix}concurrency", workload.concurrency
    if workload.rate is not None:
        yield f"{prefix}rate_per_s", workload.rate
    yield f"{prefix}runs", len(runs)
    yield f"{prefix}requests", sum(run.summary.requests for run in runs)
    for metric, stats in REPORTED_STATS:
        for stat in stats:
            if (value := _compute_median(runs, metric, stat)) is not None:
                yield f"{prefix}{_format_property_name(metric, stat)}", value if math.isfinite(value) else "inf"


def _format_property_name(metric: str, stat: str) -> str:
    unit = {Unit.SECONDS: "_s", Unit.TOKENS_PER_SECOND: "" if metric.endswith("tps") else "_tps"}
    return "_".join(filter(None, (metric, stat))) + unit.get(METRICS[metric].unit, "")


def _compute_median(runs: Sequence[MeasuredLoad], metric: str, stat: str) -> float | None:
    found = [run.summary.metrics[metric].get(stat) for run in runs if metric in run.summary.metrics]
    numbers = [float(number) for number in found if number is not None]
    return median_low(numbers) if numbers else None
