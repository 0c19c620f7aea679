"""The simulator as a backend of the load engine: no sockets, one clock for both, exact times."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from pytest_ollama_perf.load.backend import Request
from pytest_ollama_perf.sample import Counters, Outcome, Sample
from pytest_ollama_perf.simulator import asked
from pytest_ollama_perf.simulator.clock import Clock, LoopClock
from pytest_ollama_perf.simulator.engine import Engine, engine
from pytest_ollama_perf.simulator.job import Ask, Drop, Failure, Truncate, Truth
from pytest_ollama_perf.simulator.settings import SimulatorSettings
from pytest_ollama_perf.workload import Endpoint, Timeouts


class _Client:
    """What one request shows to a client that reads ``delay_ns`` after the server wrote."""

    def __init__(self, request: Request, sent_ns: int, delay_ns: int) -> None:
        self.request = request
        self.sent_ns = sent_ns
        self._delay_ns = delay_ns
        self.chunks: list[int] = []
        self.first_answer_ns: int | None = None
        self.garbled = False
        self.last_ns = sent_ns
        self.moved = anyio.Event()

    def piece(self, text: str, thinking: bool, at_ns: int) -> None:
        self.last_ns = at_ns + self._delay_ns
        if self.request.heard is not None and not thinking:
            self.request.heard.append(text)
        if self.request.stream:
            self.chunks.append(self.last_ns)
            if not thinking and self.first_answer_ns is None:
                self.first_answer_ns = self.last_ns
        self.moved.set()

    def garbage(self, at_ns: int) -> None:
        self.garbled = True
        self.moved.set()

    def sample(self, url: str, outcome: Outcome, done_ns: int, truth: _Result) -> Sample:
        """Write down what the request showed."""
        request, streamed = self.request, bool(self.chunks)
        answered = outcome is Outcome.OK or streamed
        first = self.chunks[0] if streamed else (done_ns if outcome is Outcome.OK else None)
        return Sample(
            index=request.index,
            client=request.client,
            url=url,
            request_id=request.request_id,
            stage=request.stage,
            outcome=outcome,
            sent_ns=self.sent_ns,
            done_ns=done_ns,
            error=truth.error,
            status=200 if answered and truth.status is None else truth.status,
            scheduled_ns=request.scheduled_ns,
            header_ns=first,
            first_token_ns=self.chunks[0] if streamed else None,
            first_answer_ns=self.first_answer_ns,
            chunk_ns=tuple(self.chunks),
            line_count=len(self.chunks) + (outcome is Outcome.OK),
            read_count=len(set(self.chunks)),
            done_reason=truth.reason,
            counters=truth.counters,
        )


class _Result:
    """How the server's side ended."""

    def __init__(
        self,
        outcome: Outcome,
        error: str = "",
        status: int | None = None,
        reason: str = "",
        counters: Counters | None = None,
    ) -> None:
        self.outcome = outcome
        self.error = error
        self.status = status
        self.reason = reason
        self.counters = counters or Counters()


class SimulatedBackend:
    """A ``load.backend.Backend`` on an engine; ``simulated(...)`` makes one. Every target is the same server.

    ``requests`` is the ground truth, on the same clock as the samples.
    """

    def __init__(self, running: Engine, *, url: str = "sim:", read_delay_s: float = 0.0) -> None:
        self.engine = running
        self._url = url
        self._delay_ns = round(read_delay_s * 1e9)

    @property
    def requests(self) -> list[Truth]:
        """The ground truth of every request so far, in order of arrival."""
        return list(self.engine.truths)

    def now_ns(self) -> int:
        """The engine's clock."""
        return self.engine.clock.now_ns()

    async def connect(self, connections: int) -> None:
        """Nothing to connect."""

    async def send(self, request: Request, record: Callable[[Sample], None]) -> None:
        """Answer ``request`` and record its sample, also when a timeout or the caller cancels it."""
        client = _Client(request, self.now_ns(), self._delay_ns)
        result = _Result(Outcome.CANCELLED)
        try:
            result = await self._within_timeouts(client)
            if self._delay_ns:
                await self.engine.clock.sleep_until(self.now_ns() + self._delay_ns)
        finally:
            record(client.sample(self._url, result.outcome, self.now_ns(), result))

    async def aclose(self) -> None:
        """Nothing to close."""

    async def _within_timeouts(self, client: _Client) -> _Result:
        result: list[_Result] = []
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                outcome = await self._overdue(client)
                result.append(_Result(outcome, outcome.value.replace("_", " ")))
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            answered = await self._answer(client)
            result.append(answered)
            tasks.cancel_scope.cancel()
        return result[0]

    async def _overdue(self, client: _Client) -> Outcome:
        """Return which timeout ran out first."""
        timeouts = client.request.timeouts
        end = client.sent_ns + round(timeouts.total_s * 1e9)
        while True:
            due, outcome = _next_timeout(client, timeouts)
            client.moved = anyio.Event()
            deadline = min(due, end)
            with anyio.move_on_after(max(0, deadline - self.now_ns()) / 1e9):
                await client.moved.wait()
                continue
            return Outcome.TOTAL_TIMEOUT if end <= due else outcome

    async def _answer(self, client: _Client) -> _Result:
        try:
            ask = self._ask(client.request)
            answer, _ = await self.engine.answer(ask, client)
        except Failure as failure:
            return _failed(failure, started=bool(client.chunks))
        except Drop:
            return _Result(Outcome.CUT_OFF, "the connection broke")
        except Truncate:
            return _Result(Outcome.TRUNCATED, "the stream ended without done: true")
        if client.garbled:
            return _Result(Outcome.MALFORMED, "a line is no JSON")
        return _Result(Outcome.OK, reason=answer.reason, counters=answer.counters)

    def _ask(self, request: Request) -> Ask:
        """Read the body as the server does."""
        given = asked.body(request.body, "GenerateRequest")
        tokenizer = self.engine.tokenizer
        model = self.engine.model(given.text("model"))
        if request.endpoint is Endpoint.EMBED:
            asked.capable(model, given.text("model"), "embedding", "embeddings")
            return asked.embed_ask(given, tokenizer, request.request_id)[0]
        asked.capable(model, given.text("model"), "completion", request.endpoint.value)
        tokenize = asked.chat_tokens if request.endpoint is Endpoint.CHAT else asked.prompt_tokens
        return asked.completion(given, model, tokenize(given, tokenizer), request.endpoint.value, request.request_id)


def _next_timeout(client: _Client, timeouts: Timeouts) -> tuple[int, Outcome]:
    if client.chunks:
        return client.last_ns + round(timeouts.idle_s * 1e9), Outcome.IDLE_TIMEOUT
    return client.sent_ns + round(timeouts.first_token_s * 1e9), Outcome.FIRST_TOKEN_TIMEOUT


def _failed(failure: Failure, *, started: bool) -> _Result:
    if started:
        return _Result(Outcome.SERVER_ERROR, failure.message)
    outcome = Outcome.BUSY if failure.status == 503 else Outcome.HTTP_ERROR
    return _Result(outcome, failure.message, failure.status)


@asynccontextmanager
async def simulated(
    settings: SimulatorSettings | None = None, *, clock: Clock | None = None, read_delay_s: float = 0.0
) -> AsyncIterator[SimulatedBackend]:
    """Run a simulator on ``clock`` (the event loop's: virtual under trio's ``MockClock``) and yield a backend on it."""
    chosen = SimulatorSettings() if settings is None else settings
    async with engine(chosen, LoopClock() if clock is None else clock) as running:
        yield SimulatedBackend(running, read_delay_s=read_delay_s)
