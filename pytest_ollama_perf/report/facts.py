"""What a report says of a load besides its verdict: its size, what was left out, the server and model, the errors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import median_low

from pytest_ollama_perf.report.layout import clean
from pytest_ollama_perf.report.result import LoadResult
from pytest_ollama_perf.run import Fingerprint
from pytest_ollama_perf.sample import Outcome, Sample
from pytest_ollama_perf.verdict.wording import count, number, percent, seconds, show
from pytest_ollama_perf.verdict.wording import size as bytes_shown
from pytest_ollama_perf.workload import Endpoint, Workload

_MAIN = (
    ("tps", ("",)),
    ("throughput", ("",)),
    ("qps", ("",)),
    ("ttft", ("p50", "p95")),
    ("latency", ("p95",)),
    ("queue", ("p50",)),
)


def main_numbers(loads: Sequence[LoadResult]) -> list[str]:
    """Return the numbers to see first, as phrases; of several runs the median."""
    phrases = []
    for metric, stats in _MAIN:
        found = {stat: [number for load in loads for number in _numbers(load, metric, stat)] for stat in stats}
        shown = [f"{stat} {show(metric, median_low(numbers))}".strip() for stat, numbers in found.items() if numbers]
        phrases += [f"{metric} {' / '.join(shown)}"] if shown else []
    return [*phrases, "each the median run"] if phrases and len(loads) > 1 else phrases


def _numbers(load: LoadResult, metric: str, stat: str) -> list[float]:
    summary = load.summary.metrics.get(metric)
    value = summary.get(stat) if summary else None
    return [] if value is None else [value]


def size(loads: Sequence[LoadResult], stored: int | None = None) -> list[str]:
    """Return how much was measured, as phrases: ``3 runs x 20 requests``, ``0 errors; 9 stored runs``."""
    *phrases, last = [_requests(loads), *pace(loads[0].run.workload), *_connections(loads), *left_out(loads)]
    return [*phrases, f"{last}; {count(stored, 'stored run')}" if stored is not None else last]


def altogether(loads: Sequence[LoadResult], stored: int | None = None) -> list[str]:
    """Return how much the loads of one experiment measured together, as phrases."""
    requests = sum(load.summary.requests for load in loads)
    *phrases, last = left_out(loads)
    phrases = [count(len(loads), "load"), count(requests, "request"), *phrases]
    return [*phrases, f"{last}; {count(stored, 'stored run')}" if stored is not None else last]


def _requests(loads: Sequence[LoadResult]) -> str:
    numbers = {load.summary.requests for load in loads}
    if len(loads) == 1:
        return count(numbers.pop(), "request")
    if len(numbers) == 1:
        return f"{len(loads)} runs x {count(numbers.pop(), 'request')}"
    return f"{len(loads)} runs, {count(sum(load.summary.requests for load in loads), 'request')}"


def pace(workload: Workload) -> Iterator[str]:
    """Yield how a load is fired, as phrases: ``4 at once``, ``for 60 s``."""
    most = "up to " if workload.stages else ""
    if workload.rate is not None:
        yield f"{most}{number(workload.rate)} a second ({workload.arrival.value})"
    else:
        yield f"{most}{workload.clients} at once" if workload.clients > 1 else "one at a time"
    if workload.stages:
        yield f"in {count(len(workload.stages), 'stage')}"
    if workload.turns > 1:
        yield f"chats of {workload.turns} turns"
    if workload.duration_s is not None:
        yield f"for {seconds(workload.duration_s)}"
    if workload.cold:
        yield "on a cold model"


def _connections(loads: Iterable[LoadResult]) -> Iterator[str]:
    """Say what connections of their own cost the requests; it is no part of TTFT and latency."""
    apart = [load.run for load in loads if not load.run.workload.reuse_connections]
    took = [sample.connect_ns for run in apart for sample in run.measured if sample.connect_ns is not None]
    if took:
        yield f"a new connection each ({seconds(median_low(took) / 1e9)} p50, not in ttft)"


def left_out(loads: Iterable[LoadResult]) -> list[str]:
    """Return what was dropped, retried, cached or short, and always how many failed, as counted phrases."""
    runs = [load.run for load in loads]
    measured = [sample for run in runs for sample in run.measured]
    warmup = sum(len(run.warmup) for run in runs)
    turns = sum(sample.turn > 1 for sample in measured)
    short = sum(_short(sample, run.workload) for run in runs for sample in run.measured)
    counted = (
        (warmup, f"{warmup} warm-up dropped"),
        (sum(sample.outcome is Outcome.LATE for sample in measured), "late"),
        (sum(sample.outcome is Outcome.CANCELLED for sample in measured), "cancelled"),
        (sum(sample.attempt > 1 for sample in measured), "retried"),
        (turns, f"{count(turns, 'later turn')} of chats"),
        (sum(bool(sample.counters.prompt_eval_cached_count) for sample in measured), "cached"),
        (short, "short"),
    )
    phrases = [text if " " in text else f"{number_of} {text}" for number_of, text in counted if number_of]
    return [*phrases, count(sum(map(_failed, measured)), "error")]


def _short(sample: Sample, workload: Workload) -> bool:
    """Tell whether an answer ended before ``num_predict``; only the counter says, ``done_reason`` does not."""
    if not sample.ok or workload.endpoint is Endpoint.EMBED:
        return False
    return (sample.counters.eval_count or 0) < workload.num_predict


def environment(fingerprint: Fingerprint) -> list[str]:
    """Return server, model and where it ran as phrases: ``ollama 0.32.15``, ``llama3.2:3b Q4_K_M``, ``100 % GPU``."""
    version, model, context = fingerprint.server_version, fingerprint.model, fingerprint.context_length
    phrases = (
        f"ollama {version}" if version else "",
        f"{model} {fingerprint.quantization}",
        f"num_ctx {context}" if context else "",
        _processor(fingerprint.vram_share),
        fingerprint.gpu,
    )
    return [clean(phrase) for phrase in phrases if phrase.strip()]


def telemetry(loads: Sequence[LoadResult]) -> list[str]:
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
    energy = [number for load in loads for number in _numbers(load, "joules_per_token", "")]
    return [
        *([f"GPU {percent(max(busy))} busy"] if busy else []),
        *([f"GPU memory {_of_all(max(memory), max(total))}"] if memory else []),
        *([f"{number(max(watts))} W"] if any(watts) else []),
        *([show("gpu_temperature", max(warmest))] if warmest else []),
        *([f"{show('joules_per_token', median_low(energy))} a token"] if energy else []),
    ]


def _of_all(used: int, total: int) -> str:
    return f"{bytes_shown(used)} of {bytes_shown(total)}" if total else bytes_shown(used)


def _processor(vram_share: float | None) -> str:
    if vram_share is None:
        return ""
    return "CPU" if vram_share == 0 else f"{percent(vram_share)} GPU"


def _failed(sample: Sample) -> bool:
    """Whether the server or the network failed it: what was cancelled says nothing of either."""
    return not sample.ok and sample.outcome is not Outcome.CANCELLED


def errors(loads: Iterable[LoadResult]) -> list[str]:
    """Return failed requests by outcome, the most frequent first, each with one text: ``3 busy, e.g. "..."``."""
    failed = [sample for load in loads for sample in load.run.measured if _failed(sample)]
    grouped = Counter(sample.outcome for sample in failed)
    return [f"{number_of} {outcome.value}{_example(failed, outcome)}" for outcome, number_of in grouped.most_common()]


def _example(failed: Iterable[Sample], outcome: Outcome) -> str:
    texts = (clean(sample.error, 200) for sample in failed if sample.outcome is outcome)
    text = next(filter(None, texts), "")
    return f', e.g. "{text}"' if text else ""


def public_url(url: str) -> str:
    """Return ``url`` without user name, password and query, inert; a simulator's query is its settings and stays."""
    scheme, separator, rest = clean(url, 2000).partition("://")
    if not separator:
        return scheme.rpartition("@")[2]
    authority, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"
