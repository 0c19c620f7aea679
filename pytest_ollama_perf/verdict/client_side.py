"""Problems on the way and in the client itself: buffered streams, a client that could not keep up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

import numpy as np

from pytest_ollama_perf.run import Run
from pytest_ollama_perf.sample import Sample
from pytest_ollama_perf.summary import Summary
from pytest_ollama_perf.verdict.wording import count, number, percent, seconds
from pytest_ollama_perf.verdict.words import Problem

_CHUNKS = 8
_DECODE_S = 0.05
_STEP_S = 0.002
_BURST = 8.0
_AFFECTED = 0.1


def buffered(run: Run, summary: Summary) -> Iterator[Problem]:
    """Something between server and client held the stream back.

    Two signs, each of which needs at least 8 chunks, and about as many chunks as tokens (a parser on the server may
    hold text back, too): all chunks came in less than half the time that the server says it took to make them; or they
    came in bursts of 8 and more with nothing between them, where the server needed over 2 ms for each. Speculative
    decoding makes shorter bursts, and a long prefill beside a stream pauses it but leaves its other gaps as they were.
    A proxy holds every stream back, and spoils the run; a server short of CPU holds some, which is only noted.
    """
    streams = [sample for sample in run.measured if sample.ok and len(sample.chunk_ns) >= _CHUNKS]
    held = [one for one in streams if _tells(one) and (_held_s(one) or _chunks_a_burst(one) >= _BURST)]
    if len(held) <= _AFFECTED * len(streams):
        return
    late = median(_held_s(sample) for sample in held)
    bursts = median(_chunks_a_burst(sample) for sample in held)
    of_chunks = f" of {number(bursts)} chunks" if bursts >= _BURST else ""
    text = (
        f"the stream was buffered on its way: {len(held)} of {count(len(streams), 'response')} came in bursts"
        f"{of_chunks}{f', the first {seconds(late)} late' if late else ''}; is there a proxy?"
    )
    yield Problem(name="buffered stream", text=text, spoils=2 * len(held) > len(streams))


def _tells(sample: Sample) -> bool:
    chunks, counters = len(sample.chunk_ns), sample.counters
    enough = chunks >= _CHUNKS and 2 * chunks >= (counters.eval_count or 0)
    return enough and (counters.eval_duration_ns or 0) >= _DECODE_S * 1e9


def _held_s(sample: Sample) -> float:
    """How late the first chunk came, where all came in less than half the time they were made in; else 0."""
    made = sample.counters.eval_duration_ns or 0
    seen = sample.chunk_ns[-1] - sample.chunk_ns[0]
    return (made - seen) / 1e9 if 2 * seen < made else 0.0


def _chunks_a_burst(sample: Sample) -> float:
    step = (sample.counters.eval_duration_ns or 0) / max(1, (sample.counters.eval_count or 1) - 1)
    if step < _STEP_S * 1e9:
        return 1.0
    pauses = int((np.diff(np.array(sample.chunk_ns, dtype=np.int64)) > int(step / 10)).sum())
    return len(sample.chunk_ns) / (pauses + 1)


_LAG_S = 0.025
_LAG_SHARE = 0.25
_BUSY, _NEARLY_BUSY = 0.9, 0.7


def client_bound(run: Run, summary: Summary) -> Iterator[Problem]:
    """The client was the bottleneck.

    A core that is 90 % busy has no reserve for the next burst. A lag counts from 25 ms on, more than a
    scheduler's time slices cost on a shared machine, and where it is a quarter of the shortest time that is measured.
    One hiccup is a note: it takes a lag in a tenth of the requests, or a tenth of the time, to spoil a run, since the
    numbers that decide (medians, trimmed means) bear fewer.
    """
    busy = run.watch.cpu_share
    if busy >= _NEARLY_BUSY:
        text = f"the client used {percent(busy)} of a core: it may have been the bottleneck"
        yield Problem(name="client-bound", text=text, spoils=busy >= _BUSY)
    measured = _typical_s(summary)
    if not measured:
        return
    bearable = max(_LAG_S, _LAG_SHARE * measured)
    late = [lag for lag in (sample.read_lag_ns / 1e9 for sample in run.measured) if lag >= bearable]
    if late:
        text = (
            f"the client read {len(late)} of {count(len(run.measured), 'response')} late, "
            f"by up to {seconds(max(late))}, where the server answers in {seconds(measured)}"
        )
        yield Problem(name="client-bound", text=text, spoils=len(late) > _bearable(len(run.measured)))
    if run.watch.loop_lag_p99_s >= bearable:
        usual = run.watch.loop_lag_p90_s
        text = (
            f"the client's event loop lagged by {seconds(run.watch.loop_lag_p99_s)} (p99; p90 {seconds(usual)}), "
            f"where the server answers in {seconds(measured)}"
        )
        yield Problem(name="client-bound", text=text, spoils=usual >= bearable)


def _bearable(requests: int) -> float:
    """How many late requests the deciding numbers bear: a trimmed mean leaves one out from five requests on."""
    return max(_AFFECTED * requests, float(requests >= 5))


def _typical_s(summary: Summary) -> float | None:
    """The median time to the first token, or of the whole request where there is none."""
    found = summary.metrics.get("ttft") or summary.metrics.get("latency")
    return found.stats["p50"] if found else None


def behind_schedule(run: Run, summary: Summary) -> Iterator[Problem]:
    """An open loop that could not send when it meant to did not offer the load it was asked for."""
    late = _lateness_s(run.measured)
    measured = _typical_s(summary)
    if not late or not measured:
        return
    p95 = float(np.percentile(late, 95))
    if p95 >= _LAG_S and p95 >= _LAG_SHARE * measured:
        text = f"requests left late: {seconds(p95)} (p95) and up to {seconds(max(late))} after their scheduled time"
        yield Problem(name="behind schedule", text=text, spoils=True)


def _lateness_s(samples: Sequence[Sample]) -> list[float]:
    return [(one.sent_ns - one.scheduled_ns) / 1e9 for one in samples if one.scheduled_ns is not None]
