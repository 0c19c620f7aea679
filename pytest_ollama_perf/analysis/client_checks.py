"""Problems of the network path and of the client: buffered streams, a client that could not keep up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from urllib.parse import urlsplit

import msgspec
import numpy as np

from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.sample import Counters, Sample
from pytest_ollama_perf.core.verdict import Problem, ProblemCode
from pytest_ollama_perf.core.workload import Prefix
from pytest_ollama_perf.metrics import format_count, format_number, format_percent, format_seconds
from pytest_ollama_perf.metrics.summary import Summary

_MIN_CHUNKS = 8
_MIN_DECODE_S = 0.05
_MIN_STEP_S = 0.002
_MIN_BURST = 8.0
_MIN_SHORT_BURST = 3.5
_MIN_DELAY_S = 0.025
_MAX_AFFECTED_SHARE = 0.1
_MAX_BUFFERED_SHARE = 0.25
"""More delayed responses than this invalidate the run: a quarter moves the median of TTFT."""


def check_buffering(run: Run, summary: Summary) -> Iterator[Problem]:
    """Something between server and client delayed the stream.

    Each sign needs at least 8 chunks, and about as many chunks as tokens (a parser on the server may also hold text
    back). All chunks came in less than half the time that the server says it took to make them; or they came in bursts
    of 8 and more, where the server needed over 2 ms for each; or in shorter bursts whose first one came late. A model
    with speculative decoding makes bursts of up to 6, but it sends its first token alone and in time. A long prefill
    next to a stream pauses it but leaves its other gaps as they were.
    """
    streams = [sample for sample in run.measured if sample.ok and len(sample.chunk_ns) >= _MIN_CHUNKS]
    held = [one for one in streams if _is_conclusive(one) and _is_buffered(one)]
    if len(held) <= _MAX_AFFECTED_SHARE * len(streams):
        return
    shared = f"{len(held)} of {format_count(len(streams), 'response')} came in bursts{_format_bursts(held)}"
    invalidates = len(held) > _MAX_BUFFERED_SHARE * len(streams)
    if _is_client_busy(run) and all(_is_loopback(sample.url) for sample in held):
        text = f"this machine was busy: the server runs on it as well, and {shared}"
        yield Problem(code=ProblemCode.CLIENT_BOUND, text=text, invalidates=invalidates)
    else:
        text = f"the stream was buffered on its way: {shared}; is there a proxy?"
        yield Problem(code=ProblemCode.BUFFERED_STREAM, text=text, invalidates=invalidates)


def _format_bursts(held: Sequence[Sample]) -> str:
    late = median(map(_compute_delay_s, held))
    bursts = median(map(_compute_burst_size, held))
    of_chunks = f" of {format_number(bursts)} chunks" if bursts >= _MIN_SHORT_BURST else ""
    return of_chunks + (f", the first {format_seconds(late)} late" if late else "")


def _is_buffered(sample: Sample) -> bool:
    if _compute_delay_s(sample) or _compute_burst_size(sample) >= _MIN_BURST:
        return True
    return _compute_burst_size(sample) >= _MIN_SHORT_BURST and _is_first_burst_late(sample)


def _is_first_burst_late(sample: Sample) -> bool:
    """Whether the first chunk waited for others: it came with them, and the stream took less time than its tokens."""
    step = _compute_step_of(sample)
    together = sum(at - sample.chunk_ns[0] <= step / 10 for at in sample.chunk_ns)
    missing = (sample.counters.eval_duration_ns or 0) - (sample.chunk_ns[-1] - sample.chunk_ns[0])
    return together >= _MIN_SHORT_BURST and missing >= max(_MIN_DELAY_S * 1e9 / 2, (together - 1) * step / 2)


def _compute_step_of(sample: Sample) -> float:
    return (sample.counters.eval_duration_ns or 0) / max(1, (sample.counters.eval_count or 1) - 1)


def _is_client_busy(run: Run) -> bool:
    lag_s = max(run.watch.loop_lag_p99_s, run.watch.read_lag_p99_s)
    return lag_s >= _MIN_LAG_S or run.watch.cpu_share >= _NEARLY_BUSY


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")


def _is_conclusive(sample: Sample) -> bool:
    chunks, counters = len(sample.chunk_ns), sample.counters
    enough = chunks >= _MIN_CHUNKS and 2 * chunks >= (counters.eval_count or 0)
    return enough and (counters.eval_duration_ns or 0) >= _MIN_DECODE_S * 1e9


def _compute_delay_s(sample: Sample) -> float:
    """How late the first chunk came, where all came in less than half the time they were made in; else 0."""
    made = sample.counters.eval_duration_ns or 0
    seen = sample.chunk_ns[-1] - sample.chunk_ns[0]
    return (made - seen) / 1e9 if 2 * seen < made else 0.0


def _compute_burst_size(sample: Sample) -> float:
    step = _compute_step_of(sample)
    if step < _MIN_STEP_S * 1e9:
        return 1.0
    pauses = int((np.diff(np.array(sample.chunk_ns, dtype=np.int64)) > int(step / 10)).sum())
    return len(sample.chunk_ns) / (pauses + 1)


_MIN_LAG_S = 0.025
_MIN_LAG_SHARE = 0.25
_BUSY, _NEARLY_BUSY = 0.9, 0.7


def check_client_bound(run: Run, summary: Summary) -> Iterator[Problem]:
    """The client was the bottleneck.

    A core that is 90 % busy has no reserve for the next burst. A lag counts from 25 ms on, which is more than the time
    slices of a scheduler cost on a shared machine, if it is at least a quarter of the shortest time measured.
    A single lag is a note. A run is invalid from a lag in a tenth of the requests or a tenth of the time on, since
    medians and trimmed means tolerate fewer.
    """
    busy = run.watch.cpu_share
    if busy >= _NEARLY_BUSY:
        text = f"the client used {format_percent(busy)} of a core: it may have been the bottleneck"
        yield Problem(code=ProblemCode.CLIENT_BOUND, text=text, invalidates=busy >= _BUSY)
    measured = _get_typical_s(summary)
    if not measured:
        return
    tolerated = max(_MIN_LAG_S, _MIN_LAG_SHARE * measured)
    late = [lag for lag in (sample.read_lag_ns / 1e9 for sample in run.measured) if lag >= tolerated]
    if late:
        text = (
            f"the client read {len(late)} of {format_count(len(run.measured), 'response')} late, "
            f"by up to {format_seconds(max(late))}, where the server answers in {format_seconds(measured)}"
        )
        yield Problem(
            code=ProblemCode.CLIENT_BOUND, text=text, invalidates=len(late) > _compute_tolerated_late(len(run.measured))
        )
    if run.watch.loop_lag_p99_s >= tolerated:
        usual = run.watch.loop_lag_p90_s
        text = (
            f"the client's event loop lagged by {format_seconds(run.watch.loop_lag_p99_s)} (p99; p90 "
            f"{format_seconds(usual)}), "
            f"where the server answers in {format_seconds(measured)}"
        )
        yield Problem(code=ProblemCode.CLIENT_BOUND, text=text, invalidates=usual >= tolerated)


def _compute_tolerated_late(requests: int) -> float:
    """Return how many late requests are tolerated: a trimmed mean leaves one out from five requests on."""
    return max(_MAX_AFFECTED_SHARE * requests, float(requests >= 5))


def _get_typical_s(summary: Summary) -> float | None:
    """The median time to the first token, or of the whole request where there is none."""
    found = summary.metrics.get("ttft") or summary.metrics.get("latency")
    return found.stats["p50"] if found else None


def check_schedule(run: Run, summary: Summary) -> Iterator[Problem]:
    """An open loop that could not send when it meant to did not offer the load it was asked for."""
    late = _list_lateness_s(run.measured)
    measured = _get_typical_s(summary)
    if not late or not measured:
        return
    p95 = float(np.percentile(late, 95))
    if p95 >= _MIN_LAG_S and p95 >= _MIN_LAG_SHARE * measured:
        text = (
            f"requests left late: {format_seconds(p95)} (p95) and up to {format_seconds(max(late))} after their "
            f"scheduled time"
        )
        yield Problem(code=ProblemCode.BEHIND_SCHEDULE, text=text, invalidates=True)


def _list_lateness_s(samples: Sequence[Sample]) -> list[float]:
    return [(one.sent_ns - one.scheduled_ns) / 1e9 for one in samples if one.scheduled_ns is not None]


@dataclass(frozen=True)
class CachedPrompts:
    """``requests`` of ``of`` had more than half of their prompt cached; ``told`` by the server or inferred from times.

    ``tokens`` is the share of prompt tokens that were cached, 0 where the server does not say.
    """

    requests: int
    of: int
    told: bool
    tokens: float = 0.0


def find_cached_prompts(run: Run) -> CachedPrompts | None:
    """Return what was cached, or nothing: also where a warm prefix was asked for.

    Later turns of a chat are left out.
    """
    if run.workload.prefix is Prefix.WARM:
        return None
    # a later turn of a chat begins with the earlier ones: what the server kept of those is no accident
    first = [sample for sample in run.measured if sample.ok and sample.turn == 1]
    counters = [sample.counters for sample in first if sample.counters.prompt_eval_count]
    told = any(one.prompt_eval_cached_count for one in counters)
    requests = _count_reported(counters) if told else _count_inferred(counters, _find_slowest_prefill(run))
    if not requests:
        return None
    return CachedPrompts(requests, len(counters), told, _compute_cached_share(counters))


def _count_reported(counters: Sequence[Counters]) -> int:
    """A template's opening is the same in every prompt; more than half of the prompt is not the template."""
    return sum((one.prompt_eval_cached_count or 0) * 2 > (one.prompt_eval_count or 0) for one in counters)


