"""Facts about a load for reports: its size, excluded requests, the server and model, the errors."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import median_low

from pytest_ollama_perf.core.run import Fingerprint, Run
from pytest_ollama_perf.core.sample import Outcome, Sample
from pytest_ollama_perf.core.verdict import ProblemCode
from pytest_ollama_perf.core.workload import Endpoint, Workload, compute_identity
from pytest_ollama_perf.harness.evaluation import MeasuredLoad, TestResult
from pytest_ollama_perf.metrics import (
    METRICS,
    Unit,
    format_count,
    format_number,
    format_percent,
    format_seconds,
    format_value,
)
from pytest_ollama_perf.metrics import format_bytes as bytes_shown
from pytest_ollama_perf.report.tables import clean

_MAIN_METRICS = (
    ("tps", ("",)),
    ("throughput", ("",)),
    ("qps", ("",)),
    ("ttft", ("p50", "p95")),
    ("latency", ("p95",)),
    ("queue", ("p50",)),
)


def format_main_numbers(loads: Sequence[MeasuredLoad]) -> list[str]:
    """Return the numbers to see first, as phrases; of several runs the median."""
    phrases = []
    for metric, stats in _MAIN_METRICS:
        found = {stat: [number for load in loads for number in _list_stat(load, metric, stat)] for stat in stats}
        shown = [
            f"{stat} {format_value(metric, median_low(numbers))}".strip() for stat, numbers in found.items() if numbers
        ]
        phrases += [f"{metric} {' / '.join(shown)}"] if shown else []
    return [*phrases, "each the median run"] if phrases and len(loads) > 1 else phrases


def _list_stat(load: MeasuredLoad, metric: str, stat: str) -> list[float]:
    summary = load.summary.metrics.get(metric)
    value = summary.get(stat) if summary else None
    return [] if value is None else [value]


def describe_size(loads: Sequence[MeasuredLoad], stored: int | None = None) -> list[str]:
    """Return how much was measured, as phrases: ``3 runs x 20 requests``, ``0 errors; 9 stored runs``."""
    *phrases, last = [
        _format_request_count(loads),
        *format_load_label(loads[0].run.workload),
        *_describe_thinking(loads[0].run),
        *_describe_connections(loads),
        *describe_excluded(loads),
    ]
    return [*phrases, f"{last}; {format_count(stored, 'stored run')}" if stored is not None else last]


def describe_total_size(loads: Sequence[MeasuredLoad], stored: int | None = None) -> list[str]:
    """Return how much the loads of one experiment measured together, as phrases."""
    requests = sum(load.summary.requests for load in loads)
    *phrases, last = describe_excluded(loads)
    phrases = [format_count(len(loads), "load"), format_count(requests, "request"), *phrases]
    return [*phrases, f"{last}; {format_count(stored, 'stored run')}" if stored is not None else last]


def _format_request_count(loads: Sequence[MeasuredLoad]) -> str:
    numbers = {load.summary.requests for load in loads}
    if len(loads) == 1:
        return format_count(numbers.pop(), "request")
    if len(numbers) == 1:
        return f"{len(loads)} runs x {format_count(numbers.pop(), 'request')}"
    return f"{len(loads)} runs, {format_count(sum(load.summary.requests for load in loads), 'request')}"


def format_load_label(workload: Workload) -> Iterator[str]:
    """Yield how a load is generated, as phrases for display: ``concurrency 4``, ``for 60 s``."""
    most = "up to " if workload.stages else ""
    if workload.rate is not None:
        yield f"{most}{format_number(workload.rate)} requests/s ({workload.arrival.value})"
    else:
        yield f"{most}concurrency {workload.clients}"
    if workload.stages:
        yield f"in {format_count(len(workload.stages), 'stage')}"
    if workload.turns > 1:
        yield f"chats of {workload.turns} turns"
    if workload.duration_s is not None:
        yield f"for {format_seconds(workload.duration_s)}"
    if workload.cold:
        yield "on a cold model"


def _describe_thinking(run: Run) -> Iterator[str]:
    """Yield that the model thinks where only its default says so."""
    if run.workload.think is None and run.is_thinking:
        yield "thinking (model default)"


def _describe_connections(loads: Iterable[MeasuredLoad]) -> Iterator[str]:
    """Describe the cost of a new connection for each request; TTFT and latency do not include it."""
    apart = [load.run for load in loads if not load.run.workload.reuse_connections]
    took = [sample.connect_ns for run in apart for sample in run.measured if sample.connect_ns is not None]
    if took:
        yield f"a new connection each ({format_seconds(median_low(took) / 1e9)} p50, not in ttft)"


def describe_excluded(loads: Iterable[MeasuredLoad]) -> list[str]:
    """Return what was dropped, retried, cached or short, and always how many failed, as counted phrases."""
    runs = [load.run for load in loads]
    measured = [sample for run in runs for sample in run.measured]
    warmup = sum(len(run.warmup) for run in runs)
    turns = sum(sample.turn > 1 for sample in measured)
    short = sum(_is_short(sample, run.workload) for run in runs for sample in run.measured)
    counted = (
        (warmup, f"{warmup} warm-up dropped"),
        (sum(sample.outcome is Outcome.LATE for sample in measured), "{} late"),
        (sum(sample.outcome is Outcome.CANCELLED for sample in measured), "{} cancelled"),
        (sum(sample.attempt > 1 for sample in measured), "{} retried"),
        (turns, f"{format_count(turns, 'later turn')} of chats"),
        (sum(bool(sample.counters.prompt_eval_cached_count) for sample in measured), "{} cached"),
        (short, "{} short"),
    )
    phrases = [form.format(number) for number, form in counted if number]
    return [*phrases, format_count(sum(map(_is_failed, measured)), "error")]


def _is_short(sample: Sample, workload: Workload) -> bool:
    """Whether an answer ended before ``num_predict``; only the counter shows it, ``done_reason`` does not."""
    if not sample.ok or workload.endpoint is Endpoint.EMBED:
        return False
    return (sample.counters.eval_count or 0) < workload.num_predict


def describe_environment(fingerprint: Fingerprint) -> list[str]:
    """Return server, model and where it ran as phrases: ``ollama 0.32.15``, ``llama3.2:3b Q4_K_M``, ``100 % GPU``."""
    version, model, context = fingerprint.server_version, fingerprint.model, fingerprint.context_length
    phrases = (
        f"ollama {version}" if version else "",
        f"{model} {fingerprint.quantization}",
        f"num_ctx {context}" if context else "",
        _format_processor(fingerprint.vram_share),
        fingerprint.gpu,
    )
    return [clean(phrase) for phrase in phrases if phrase.strip()]


def describe_telemetry(loads: Sequence[MeasuredLoad]) -> list[str]:
    """Return what GPUs did while they were loaded, as phrases: ``GPU 93 %``, ``18.2 of 140 GiB``, ``410 W``.

    Of several runs the most of each, and the median of the energy of a token.
    """
    read = [load.run.telemetry for load in loads if load.run.telemetry and load.run.telemetry.gpus]
    gpus = [gpu for each in read for gpu in each.gpus]
    busy = [gpu.utilization for gpu in gpus if gpu.utilization is not None]
    memory = [each.memory_bytes for each in read if each.memory_bytes is not None]
    total = [sum(gpu.memory_total_bytes or 0 for gpu in each.gpus) for each in read]
    watts = [sum(gpu.power_w or 0.0 for gpu in each.gpus) for each in read]
    warmest = [gpu.max_temperature_c for gpu in gpus if gpu.max_temperature_c is not None]
    energy = [number for load in loads for number in _list_stat(load, "joules_per_token", "")]
    return [
        *([f"GPU {format_percent(max(busy))} busy"] if busy else []),
        *([f"GPU memory {_format_memory_share(max(memory), max(total))}"] if memory else []),
        *([f"{format_number(max(watts))} W"] if any(watts) else []),
        *([format_value("gpu_temperature", max(warmest))] if warmest else []),
        *([f"{format_value('joules_per_token', median_low(energy))} a token"] if energy else []),
    ]


def _format_memory_share(used: int, total: int) -> str:
    return f"{bytes_shown(used)} of {bytes_shown(total)}" if total else bytes_shown(used)


def _format_processor(vram_share: float | None) -> str:
    if vram_share is None:
        return ""
    return "CPU" if vram_share == 0 else f"{format_percent(vram_share)} GPU"


def _is_failed(sample: Sample) -> bool:
    """Whether the server or the network failed it: a cancelled one did not fail."""
    return not sample.ok and sample.outcome is not Outcome.CANCELLED


def describe_errors(loads: Iterable[MeasuredLoad]) -> list[str]:
    """Return failed requests by outcome, the most frequent first, each with one text: ``3 busy, e.g. "..."``."""
    failed = [sample for load in loads for sample in load.run.measured if _is_failed(sample)]
    grouped = Counter(sample.outcome for sample in failed)
    return [
        f"{number_of} {outcome.value}{_quote_example(failed, outcome)}" for outcome, number_of in grouped.most_common()
    ]


def _quote_example(failed: Iterable[Sample], outcome: Outcome) -> str:
    texts = (clean(sample.error, 200) for sample in failed if sample.outcome is outcome)
    text = next(filter(None, texts), "")
    return f', e.g. "{text}"' if text else ""


def redact_url(url: str) -> str:
    """Return ``url`` without user name, password and query, inert; a simulator's query is its settings and stays."""
    scheme, separator, rest = clean(url, 2000).partition("://")
    if not separator:
        return scheme if scheme.startswith("sim:") else scheme.rpartition("@")[2]
    authority, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


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
        (f"{PROPERTY_PREFIX}verdict", verdict.status.value),
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
