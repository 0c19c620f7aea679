"""A simulator in a separate process, so that client and server do not share a CPU core.

``python -m pytest_ollama_perf.simulator.process`` is that process. It reads its settings as one line of JSON from
standard input and prints its URL as the first line of output. It ends when standard input is closed, which happens when
the parent process ends for any reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
import msgspec

from pytest_ollama_perf.core import ConfigError, ServerError
from pytest_ollama_perf.core.sample import Counters, Outcome, Sample
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.workload import Endpoint, Timeouts
from pytest_ollama_perf.loadgen import Request
from pytest_ollama_perf.simulator import requests as requests_module
from pytest_ollama_perf.simulator.engine import Engine, run_engine
from pytest_ollama_perf.simulator.faults import Fault, FaultKind
from pytest_ollama_perf.simulator.job import (
    DroppedConnectionError,
    GroundTruth,
    InferenceRequest,
    LoopClock,
    ResponseError,
    SimulatorClock,
    TransportFaultError,
    TruncatedResponseError,
)
from pytest_ollama_perf.simulator.settings import SimulatorSettings

_START_S = 30.0
_STOP_S = 3.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class _RequestListing(msgspec.Struct):
    requests: list[GroundTruth]


class RunningSimulator:
    """A running simulator: its ``url``, its ``settings``, and the ground truth of its requests."""

    def __init__(self, url: str, settings: SimulatorSettings) -> None:
        self.url = url
        self.settings = settings

    def requests(self) -> list[GroundTruth]:
        """Return the ground truth of every request since the start or the last reset, in order of arrival.

        Times are ``time.perf_counter_ns`` of this machine. ``ServerError`` if the simulator no longer runs.
        """
        return msgspec.json.decode(self._fetch("/sim/requests"), type=_RequestListing).requests

    def reset(self) -> None:
        """Clear the ground truth and number requests from 1 again; loaded models stay loaded."""
        self._fetch("/sim/reset", b"{}")

    def _fetch(self, path: str, body: bytes | None = None) -> bytes:
        try:
            with _OPENER.open(urllib.request.Request(self.url + path, data=body), timeout=_START_S) as answer:
                return bytes(answer.read())
        except OSError as error:
            raise ServerError(f"the simulator at {self.url} does not answer: {error}") from error


@contextmanager
def start_simulator(settings: SimulatorSettings | None = None) -> Iterator[RunningSimulator]:
    """Run a simulator on a free port of 127.0.0.1 while the block runs.

    It also ends when this process ends for any reason. ``ServerError`` explains why it could not start.
    """
    settings = SimulatorSettings() if settings is None else settings
    command = [sys.executable, "-P", "-m", "pytest_ollama_perf.simulator.process"]
    if sys.version_info < (3, 11):
        command.remove("-P")
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield RunningSimulator(_await_url(child, settings), settings)
    finally:
        _stop_process(child)


def _await_url(child: subprocess.Popen[bytes], settings: SimulatorSettings) -> str:
    assert child.stdin is not None
    assert child.stdout is not None
    watchdog = threading.Timer(_START_S, child.kill)
    watchdog.start()
    try:
        with contextlib.suppress(OSError):
            child.stdin.write(msgspec.json.encode(settings) + b"\n")
            child.stdin.flush()
        url = child.stdout.readline().decode().strip()
    finally:
        watchdog.cancel()
    if not url:
        raise ServerError(f"the simulator did not start: {_read_last_error(child)}")
    return url


def _read_last_error(child: subprocess.Popen[bytes]) -> str:
    _, errors = child.communicate()
    lines = errors.decode(errors="replace").strip().splitlines()
    return sanitize(lines[-1]) if lines else f"it ended with status {child.returncode} without an error message"


def _stop_process(child: subprocess.Popen[bytes]) -> None:
    """Close its standard input, which ends it; after a timeout terminate it, then kill it."""
    assert child.stdin is not None
    with contextlib.suppress(OSError):
        child.stdin.close()
    for push in (child.terminate, child.kill):
        try:
            child.wait(_STOP_S)
            break
        except subprocess.TimeoutExpired:
            push()
    child.wait()
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()


async def _serve_until_stopped(settings: SimulatorSettings) -> None:
    from pytest_ollama_perf.simulator.server import serve

    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # Windows: the end of standard input is enough
        loop.add_signal_handler(signal.SIGTERM, stopped.set)
    threading.Thread(target=_watch_stdin, args=(loop, stopped), daemon=True).start()
    async with serve(settings) as (url, _):
        print(url, flush=True)
        await stopped.wait()


def _watch_stdin(loop: asyncio.AbstractEventLoop, stopped: asyncio.Event) -> None:
    # not sys.stdin: its lock, held by a thread that waits, would break the interpreter's shutdown
    while os.read(0, 4096):
        pass
    with contextlib.suppress(RuntimeError):  # the loop may be closed by now
        loop.call_soon_threadsafe(stopped.set)


def main() -> int:
    """Serve until the parent process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides when to stop
    try:
        settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=SimulatorSettings)
        asyncio.run(_serve_until_stopped(settings))
    except (OSError, msgspec.MsgspecError, ConfigError) as error:
        print(f"cannot start the simulator: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())


class _RequestObserver:
    """What a client observes of one request when it reads ``delay_ns`` after the server wrote."""

    def __init__(self, request: Request, sent_ns: int, delay_ns: int) -> None:
        self.request = request
        self.sent_ns = sent_ns
        self._delay_ns = delay_ns
        self.chunks: list[int] = []
        self.first_answer_ns: int | None = None
        self.garbled = False
        self.last_ns = sent_ns
        self.progressed = anyio.Event()

    def write_text(self, text: str, thinking: bool, at_ns: int) -> None:
        self.last_ns = at_ns + self._delay_ns
        if self.request.answer_parts is not None and not thinking:
            self.request.answer_parts.append(text)
        if self.request.stream:
            self.chunks.append(self.last_ns)
            if not thinking and self.first_answer_ns is None:
                self.first_answer_ns = self.last_ns
        self.progressed.set()

    def write_garbage(self, at_ns: int) -> None:
        self.garbled = True
        self.progressed.set()

    def build_sample(self, url: str, outcome: Outcome, done_ns: int, truth: _ServerOutcome) -> Sample:
        """Return the sample of the request."""
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


class _ServerOutcome:
    """How the server ended a request."""

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
    """A ``loadgen.backend.Backend`` on an engine; see ``open_simulated_backend``. All targets are the same server.

    ``requests`` is the ground truth, on the same clock as the samples.
    """

    def __init__(self, running: Engine, *, url: str = "sim:", read_delay_s: float = 0.0) -> None:
        self.engine = running
        self._url = url
        self._delay_ns = round(read_delay_s * 1e9)

    @property
    def requests(self) -> list[GroundTruth]:
        """The ground truth of every request so far, in order of arrival."""
        return list(self.engine.ground_truths)

    def now_ns(self) -> int:
        """The engine's clock."""
        return self.engine.clock.now_ns()

    async def connect(self, connections: int) -> None:
        """Do nothing: there are no connections."""

    async def send(self, request: Request, record: Callable[[Sample], None]) -> None:
        """Answer ``request`` and record its sample, also when a timeout or the caller cancels it."""
        client = _RequestObserver(request, self.now_ns(), self._delay_ns)
        result = _ServerOutcome(Outcome.CANCELLED)
        try:
            result = await self._answer_within_timeouts(client)
            if self._delay_ns:
                await self.engine.clock.sleep_until(self.now_ns() + self._delay_ns)
        finally:
            record(client.build_sample(self._url, result.outcome, self.now_ns(), result))

    async def aclose(self) -> None:
        """Do nothing: there are no connections."""

    async def _answer_within_timeouts(self, client: _RequestObserver) -> _ServerOutcome:
        result: list[_ServerOutcome] = []
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                outcome = await self._wait_for_timeout(client)
                result.append(_ServerOutcome(outcome, outcome.value.replace("_", " ")))
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            answered = await self._answer(client)
            result.append(answered)
            tasks.cancel_scope.cancel()
        return result[0]

    async def _wait_for_timeout(self, client: _RequestObserver) -> Outcome:
        """Wait, and return which timeout expired first."""
        timeouts = client.request.timeouts
        end = client.sent_ns + round(timeouts.total_s * 1e9)
        while True:
            due, outcome = _get_next_timeout(client, timeouts)
            client.progressed = anyio.Event()
            deadline = min(due, end)
            with anyio.move_on_after(max(0, deadline - self.now_ns()) / 1e9):
                await client.progressed.wait()
                continue
            return Outcome.TOTAL_TIMEOUT if end <= due else outcome

    async def _answer(self, client: _RequestObserver) -> _ServerOutcome:
        try:
            ask = self._build_request(client.request)
            answer, _ = await self.engine.answer(ask, client)
        except ResponseError as failure:
            return _build_failed_outcome(failure, started=bool(client.chunks))
        except DroppedConnectionError:
            return _ServerOutcome(Outcome.CUT_OFF, "the connection broke")
        except TransportFaultError as failure:
            return await _fail_transport(failure.fault)
        except TruncatedResponseError:
            return _ServerOutcome(Outcome.TRUNCATED, "the stream ended without done: true")
        if client.garbled:
            return _ServerOutcome(Outcome.MALFORMED, "a line is no JSON")
        return _ServerOutcome(Outcome.OK, reason=answer.reason, counters=answer.counters)

    def _build_request(self, request: Request) -> InferenceRequest:
        """Parse the body as the server does."""
        given = requests_module.parse_body(request.body, "GenerateRequest")
        tokenizer = self.engine.tokenizer
        model = self.engine.get_model(given.get_text("model"))
        if request.endpoint is Endpoint.EMBED:
            requests_module.require_capability(model, given.get_text("model"), "embedding", "embeddings")
            return requests_module.build_embed_request(given, tokenizer, request.request_id)[0]
        requests_module.require_capability(model, given.get_text("model"), "completion", request.endpoint.value)
        tokenize = (
            requests_module.tokenize_chat if request.endpoint is Endpoint.CHAT else requests_module.tokenize_prompt
        )
        return requests_module.build_completion_request(
            given, model, tokenize(given, tokenizer), request.endpoint.value, request.request_id
        )


async def _fail_transport(fault: Fault) -> _ServerOutcome:
    if fault.kind is FaultKind.TRICKLE:
        await anyio.sleep_forever()  # until the first token timeout of the client
    return _TRANSPORT_OUTCOMES[fault.kind]


_TRANSPORT_OUTCOMES = {
    FaultKind.HTML: _ServerOutcome(Outcome.MALFORMED, "an HTML page", 200),
    FaultKind.RESET: _ServerOutcome(Outcome.CUT_OFF, "the connection was reset"),
    FaultKind.REFUSE: _ServerOutcome(Outcome.REFUSED, "the connection was refused"),
    FaultKind.ECHO_KEY: _ServerOutcome(Outcome.HTTP_ERROR, "upstream rejected Authorization: no key", 500),
}


def _get_next_timeout(client: _RequestObserver, timeouts: Timeouts) -> tuple[int, Outcome]:
    if client.chunks:
        return client.last_ns + round(timeouts.idle_s * 1e9), Outcome.IDLE_TIMEOUT
    return client.sent_ns + round(timeouts.first_token_s * 1e9), Outcome.FIRST_TOKEN_TIMEOUT


def _build_failed_outcome(failure: ResponseError, *, started: bool) -> _ServerOutcome:
    if started:
        return _ServerOutcome(Outcome.SERVER_ERROR, failure.message)
    outcome = Outcome.BUSY if failure.status == 503 else Outcome.HTTP_ERROR
    return _ServerOutcome(outcome, failure.message, failure.status)


@asynccontextmanager
async def open_simulated_backend(
    settings: SimulatorSettings | None = None, *, clock: SimulatorClock | None = None, read_delay_s: float = 0.0
) -> AsyncIterator[SimulatedBackend]:
    """Run a simulator on ``clock`` (default: the event loop's, virtual under ``MockClock``) and yield a backend."""
    chosen = SimulatorSettings() if settings is None else settings
    async with run_engine(chosen, LoopClock() if clock is None else clock) as running:
        yield SimulatedBackend(running, read_delay_s=read_delay_s)
