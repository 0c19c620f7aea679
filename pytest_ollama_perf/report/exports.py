"""Files for other tools: each module writes one format from the document of a session."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from types import MappingProxyType
from typing import Any

import msgspec

from pytest_ollama_perf.core.sample import Phase, Sample
from pytest_ollama_perf.core.workload import Endpoint
from pytest_ollama_perf.metrics import METRICS, Better, format_label
from pytest_ollama_perf.metrics.per_request import read_decode, read_prefill
from pytest_ollama_perf.report import series
from pytest_ollama_perf.report.document import Document, LoadEntry, TestEntry, to_samples
from pytest_ollama_perf.report.series import MetricPoint, list_points, select_medians, select_typical
from pytest_ollama_perf.report.tables import clean


def export_benchstat(document: Document) -> bytes:
    """Return the lines of all measured requests, and for each load the share of those that failed.

    benchstat takes no infinite time, so a failed request has no lines: look at ``failed/request`` first.
    """
    lines = [line for test in document.tests for line in _format_test_lines(clean(test.test), test.loads)]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def _format_test_lines(test: str, loads: tuple[LoadEntry, ...]) -> Iterator[str]:
    yield f"test: {test}"
    several = any(found := series.distinguish_loads(loads))
    for load, name in zip(loads, found, strict=True):
        prints = load.fingerprint
        yield f"# ollama {prints.server_version or 'unknown'}, {clean(load.model)} {prints.quantization}".rstrip()
        yield from (f"load: {name}",) if several else ()
        yield from (
            f"BenchmarkModel/name={_escape_model_name(load.model)}/step={step}" for step in _format_load_lines(load)
        )
    yield from ("load:",) if several else ()


def _format_load_lines(load: LoadEntry) -> Iterator[str]:
    for sample in to_samples(load):
        if sample.stage is Phase.MEASURED and sample.ok:
            yield from _format_step_lines(sample)
    if load.requests:
        yield f"errors {load.requests} {(load.requests - load.ok) / load.requests:.4f} failed/request"


def _format_step_lines(sample: Sample) -> Iterator[str]:
    for step, (tokens, seconds) in (("prefill", read_prefill(sample)), ("generate", read_decode(sample))):
        if tokens:
            yield f"{step} {tokens} {seconds * 1e9 / tokens:.2f} ns/token {tokens / seconds:.2f} token/sec"
    if sample.first_token_ns is not None:
        yield f"ttft 1 {sample.first_token_ns - sample.start_ns} ns/request"
    if sample.counters.load_duration_ns:
        yield f"load 1 {sample.counters.load_duration_ns} ns/request"
    yield f"total 1 {sample.done_ns - sample.start_ns} ns/request"


def _escape_model_name(model: str) -> str:
    """Return a model's name as a part of a benchmark's name, which holds no spaces and no slashes."""
    return re.sub(r"[\s/=]+", "_", clean(model, 200)) or "unknown"


_MAX_NAME_LENGTH = 1024
"""Characters of a benchmark's name that Bencher takes."""


def export_bencher(document: Document) -> bytes:
    """Return the metrics as JSON.

    An infinite number, the time of a failed request, is left out, as JSON cannot hold it; see ``error_rate_share``.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for number in select_typical(document):
        if math.isfinite(number.value):
            found.setdefault(number.benchmark[:_MAX_NAME_LENGTH], {})[number.name] = _build_measure(number)
    return msgspec.json.format(_encode_sorted(found), indent=2) + b"\n"


def _encode_sorted(found: dict[str, Any]) -> bytes:
    return msgspec.json.encode(found, order="sorted")


def _build_measure(number: MetricPoint) -> dict[str, float]:
    ends = {"lower_value": number.low, "upper_value": number.high}
    return {"value": number.value} | {name: end for name, end in ends.items() if end is not None and math.isfinite(end)}


CSV_COLUMNS = (
    *("test", "verdict", "load", "run_id", "started_at", "model", "metric", "stat", "unit", "better"),
    *("value", "low", "high", "n", "failed"),
)


def export_csv(document: Document) -> bytes:
    """Return the table. A failed request's time reads ``inf``; what does not exist is empty."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(CSV_COLUMNS)
    for number in list_points(document):
        writer.writerow([_format_csv_cell(number, column) for column in CSV_COLUMNS])
    return file.getvalue().encode("utf-8", "replace")


def _format_csv_cell(number: MetricPoint, column: str) -> object:
    value = getattr(number, column)
    if column == "started_at":
        return datetime.fromtimestamp(number.started_at, timezone.utc).isoformat(timespec="seconds")
    return _escape_formula(value) if isinstance(value, str) else value


