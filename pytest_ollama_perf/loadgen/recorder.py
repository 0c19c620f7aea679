"""Keeps what a load has measured so far, safe to read from another thread while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from pytest_ollama_perf.core.sample import Sample
from pytest_ollama_perf.loadgen import StreamProgress

_TTFT_SAMPLES = 1000


@dataclass(frozen=True)
class LoadProgress:
    """The progress of a load. Counts include warm-up; ``total`` is ``None`` where time alone ends the load.

    ``tokens`` counts those of finished requests, by the server's own count or the chunks seen where it sent none, and
    the chunks of answers under way. ``ttft_s`` is the median of the latest first tokens, ``None`` before any.
    """

    sent: int
    done: int
    failed: int
    tokens: int
    elapsed_s: float
    total: int | None
    ttft_s: float | None = None

    @property
    def in_flight(self) -> int:
        """The number of requests that were sent and are not done."""
        return self.sent - self.done


class SampleRecorder:
    """Collects the samples of one load.

    The loop's thread writes, any thread reads: appending to a list and storing an integer are atomic in CPython, and
    ``done`` is read before ``sent``, so that a reader never sees more requests answered than sent. ``clock`` is for
    the elapsed time alone; a sample's times are the backend's.
    """

    def __init__(self, total: int | None = None, *, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self.total = total
        self._clock = clock
        self.started_ns: int | None = None
        self._began_ns: int | None = None
        self._sent = 0
        self._failed = 0
        self._tokens = 0
        self._samples: list[Sample] = []
        self.get_stream_progress: Callable[[], Sequence[StreamProgress]] = tuple

    def start(self, now_ns: int) -> None:
        """Start: connections are open, the first request follows. ``now_ns`` is on the samples' clock."""
        self.started_ns = now_ns
        self._began_ns = self._clock()

    def count_sent(self) -> None:
        """Count a request as sent."""
        self._sent += 1

    def add(self, sample: Sample) -> None:
        """Keep the sample of a request that ended."""
        self._failed += not sample.ok
        self._tokens += _count_tokens(sample)
        self._samples.append(sample)

    def get_samples(self) -> tuple[Sample, ...]:
        """Return what was recorded so far, in the order of the requests."""
        return tuple(sorted(self._samples, key=lambda sample: sample.index))

    def compute_progress(self) -> LoadProgress:
        """Return the progress of the load, in constant time and without work in the load's thread."""
        failed, tokens, done = self._failed, self._tokens, len(self._samples)
        streams = self.get_stream_progress()
        return LoadProgress(
            sent=self._sent,
            done=done,
            failed=failed,
            tokens=tokens + sum(stream.chunks for stream in streams),
            elapsed_s=self._compute_elapsed_s(),
            total=self.total,
            ttft_s=self._compute_ttft_s(streams),
        )

    def _compute_ttft_s(self, streams: Sequence[StreamProgress]) -> float | None:
        ended = [
            one.first_token_ns - one.start_ns
            for one in self._samples[-_TTFT_SAMPLES:]
            if one.first_token_ns is not None
        ]
        found = [*ended, *(stream.ttft_ns for stream in streams if stream.ttft_ns is not None)]
        return median(found) / 1e9 if found else None

    def _compute_elapsed_s(self) -> float:
        return 0.0 if self._began_ns is None else (self._clock() - self._began_ns) / 1e9


def _count_tokens(sample: Sample) -> int:
    counted = sample.counters.eval_count
    return len(sample.chunk_ns) if counted is None else counted
