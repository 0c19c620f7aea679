"""Failed requests: retries, pauses of clients whose requests fail, and the end of a load that fails too often."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from pytest_ollama_perf.core.sample import Outcome, Phase, Sample
from pytest_ollama_perf.core.workload import Workload

RETRY_STATUSES = frozenset({502, 503, 504})
FIRST_RETRY_PAUSE_S = 0.5
MAX_RETRY_PAUSE_S = 30.0


def is_retry_due(workload: Workload, tries: Sequence[Sample]) -> bool:
    """Return whether the request is sent again after ``tries``."""
    return len(tries) <= workload.retries and tries[-1].status in RETRY_STATUSES and not tries[-1].ok


def compute_retry_pause_s(seed: int, index: int, tries: int) -> float:
    """Return the seconds to wait before the next try: doubling, with a random part so that clients spread out."""
    spread = random.Random(f"retry:{seed}:{index}:{tries}").uniform(0.5, 1.5)
    return min(MAX_RETRY_PAUSE_S, FIRST_RETRY_PAUSE_S * 2.0 ** min(tries - 1, 10)) * spread


def merge_attempts(tries: Sequence[Sample], turn: int = 1) -> Sample:
    """Return the sample of a request: its last try, with the send time and the error of the first."""
    last = tries[-1]
    if turn != 1:
        last = msgspec.structs.replace(last, turn=turn)
    if len(tries) == 1:
        return last
    first = tries[0]
    return msgspec.structs.replace(
        last,
        attempt=sum(one.attempt for one in tries),
        first_sent_ns=first.sent_ns if first.first_sent_ns is None else first.first_sent_ns,
        first_error=first.first_error or f"{first.outcome.value}: {first.error}",
    )


class FailureBackoff:
    """The pauses of one client while its requests fail, so that a dead server is not flooded with requests.

    A refused connection is followed by a pause immediately; other failures, after ``_UNPAUSED_FAILURES`` in a row. The
    pause doubles up to a second, or longer with more than 100 clients; after many failures it grows to two percent of
    all pauses since the last success. A success ends it. All clients together thus produce at most about 100 failures
    per second, and the number of failures grows with the logarithm of the duration of an outage. This limits the memory
    of a load and the size of its report.
    """

    def __init__(self, clients: int) -> None:
        self._max_pause_s = max(1.0, clients / _MAX_FAILURES_PER_S)
        self._failures = 0
        self._pauses = 0
        self._paused_s = 0.0

    def compute_pause_s(self, sample: Sample) -> float:
        """Return the seconds to wait after ``sample``."""
        if sample.ok:
            self._failures = self._pauses = 0
            self._paused_s = 0.0
            return 0.0
        self._failures += 1
        if sample.outcome is not Outcome.REFUSED and self._failures <= _UNPAUSED_FAILURES:
            return 0.0
        self._pauses += 1
        longest_s = max(self._max_pause_s, _MAX_PAUSE_SHARE * self._paused_s)
        pause_s = min(longest_s, _FIRST_BACKOFF_S * 2.0 ** min(self._pauses - 1, 20))
        self._paused_s += pause_s
        return pause_s


_UNPAUSED_FAILURES = 10
_MAX_PAUSE_SHARE = 0.02
_FIRST_BACKOFF_S = 0.05
_MAX_FAILURES_PER_S = 100


class FailureGuard:
    """Decides when too many measured requests have failed; ``limit`` is a share, ``None`` for no limit."""

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self._ended = 0
        self._failed = 0
        self.reason = ""
        """Why the load must stop; empty while it may go on."""

    def record(self, sample: Sample) -> None:
        """Count a request that has ended."""
        if self._limit is None or self.reason or sample.stage is Phase.WARMUP or sample.outcome is Outcome.CANCELLED:
            return
        self._ended += 1
        self._failed += not sample.ok
        if self._ended >= MIN_GUARDED_REQUESTS and self._failed > self._limit * self._ended:
            self.reason = (
                f"{self._failed} of {self._ended} requests failed, more than abort_error_rate={100 * self._limit:g}%"
            )


MIN_GUARDED_REQUESTS = 10
"""Requests that must have ended before a share of failures can stop a load."""
