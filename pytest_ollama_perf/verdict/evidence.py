"""What one run brings before the gate: for each metric one value per request, or its single number."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from pytest_ollama_perf.metric import METRICS, Shape
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.sample import Sample
from pytest_ollama_perf.summary import request_values, summarise
from pytest_ollama_perf.verdict.run_value import Policy, cost, run_value, scatter


@dataclass(frozen=True)
class Evidence:
    """One run. ``requests`` counts the measured ones, ``None`` where nobody recorded them.

    ``values`` returns the values of a metric in its own unit, failed requests being infinite times and rates of 0, and
    nothing for a metric that was not recorded; ``in_time_order`` says whether they stand as the requests were sent.
    ``at`` orders the runs of a test: a time, or the number of the run.
    """

    test: str
    run: str
    requests: int | None
    values: Callable[[str], Sequence[float]]
    at: float | None = None
    in_time_order: bool = False

    def reading(self, policy: Policy) -> float:
        """Return the run value for ``policy``; ``NaN`` where the run has no data for it."""
        return math.nan if self.requests == 0 else run_value(policy, self.values(policy.metric.name))

    def scatter(self, policy: Policy) -> float:
        """Return how much the requests alone let ``reading`` vary (a standard error); 0 where they do not tell."""
        if policy.stat or policy.metric.shape is Shape.PER_RUN:
            return 0.0
        costs = [cost(policy, value) for value in self.values(policy.metric.name)]
        return scatter(costs, in_time_order=self.in_time_order)


def of_run(run: Run) -> Evidence:
    """Return what ``run`` says. Its metrics are computed when they are asked for."""
    measured = sorted(run.measured, key=lambda sample: sample.start_ns)

    @functools.cache
    def values(metric: str) -> Sequence[float]:
        return _values(run, measured, metric)

    return Evidence(run.test, run.id, len(measured), values, run.started_at, in_time_order=True)


def _values(run: Run, measured: Sequence[Sample], metric: str) -> Sequence[float]:
    if metric == "load_time" and run.load_time_s is not None:
        return [run.load_time_s]
    if METRICS[metric].shape is not Shape.PER_RUN:
        return request_values(metric, measured)
    found = summarise(run).metrics.get(metric)
    return [] if found is None or found.value is None else [found.value]


REQUEST_FIELDS = MappingProxyType({"eval_tps": "tps", "ttft_s": "ttft", "latency_s": "latency"})
"""The fields of a request in a minimal record, and the metric each holds."""


def of_minimal(record: Mapping[str, object]) -> Evidence:
    """Return what a minimal record says: ``{"test", "run", "requests": [{"eval_tps", ...}], "throughput_tps"}``.

    A request without a value that others of its record have, with ``null`` for it, or with an ``outcome`` other than
    ``ok`` failed.

    Raises:
        TypeError: a field has the wrong type; the message names it.
    """
    requests = record.get("requests")
    if requests is not None and not isinstance(requests, list):
        raise TypeError(f"requests must be a list, got {type(requests).__name__}")
    read = [_request(request, position) for position, request in enumerate(requests or ())]
    values: dict[str, Sequence[float]] = {
        metric: [_or_failed(request[name], metric) for request in read]
        for name, metric in REQUEST_FIELDS.items()
        if any(request[name] is not _ABSENT for request in read)
    }
    throughput = _number(record.get("throughput_tps"), "throughput_tps")
    if throughput is not None:
        values["throughput"] = [throughput]
    count = len(read) if requests is not None else None
    at = _number_or_none(record.get("run"))
    return Evidence(_word(record, "test"), _word(record, "run"), count, lambda metric: values.get(metric, ()), at)


_ABSENT = -math.inf


def _request(request: object, position: int) -> dict[str, float | None]:
    """Return the fields of one request: ``None`` where it failed, ``_ABSENT`` where the field is not there."""
    if not isinstance(request, dict):
        raise TypeError(f"requests[{position}] must be an object, got {type(request).__name__}")
    if request.get("outcome", "ok") != "ok":
        return dict.fromkeys(REQUEST_FIELDS)
    return {
        name: _number(request[name], f"requests[{position}].{name}") if name in request else _ABSENT
        for name in REQUEST_FIELDS
    }


def _or_failed(value: float | None, metric: str) -> float:
    if value is None or value == _ABSENT or math.isnan(value):
        return 0.0 if METRICS[metric].is_rate else math.inf
    return value


def _number(value: object, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or null, got {value!r:.40}")
    return float(value)


def _number_or_none(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _word(record: Mapping[str, object], name: str) -> str:
    value = record.get(name, "")
    if isinstance(value, (dict, list, bool)):
        raise TypeError(f"{name} must be a text or a number, got {type(value).__name__}")
    return "" if value is None else str(value)


def in_order(runs: Sequence[Evidence]) -> list[Evidence]:
    """Return ``runs`` oldest first: by time, or by the number of the run; as they are where some have neither."""
    times = [run.at for run in runs]
    if None in times:
        return list(runs)
    return sorted(runs, key=lambda run: run.at or 0.0)