def _escape_formula(text: str) -> str:
    """Return ``text`` so that no spreadsheet takes it for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def export_bigger_is_better(document: Document) -> bytes:
    """Return the numbers of which more is better, for ``customBiggerIsBetter``."""
    return _encode_entries(document, Better.HIGHER)


def export_smaller_is_better(document: Document) -> bytes:
    """Return the numbers of which less is better, for ``customSmallerIsBetter``; infinite ones are left out."""
    return _encode_entries(document, Better.LOWER)


def _encode_entries(document: Document, better: Better) -> bytes:
    found = [
        _build_entry(number)
        for number in select_typical(document)
        if number.better == better.value and math.isfinite(number.value)
    ]
    return msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"


def _build_entry(number: MetricPoint) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": f"{number.benchmark}: {format_label(number.metric, number.stat)}",
        "unit": number.unit,
        "value": number.value,
    }
    if number.low is not None and number.high is not None and math.isfinite(number.high):
        entry["range"] = f"{number.low:.4g} .. {number.high:.4g}"
    return entry | {"extra": f"model: {number.model}\nverdict: {number.verdict}\nvalues: {number.n}"}


SUMMARY_NAMES: Mapping[str, str] = MappingProxyType(
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

GAUGE_NAMES: Mapping[str, str] = MappingProxyType(
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

_TOKENS_NAME = "gen_ai_client_token_usage"
_VERDICT_NAME = "ollama_perf_verdict"
_QUANTILES = {"p50": "0.5", "p90": "0.9", "p95": "0.95", "p99": "0.99"}
_OPERATIONS = {Endpoint.CHAT: "chat", Endpoint.GENERATE: "text_completion", Endpoint.EMBED: "embeddings"}

Labels = dict[str, str]


def export_openmetrics(document: Document) -> bytes:
    """Return the metrics; a failed request's time is ``+Inf``. Of runs that are alike, the median run is exported."""
    found = select_medians(document)
    labels = _build_labels(document)
    lines = [line for metric, name in SUMMARY_NAMES.items() for line in _format_summary(metric, name, found, labels)]
    lines += [line for metric, name in GAUGE_NAMES.items() for line in _format_gauge(metric, name, found, labels)]
    lines += [*_format_token_usage(document, labels), *_format_verdicts(document), "# EOF"]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def _build_labels(document: Document) -> dict[tuple[int, int], Labels]:
    """Return the labels of each test's loads."""
    found: dict[tuple[int, int], Labels] = {}
    for place, test, load, name in _list_loads(document):
        found[place] = {
            "gen_ai_operation_name": _OPERATIONS[load.workload.endpoint],
            "gen_ai_provider_name": "ollama",
            "gen_ai_request_model": clean(load.model, 200),
            "load": name,
            "test": clean(test.test),
        }
    return found


def _list_loads(document: Document) -> Iterator[tuple[tuple[int, int], TestEntry, LoadEntry, str]]:
    """Yield the place, the test and the name of every load."""
    for index, test in enumerate(document.tests):
        named = zip(test.loads, series.group_loads(test.loads), series.distinguish_loads(test.loads), strict=True)
        yield from (((index, group), test, load, name) for load, group, name in named)


def _format_summary(
    metric: str, name: str, numbers: Iterable[MetricPoint], labels: Mapping[tuple[int, int], Labels]
) -> Iterator[str]:
    mine = [number for number in numbers if number.metric == metric]
    if not mine:
        return
    yield from _format_family_head(name, "summary", METRICS[metric].help, unit="seconds")
    for number in mine:
        where = labels[number.place]
        if number.stat in _QUANTILES:
            yield _format_metric_line(name, where | {"quantile": _QUANTILES[number.stat]}, number.value)
        if number.stat == "mean":
            yield _format_metric_line(f"{name}_count", where, number.n)
            yield _format_metric_line(f"{name}_sum", where, number.value * number.n)


def _format_gauge(
    metric: str, name: str, numbers: Iterable[MetricPoint], labels: Mapping[tuple[int, int], Labels]
) -> Iterator[str]:
    mine = [number for number in numbers if number.metric == metric and not number.stat]
    if not mine:
        return
    yield from _format_family_head(name, "gauge", METRICS[metric].help)
    for number in mine:
        yield _format_metric_line(name, labels[number.place], number.value)


def _format_token_usage(document: Document, labels: Mapping[tuple[int, int], Labels]) -> Iterator[str]:
    used = {place: (load.ok, load.prompt_tokens, load.output_tokens) for place, _, load, _ in _list_loads(document)}
    if not used:
        return
    yield from _format_family_head(
        _TOKENS_NAME, "summary", "tokens of successful requests: prompt (input), generated (output)"
    )
    for place, (requests, *tokens) in used.items():
        for kind, number in zip(("input", "output"), tokens, strict=True):
            yield _format_metric_line(f"{_TOKENS_NAME}_count", labels[place] | {"gen_ai_token_type": kind}, requests)
            yield _format_metric_line(f"{_TOKENS_NAME}_sum", labels[place] | {"gen_ai_token_type": kind}, number)


def _format_verdicts(document: Document) -> Iterator[str]:
    if not document.tests:
        return
    yield from _format_family_head(_VERDICT_NAME, "gauge", "1 with the verdict of the test as a label")
    for test in document.tests:
        yield _format_metric_line(_VERDICT_NAME, {"test": clean(test.test), "verdict": test.verdict.value}, 1)


def _format_family_head(name: str, kind: str, says: str, unit: str = "") -> Iterator[str]:
    yield f"# TYPE {name} {kind}"
    if unit:
        yield f"# UNIT {name} {unit}"
    yield f"# HELP {name} {_escape_label(says)}"


def _format_metric_line(name: str, labels: Labels, value: float) -> str:
    inside = ",".join(f'{key}="{_escape_label(text)}"' for key, text in sorted(labels.items()) if text)
    return f"{name}{{{inside}}} {_format_float(value)}"


def _escape_label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _format_float(value: float) -> str:
    return "+Inf" if math.isinf(value) else repr(value)
