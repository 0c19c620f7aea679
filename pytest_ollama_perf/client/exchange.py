"""One request over its attempts: the deadlines, and the sample that is made of it in the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from pytest_ollama_perf.client.response import Response
from pytest_ollama_perf.core.sample import Outcome, Sample
from pytest_ollama_perf.core.workload import Timeouts
from pytest_ollama_perf.loadgen import Request, StreamProgress

_SECOND_NS = 1_000_000_000

_TIMEOUT_MESSAGES = {
    Outcome.FIRST_TOKEN_TIMEOUT: "no first token within {first_token_s:g} s",
    Outcome.IDLE_TIMEOUT: "nothing more for {idle_s:g} s",
    Outcome.TOTAL_TIMEOUT: "not done within {total_s:g} s",
    Outcome.CONNECT_TIMEOUT: "no connection within {connect_s:g} s",
}


def format_timeout(outcome: Outcome, timeouts: Timeouts) -> str:
    """Return the error text of a timeout."""
    return _TIMEOUT_MESSAGES[outcome].format(**msgspec.structs.asdict(timeouts))


class Exchange:
    """One request and the response to its current attempt.

    ``connect_ns`` is how long opening a connection took, ``None`` where an open one was used.
    """

    def __init__(self, request: Request, url: str, now_ns: int) -> None:
        self.request = request
        self.url = url
        self.connect_ns: int | None = None
        self.response = Response(request, now_ns)
        self._attempt = 1
        self._first_sent_ns: int | None = None
        self._first_error = ""

    def restart(self) -> None:
        """Start the next attempt with a fresh response; the time and the error of the first one are kept."""
        lost = self.response
        if self._first_sent_ns is None and lost.outcome is not None:
            self._first_sent_ns = lost.sent_ns
            self._first_error = f"{lost.outcome.value}: {lost.body.error}"
        if self.request.answer_parts is not None:
            self.request.answer_parts.clear()
        self._attempt += 1
        self.response = Response(self.request, lost.sent_ns)

    def fail(self, outcome: Outcome, error: str) -> None:
        """End the current attempt now, unless it has ended."""
        self.response.fail(outcome, error, time.perf_counter_ns())

    def get_stream_progress(self) -> StreamProgress:
        """Return how far the response is; may be called from any thread."""
        body, start = self.response.body, self.request.scheduled_ns
        if start is None:
            start = self.response.sent_ns if self._first_sent_ns is None else self._first_sent_ns
        first = body.first_token_ns
        return StreamProgress(len(body.chunk_ns), None if first is None else first - start)

    def build_sample(self, mask: Callable[[str], str]) -> Sample:
        """Return the sample of a request that has ended; ``mask`` hides secrets in texts of the server."""
        request, response, body = self.request, self.response, self.response.body
        assert body.outcome is not None
        response.release()
        return Sample(
            index=request.index,
            client=request.client,
            url=self.url,
            request_id=request.request_id,
            stage=request.stage,
            outcome=body.outcome,
            sent_ns=response.sent_ns,
            done_ns=body.done_ns,
            error=mask(body.error),
            status=response.status,
            scheduled_ns=request.scheduled_ns,
            connect_ns=self.connect_ns,
            header_ns=response.header_ns,
            first_token_ns=body.first_token_ns,
            first_answer_ns=body.first_answer_ns,
            chunk_ns=tuple(body.chunk_ns),
            line_count=body.line_count,
            read_count=response.read_count,
            bytes_received=response.bytes_received,
            read_lag_ns=response.read_lag_ns,
            done_reason=mask(body.done_reason),
            counters=body.counters,
            attempt=self._attempt,
            first_sent_ns=self._first_sent_ns,
            first_error=mask(self._first_error),
            server=mask(response.read_upstream()),
        )


def compute_deadline(response: Response, timeouts: Timeouts) -> tuple[int, Outcome]:
    """Return when the next event is due, on the samples' clock, and the outcome if it does not come."""
    total = response.sent_ns + int(timeouts.total_s * _SECOND_NS)
    if response.is_waiting_for_token:
        due, outcome = response.sent_ns + int(timeouts.first_token_s * _SECOND_NS), Outcome.FIRST_TOKEN_TIMEOUT
    elif response.bytes_received:
        due, outcome = response.last_ns + int(timeouts.idle_s * _SECOND_NS), Outcome.IDLE_TIMEOUT
    else:
        return total, Outcome.TOTAL_TIMEOUT
    return (due, outcome) if due < total else (total, Outcome.TOTAL_TIMEOUT)


_LATE_TIMER_NS = 50_000_000
_RECOVERY_NS = _SECOND_NS
"""How long a server may take to resume a stream that stalled because this process did not read."""


class TimedConnection(Protocol):
    """What the deadline timer needs of a connection."""

    def poll(self) -> None:
        """Read what has arrived and was not read yet."""

    def finish(self) -> None:
        """Let go of the response, which is finished."""

    def close(self) -> None:
        """Close the connection."""


class DeadlineTimer:
    """Ends a response that missed a deadline, with one timer that fires at most once per idle timeout.

    A timer that fires late means that this process was stopped or starved meanwhile. Nothing could be read in that
    time, so it is not charged to the server: every deadline moves by it.
    """

    def __init__(self, connection: TimedConnection, response: Response, timeouts: Timeouts) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._response = response
        self._timeouts = timeouts
        self._lost_ns = 0
        self._start(time.perf_counter_ns())

    def stop(self) -> None:
        """Cancel the timer."""
        self._timer.cancel()

    def _start(self, now_ns: int) -> None:
        due_ns, _ = self._compute_deadline()
        wait_s = max(0.001, min((due_ns - now_ns) / _SECOND_NS, self._timeouts.idle_s))
        self._expected_ns = now_ns + int(wait_s * _SECOND_NS)
        self._timer = self._loop.call_later(wait_s, self._check)

    def _compute_deadline(self) -> tuple[int, Outcome]:
        due_ns, outcome = compute_deadline(self._response, self._timeouts)
        return due_ns + self._lost_ns, outcome

    def _check(self) -> None:
        late_ns = time.perf_counter_ns() - self._expected_ns
        if late_ns > _LATE_TIMER_NS:
            self._lost_ns += late_ns + _RECOVERY_NS
        self._connection.poll()
        if self._response.finished:
            return
        now_ns = time.perf_counter_ns()
        due_ns, outcome = self._compute_deadline()
        if now_ns < due_ns:
            self._start(now_ns)
            return
        self._response.expire(outcome, format_timeout(outcome, self._timeouts), now_ns)
        self._connection.close()
        self._connection.finish()