def _compute_cached_share(counters: Sequence[Counters]) -> float:
    return sum(one.prompt_eval_cached_count or 0 for one in counters) / sum(
        one.prompt_eval_count or 0 for one in counters
    )


_LONG_TOKENS, _VERY_LONG_TOKENS = 256, 512
_MAX_STEPS, _MAX_STEPS_ALONE = 4.0, 1.5
_MIN_SPEEDUP = 10.0


def _count_inferred(counters: Sequence[Counters], slowest: float) -> int:
    """Servers before 0.33.3 do not report what was cached; for long prompts it is inferred from the time.

    Reading a cached prompt costs about one decode step (1.1-3.4 steps measured, 200 for the same 1000 tokens uncached).
    On the fastest GPUs prefill becomes compute-bound near 40 tokens a step, so 512 uncached tokens take over ten steps.
    The step is the fastest of the run: other requests' prefills only ever make steps longer. A prompt counts as cached
    at 1.5 steps or fewer from 512 tokens on; or, from 256 on, at 4 steps or fewer where another request of the same run
    needed ten times as long for a token.
    """
    steps = [step for step in map(_compute_step_ns, counters) if step]
    if not steps:
        return 0
    return sum(_is_cached(one, min(steps), slowest) for one in counters)


def _is_cached(one: Counters, step: float, slowest: float) -> bool:
    count, took = one.prompt_eval_count or 0, one.prompt_eval_duration_ns
    if not took or count < _LONG_TOKENS:
        return False
    alone = count >= _VERY_LONG_TOKENS and took <= _MAX_STEPS_ALONE * step
    return alone or (took <= _MAX_STEPS * step and _MIN_SPEEDUP * took / count <= slowest)


