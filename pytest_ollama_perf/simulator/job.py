"""One request inside the simulator: what it asks, what it has so far, and where its pieces go."""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

import anyio
import anyio.lowlevel
import msgspec

from pytest_ollama_perf.simulator.faults import Fault, FaultKind

RUNNER_DIED_MESSAGE = "an error was encountered while running the model: unexpected EOF"
BUSY_MESSAGE = "server busy, please try again.  maximum pending requests exceeded"


class InferenceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A checked request. ``keep_alive_s`` of ``None`` is the server's default, a negative one forever.

    ``limit`` is the most tokens to sample (``None``: until the context is full), ``options`` what a reload looks at.
    """

    model: str
    prompt: tuple[int, ...]
    request_id: str = ""
    endpoint: str = "generate"
    limit: int | None = None
    stop: tuple[str, ...] = ()
    think: bool = False
    keep_alive_s: float | None = None
    options: Mapping[str, Any] = {}
    truncate: bool = True
    images: bool = False


class ResponseError(Exception):
    """The server refuses or fails a request: a status before the first token, an error line after it."""

    outcome = "failure"

    def __init__(self, status: int, message: str, *, engine: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.engine = engine
        """Whether the engine said it; the server then streams it, and leaves the charset out."""


class DroppedConnectionError(Exception):
    """The connection breaks."""

    outcome = "drop"


class TruncatedResponseError(Exception):
    """The response ends, properly and without ``done: true``."""

    outcome = "truncate"


class TransportFaultError(Exception):
    """The connection or HTTP fails as ``fault`` says; the request does not reach the model."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.kind.value)
        self.fault = fault

    @property
    def outcome(self) -> str:
        return self.fault.kind.value


class ResponseSink(Protocol):
    """Takes the pieces of a response as they are sampled; must not block."""

    def write_text(self, text: str, thinking: bool, at_ns: int) -> None:
        """Take the text of one or more tokens; ``at_ns`` is when the schedule has it leave."""

    def write_garbage(self, at_ns: int) -> None:
        """Send something that is no JSON."""


class GroundTruth(msgspec.Struct, kw_only=True):
    """What really happened to a request, on the simulator's clock (``time.perf_counter_ns`` in a server).

    ``first_token_ns`` and ``done_ns`` are times of the schedule; ``first_write_ns`` and ``last_write_ns`` are when
    the bytes were handed to the socket. ``queue_ns`` is the wait for a slot, without loading.
    """

    number: int
    request_id: str
    model: str
    endpoint: str
    arrived_ns: int
    loaded_ns: int | None = None
    queued_ns: int | None = None
    slot_ns: int | None = None
    slot: int | None = None
    first_token_ns: int | None = None
    done_ns: int | None = None
    first_write_ns: int | None = None
    last_write_ns: int | None = None
    outcome: str = "running"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    eval_count: int = 0

    @property
    def queue_ns(self) -> int | None:
        return None if self.slot_ns is None or self.queued_ns is None else self.slot_ns - self.queued_ns


class JobState(enum.Enum):
    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    OVER = "over"


class InferenceJob:
    """A request on its way through a runner; the runner alone changes it once it waits there."""

    def __init__(
        self,
        ask: InferenceRequest,
        truth: GroundTruth,
        sink: ResponseSink,
        faults: Mapping[FaultKind, Fault] = MappingProxyType({}),
    ) -> None:
        self.request = ask
        self.truth = truth
        self.sink = sink
        self.faults = faults
        self.prompt = list(ask.prompt)
        self.output: list[int] = []
        self.phase = JobState.WAITING
        self.unread = 0
        self.resume_ns = 0
        self.reason = ""
        self.limit = 0
        self.ends_at: int | None = None
        self.think_until = 0
        self.error: Exception | None = None
        self.finished = anyio.Event()
        self.buffered_texts: list[str] = []
        self.text = ""

    @property
    def evaluated_tokens(self) -> list[int]:
        """Prompt and output as far as the engine has processed them, which is what the prompt cache can reuse."""
        return self.prompt[: len(self.prompt) - self.unread] + self.output

    def get_due_fault(self, kind: FaultKind, tokens: int) -> Fault | None:
        """Return the fault of ``kind`` when it is due after ``tokens`` tokens."""
        fault = self.faults.get(kind)
        return fault if fault is not None and fault.tokens == tokens else None

    def get_slowdown(self, kind: FaultKind) -> float:
        """How much longer than usual this request takes."""
        return math.prod(self.faults[each].factor for each in (kind, FaultKind.SLOW) if each in self.faults)

    @property
    def counter_factor(self) -> float:
        """How far the reported counters are off: 1 unless a fault says otherwise."""
        return self.faults[FaultKind.COUNTERS].factor if FaultKind.COUNTERS in self.faults else 1.0

    def finish(self, at_ns: int, reason: str = "", error: Exception | None = None) -> None:
        """End the job, with a reason or with an error."""
        self.phase = JobState.OVER
        self.reason, self.error = reason, error
        self.truth.done_ns = at_ns
        self.truth.eval_count = len(self.output)
        self.finished.set()


class SimulatorClock(Protocol):
    def now_ns(self) -> int:
        """The present, in nanoseconds."""

    async def sleep_until(self, deadline_ns: int) -> None:
        """Return at ``deadline_ns`` or later; at once (after a checkpoint) when that has passed."""

    async def settle(self) -> None:
        """Let whatever else happens at this instant happen first."""


class LoopClock:
    """The clock of the running event loop; exact to the nanosecond in virtual time."""

    def now_ns(self) -> int:
        return round(anyio.current_time() * 1e9)

    async def sleep_until(self, deadline_ns: int) -> None:
        await anyio.sleep_until(deadline_ns / 1e9)

    async def settle(self) -> None:
        # virtual time moves, here by a nanosecond, only when nobody has anything left to do
        await anyio.sleep(1e-9)


class RealClock:
    """``time.perf_counter_ns``: the clock that a load client on the same machine stamps its samples with."""

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    async def sleep_until(self, deadline_ns: int) -> None:
        await anyio.sleep(max(0, deadline_ns - time.perf_counter_ns()) / 1e9)

    async def settle(self) -> None:
        await anyio.lowlevel.checkpoint()
