"""One request inside the simulator: its parameters, its state, and the sink for its text."""

from __future__ import annotations

import enum
import functools
import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import anyio
import anyio.lowlevel
import msgspec

from pytest_ollama_perf.simulator.faults import Fault, FaultKind

RUNNER_DIED_MESSAGE = "an error was encountered while running the model: unexpected EOF"
BUSY_MESSAGE = "server busy, please try again.  maximum pending requests exceeded"


class InferenceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed and checked request.

    ``keep_alive_s`` is in seconds, ``None`` for the server's default, negative for ever. ``limit`` is the maximum
    number of tokens to sample (``None``: until the context is full). ``options`` decide whether the model is reloaded.
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
    """The server rejects or fails a request: an HTTP status before the first token, an error line after it."""

    outcome = "failure"

    def __init__(self, status: int, message: str, *, engine: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.engine = engine
        """Whether the error comes from the engine; the server then streams it and omits the charset."""


class DroppedConnectionError(Exception):
    """The connection is closed before the response ends."""

    outcome = "drop"


class TruncatedResponseError(Exception):
    """The response ends without ``done: true``, but properly as HTTP."""

    outcome = "truncate"


class TransportFaultError(Exception):
    """The connection or HTTP fails as ``fault`` says; the request does not reach the model."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.kind.value)
        self.fault = fault

    @property
    def outcome(self) -> str:
        """The name of the fault."""
        return self.fault.kind.value


class ResponseSink(Protocol):
    """Receives the pieces of a response as they are sampled. Methods must not block."""

    def write_text(self, text: str, thinking: bool, at_ns: int) -> None:
        """Take the text of one or more tokens; ``at_ns`` is the scheduled time."""

    def write_garbage(self, at_ns: int) -> None:
        """Send something that is not JSON."""


class GroundTruth(msgspec.Struct, kw_only=True):
    """What happened to a request, on the simulator's clock (``time.perf_counter_ns`` in a server), in nanoseconds.

    ``first_token_ns`` and ``done_ns`` are scheduled times; ``first_write_ns`` and ``last_write_ns`` are when the bytes
    were passed to the socket. ``queue_ns`` is the wait for a slot, without loading.
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
        """How long the request waited for a slot, in nanoseconds; None if it never got one."""
        return None if self.slot_ns is None or self.queued_ns is None else self.slot_ns - self.queued_ns


class JobState(enum.Enum):
    """Where a job is on its way through the engine."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    OVER = "over"


class InferenceJob:
    """A request that a runner processes; only the runner changes it once it is queued there."""

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
        """Return the fault of ``kind`` if it is due after ``tokens`` tokens, else ``None``."""
        fault = self.faults.get(kind)
        return fault if fault is not None and fault.tokens == tokens else None

    def get_slowdown(self, kind: FaultKind) -> float:
        """Return the factor by which faults slow this request down."""
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
    """The clock that the simulator uses."""

    def now_ns(self) -> int:
        """Return the current time in nanoseconds."""

    async def sleep_until(self, deadline_ns: int) -> None:
        """Return at ``deadline_ns`` or later; immediately, after a checkpoint, if that has passed."""

    async def settle(self) -> None:
        """Let everything else that happens at this instant happen first."""


class LoopClock:
    """The clock of the running event loop, exact to the nanosecond in virtual time."""

    def now_ns(self) -> int:
        """Return the time of the event loop in nanoseconds."""
        return round(anyio.current_time() * 1e9)

    async def sleep_until(self, deadline_ns: int) -> None:
        """Sleep until a time of the event loop."""
        await anyio.sleep_until(deadline_ns / 1e9)

    async def settle(self) -> None:
        """Let all other tasks run before time passes."""
        # virtual time moves, here by a nanosecond, only when all tasks are waiting
        await anyio.sleep(1e-9)


class RealClock:
    """``time.perf_counter_ns``, the clock that load clients on the same machine use for their samples."""

    def now_ns(self) -> int:
        """Return the performance counter in nanoseconds."""
        return time.perf_counter_ns()

    async def sleep_until(self, deadline_ns: int) -> None:
        """Sleep until a value of the performance counter."""
        await anyio.sleep(max(0, deadline_ns - time.perf_counter_ns()) / 1e9)

    async def settle(self) -> None:
        """Let other tasks run."""
        await anyio.lowlevel.checkpoint()


_WORD_LIST = (
    "able:acid:also:army:atom:back:ball:band:bank:base:bear:bell:best:bird:blue:boat:body:bone:book:born:"
    "both:bowl:calm:card:care:case:cave:city:clay:club:coal:coat:cold:cook:cool:corn:dark:dawn:deep:deer:"
    "desk:door:down:draw:drum:dust:each:east:easy:edge:even:face:fact:farm:fast:fern:fire:fish:five:flag:"
    "flow:food:foot:form:four:free:frog:full:game:gate:gold:good:gray:grow:hall:hand:hard:hawk:head:help:"
    "hill:home:hope:horn:idea:iron:item:jazz:join:jump:keep:kind:king:kite:lake:lamp:land:leaf:left:life"
)

VOCABULARY = tuple(_WORD_LIST.split(":"))
"""The words that the simulated models generate, in this order and repeated."""

_VOCABULARY_INDEX = {word: index for index, word in enumerate(VOCABULARY)}


class Tokenizer:
    """Assigns every word its number; a word keeps its number as long as the server runs."""

    def __init__(self) -> None:
        self._ids = dict(_VOCABULARY_INDEX)

    def encode(self, text: str) -> list[int]:
        """Return one token per word of ``text``."""
        return self._assign_ids(text.split())

    def encode_chat(self, messages: Iterable[tuple[str, str]]) -> list[int]:
        """Return the tokens of ``(role, content)`` messages in a ChatML template, up to where the answer starts."""
        pieces: list[str] = []
        for role, content in messages:
            pieces += ["<|im_start|>", *role, "\n", *content.split(), "<|im_end|>", "\n"]
        return self._assign_ids([*pieces, "<|im_start|>", *"assistant", "\n"])

    def _assign_ids(self, pieces: Iterable[str]) -> list[int]:
        ids = self._ids
        return [ids.setdefault(piece, len(ids)) for piece in pieces]


@functools.lru_cache(maxsize=256)
def decode_token(token: int) -> str:
    """Return the text of an output token, with its leading space."""
    return f" {VOCABULARY[token]}"


def pick_first_token(prompt: Sequence[int]) -> int:
    """Return the first output token: the word after the prompt's last one if it is in the list."""
    if not prompt:
        return 0
    last = prompt[-1]
    return (last + 1) % len(VOCABULARY) if last < len(VOCABULARY) else sum(prompt) % len(VOCABULARY)


def truncate_prompt(prompt: list[int], num_ctx: int) -> list[int]:
    """Truncate a prompt to the context as the server does: its first four tokens and the last half of the rest."""
    if len(prompt) <= num_ctx:
        return prompt
    kept = min(4, num_ctx)
    tail = (num_ctx - kept) // 2
    return prompt[:kept] + (prompt[-tail:] if tail else [])


_COMPARE_CHUNK = 64


def count_common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many leading tokens both share."""
    limit = min(len(one), len(other))
    start = 0
    while start < limit and one[start : start + _COMPARE_CHUNK] == other[start : start + _COMPARE_CHUNK]:
        start += _COMPARE_CHUNK
    while start < limit and one[start] == other[start]:
        start += 1
    return min(start, limit)


class PromptCache:
    """Token sequences of at most ``capacity`` tokens in total; the oldest are dropped first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.token_count = 0
        """The number of tokens in the cache."""
        self._entries: OrderedDict[int, list[int]] = OrderedDict()
        self._serial = 0

    def count_reusable(self, prompt: list[int]) -> int:
        """Return how many leading tokens of ``prompt`` need no evaluation; the last token always does."""
        best = 0
        for entry in self._entries.values():
            if prompt and entry and entry[0] == prompt[0]:
                best = max(best, count_common_prefix(prompt, entry))
        return min(best, max(0, len(prompt) - 1))

    def add(self, tokens: list[int]) -> None:
        """Add the tokens of a finished request, prompt and output."""
        self._serial += 1
        self._entries[self._serial] = tokens
        self.token_count += len(tokens)
        while self.token_count > self._capacity and self._entries:
            _, oldest = self._entries.popitem(last=False)
            self.token_count -= len(oldest)