def _compute_step_ns(one: Counters) -> float | None:
    """Nanoseconds of one decode step."""
    count = one.eval_count or 0
    return one.eval_duration_ns / (count - 1) if one.eval_duration_ns and count >= 2 else None


def _find_slowest_prefill(run: Run) -> float:
    """The longest prefill per token of a long prompt, in nanoseconds, warm-up included; 0 where there is none."""
    long = (
        sample.counters
        for sample in run.samples
        if sample.ok and (sample.counters.prompt_eval_count or 0) >= _LONG_TOKENS
    )
    return max(((one.prompt_eval_duration_ns or 0) / (one.prompt_eval_count or 1) for one in long), default=0.0)


MAX_CORE_SHARE = 0.7
"""Share of a core that streams may take: above it a run is called client-bound (``client_side``)."""

TYPICAL_TPS = 50.0
"""Tokens/s of a stream, to convert a rate of chunks to a number of streams; typical for a desktop GPU."""

_MAX_IDLE_LAG_S = 0.025
_MAX_TTFT_ERROR_S = 0.010
_MAX_CLOCK_STEP_S = 1e-4


class ClientMeasurement(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of the client on this machine.

    ``flood_chunks_s`` is chunks per CPU second with every socket full, ``chunks_s`` with one chunk a read, which is how
    a model's tokens come. ``ttft_error_*_s`` is how much longer the time to the first token looked than it was on the
    generator's clock. ``open_files`` is ``None`` where there is no limit.
    """

    cpus: int
    uvloop: bool
    receive_stamps: bool
    timer_resolution_s: float
    idle_lag_p99_s: float
    idle_lag_max_s: float
    flood_chunks_s: float
    chunks_s: float
    paced_streams: int
    paced_tps: float
    ttft_error_p50_s: float
    ttft_error_p99_s: float
    open_files: int | None = None
    open_files_needed: int = 0
    load_average: float | None = None

    def count_streams(self, tps: float = TYPICAL_TPS) -> int:
        """Return how many streams of ``tps`` one core can take in and keep its reserve."""
        return int(MAX_CORE_SHARE * self.chunks_s / tps)


def find_client_problems(client: ClientMeasurement, *, streams: int = 0, tps: float = 0.0) -> tuple[Problem, ...]:
    """Return what makes the measurements of ``client`` inaccurate, for ``streams`` at ``tps`` each if known."""
    return (
        tuple(_check_open_files(client))
        + tuple(_check_lag(client))
        + tuple(_check_rate(client, streams, tps))
        + tuple(_check_clock(client))
    )


def _check_open_files(client: ClientMeasurement) -> Iterator[Problem]:
    if client.open_files is not None and client.open_files < client.open_files_needed:
        needed = f"the load needs {client.open_files_needed} open files"
        text = f"{needed}, this process may have {client.open_files}: raise the limit (ulimit -n)"
        yield Problem(code=ProblemCode.OPEN_FILES, text=text, invalidates=True)


def _check_lag(client: ClientMeasurement) -> Iterator[Problem]:
    """Lag that would void a run (25 ms) while nothing is to be done can only be the machine's."""
    if client.idle_lag_p99_s >= _MAX_IDLE_LAG_S:
        text = (
            f"an idle event loop wakes {format_seconds(client.idle_lag_p99_s)} late (p99): this machine is overloaded"
        )
        yield Problem(code=ProblemCode.EVENT_LOOP_LAG, text=text, invalidates=True)
    if client.load_average is not None and client.load_average > client.cpus:
        cores = format_count(client.cpus, "core")
        text = f"load average {format_number(client.load_average)} on {cores}: other programs are using this machine"
        yield Problem(code=ProblemCode.BUSY_MACHINE, text=text, invalidates=False)


def _check_rate(client: ClientMeasurement, streams: int, tps: float) -> Iterator[Problem]:
    share = streams * tps / client.chunks_s
    if share > MAX_CORE_SHARE:
        load = f"{format_count(streams, 'stream')} of {format_number(tps)} tokens/s"
        text = f"{load} would take {format_percent(share)} of a core of this client: use fewer at once"
        yield Problem(code=ProblemCode.CLIENT_TOO_SLOW, text=text, invalidates=True)


def _check_clock(client: ClientMeasurement) -> Iterator[Problem]:
    if client.ttft_error_p50_s > _MAX_TTFT_ERROR_S:
        text = f"times to the first token look {format_seconds(client.ttft_error_p50_s)} longer than they are (p50)"
        yield Problem(code=ProblemCode.CLOCK_ERROR, text=text, invalidates=True)
    if client.timer_resolution_s > _MAX_CLOCK_STEP_S:
        text = f"this machine's clock has steps of {format_seconds(client.timer_resolution_s)}: short times are rounded"
        yield Problem(code=ProblemCode.COARSE_CLOCK, text=text, invalidates=False)
