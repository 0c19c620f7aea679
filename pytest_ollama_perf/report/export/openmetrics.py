"""OpenMetrics text for Prometheus and for GitLab's metrics reports.

Where the semantic conventions of OpenTelemetry for generative AI (status: development) name what is measured, that name
is used, translated as its exporters to Prometheus do; a summary instead of a histogram, since exact quantiles are known
and a merge request shows every line. Everything else is a gauge that begins with ``ollama_perf_``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from pytest_ollama_perf.metric import METRICS
from pytest_ollama_perf.report import series
from pytest_ollama_perf.report.json_report import Document
from pytest_ollama_perf.report.layout import clean
from pytest_ollama_perf.report.numbers import Number, medians
from pytest_ollama_perf.workload import Endpoint

SUMMARIES: Mapping[str, str] = MappingProxyType(
    {
        "latency": "gen_ai_client_operation_duration_seconds",
        "ttft": "gen_ai_client_operation_time_to_first_chunk_seconds",
        "itl": "gen_ai_client_operation_time_per_output_chunk_seconds",
        "tpot": "gen_ai_server_time_per_output_token_seconds",
        "ttfa": "ollama_perf_time_to_first_answer_seconds",
        "queue": "ollama_perf_queue_seconds",
        "load_time": "ollama_perf_load_time_seconds",
    }
)
"""Metrics with one value for each request, all of them times, and what they are called outside."""

GAUGES: Mapping[str, str] = MappingProxyType(
    {
        "tps": "ollama_perf_tokens_per_second",
        "throughput": "ollama_perf_throughput_tokens_per_second",
        "throughput_whole": "ollama_perf_throughput_whole_tokens_per_second",
        "qps": "ollama_perf_requests_per_second",
        "prefill_tps": "ollama_perf_prefill_tokens_per_second",
        "goodput": "ollama_perf_goodput_requests_per_second",
        "error_rate": "ollama_perf_error_ratio",
        "gpu_memory": "ollama_perf_gpu_memory_bytes",
        "gpu_temperature": "ollama_perf_gpu_temperature_celsius",
        "joules_per_token": "ollama_perf_joules_per_token",
    }
)

_TOKENS = "gen_ai_client_token_usage"
_VERDICT = "ollama_perf_verdict"
_QUANTILES = {"p50": "0.5", "p90": "0.9", "p95": "0.95", "p99": "0.99"}
_OPERATIONS = {Endpoint.CHAT: "chat", Endpoint.GENERATE: "text_completion", Endpoint.EMBED: "embeddings"}

Labels = dict[str, str]


def text(document: Document) -> bytes:
    """Return the metrics; a failed request's time is ``+Inf``. Of runs that are alike, the median run speaks."""
    found = medians(document)
    labels = _labels(document)
    lines = [line for metric, name in SUMMARIES.items() for line in _summary(metric, name, found, labels)]
    lines += [line for metric, name in GAUGES.items() for line in _gauge(metric, name, found, labels)]
    lines += [*_tokens(document, labels), *_verdicts(document), "# EOF"]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def _labels(document: Document) -> dict[tuple[str, str], Labels]:
    """Return the labels of each test's loads."""
    found: dict[tuple[str, str], Labels] = {}
    for test in document.tests:
        for load, name in zip(test.loads, series.apart(test.loads), strict=True):
            found[clean(test.test), name] = {
                "gen_ai_operation_name": _OPERATIONS[load.workload.endpoint],
                "gen_ai_provider_name": "ollama",
                "gen_ai_request_model": clean(load.model, 200),
                "load": name,
                "test": clean(test.test),
            }
    return found


def _summary(
    metric: str, name: str, numbers: Iterable[Number], labels: Mapping[tuple[str, str], Labels]
) -> Iterator[str]:
    mine = [number for number in numbers if number.metric == metric]
    if not mine:
        return
    yield from _head(name, "summary", METRICS[metric].help, unit="seconds")
    for number in mine:
        where = labels[number.test, number.load]
        if number.stat in _QUANTILES:
            yield _line(name, where | {"quantile": _QUANTILES[number.stat]}, number.value)
        if number.stat == "mean":
            yield _line(f"{name}_count", where, number.n)
            yield _line(f"{name}_sum", where, number.value * number.n)


def _gauge(
    metric: str, name: str, numbers: Iterable[Number], labels: Mapping[tuple[str, str], Labels]
) -> Iterator[str]:
    mine = [number for number in numbers if number.metric == metric and not number.stat]
    if not mine:
        return
    yield from _head(name, "gauge", METRICS[metric].help)
    for number in mine:
        yield _line(name, labels[number.test, number.load], number.value)


def _tokens(document: Document, labels: Mapping[tuple[str, str], Labels]) -> Iterator[str]:
    used: dict[tuple[str, str], tuple[int, int, int]] = {}
    for test in document.tests:
        for load, name in zip(test.loads, series.apart(test.loads), strict=True):
            used[clean(test.test), name] = (load.ok, load.prompt_tokens, load.output_tokens)
    if not used:
        return
    yield from _head(_TOKENS, "summary", "tokens of successful requests: prompt (input), generated (output)")
    for place, (requests, *tokens) in used.items():
        for kind, number in zip(("input", "output"), tokens, strict=True):
            yield _line(f"{_TOKENS}_count", labels[place] | {"gen_ai_token_type": kind}, requests)
            yield _line(f"{_TOKENS}_sum", labels[place] | {"gen_ai_token_type": kind}, number)


def _verdicts(document: Document) -> Iterator[str]:
    if not document.tests:
        return
    yield from _head(_VERDICT, "gauge", "1 with the verdict of the test as a label")
    for test in document.tests:
        yield _line(_VERDICT, {"test": clean(test.test), "verdict": test.verdict.value}, 1)


def _head(name: str, kind: str, says: str, unit: str = "") -> Iterator[str]:
    yield f"# TYPE {name} {kind}"
    if unit:
        yield f"# UNIT {name} {unit}"
    yield f"# HELP {name} {_escaped(says)}"


def _line(name: str, labels: Labels, value: float) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in sorted(labels.items()) if text)
    return f"{name}{{{inside}}} {_shown(value)}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _shown(value: float) -> str:
    return "+Inf" if math.isinf(value) else repr(value)
