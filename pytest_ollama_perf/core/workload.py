"""The workload: what to send, how many requests or at what rate, and when to stop. A plain, serialisable value."""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import msgspec

ANY_MODEL = ""
"""Placeholder for the server's only model until the server has been queried."""

DEFAULT_SEED = 1
"""Seed of prompts and arrivals when the workload does not set one."""


class Endpoint(str, enum.Enum):
    """The API that requests use."""

    GENERATE = "generate"
    CHAT = "chat"
    EMBED = "embed"


class Arrival(str, enum.Enum):
    """How an open loop spaces its requests."""

    CONSTANT = "constant"
    POISSON = "poisson"


class Prefix(str, enum.Enum):
    """Whether prompts may share a prefix, and so be answered from the server's prompt cache."""

    UNIQUE = "unique"
    WARM = "warm"


class Balance(str, enum.Enum):
    """How requests are distributed over several servers."""

    ROUND_ROBIN = "round_robin"
    RANDOM = "random"
    LEAST_IN_FLIGHT = "least_in_flight"


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds; ``first_token_s`` covers queueing and a cold load, ``idle_s`` the gap between two reads after that."""

    connect_s: float = 10.0
    first_token_s: float = 600.0
    idle_s: float = 60.0
    total_s: float = 1800.0


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stage of a load: ``level`` clients or requests/s, constant for ``seconds``, or reached linearly in that time.

    A ramp starts at the level of the previous stage, the first one at 0.
    """

    level: float
    seconds: float
    ramp: bool = False


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One message of a chat."""

    role: str
    content: str


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One load. Exactly one of ``concurrency`` (closed loop) and ``rate`` (open loop, requests/s), exactly one of
    ``requests`` and ``duration_s``; ``config`` and ``loadgen.plan`` check this.

    ``prompts`` are user-given texts, cycled; empty means synthetic ones of ``prompt_words`` words from ``seed``.
    ``salt`` makes the prompts of every run different, so that no run uses the prompt cache of an earlier one; it is not
    part of the identity. ``raw`` bypasses the model's template. A stored workload has no prompts; ``prompt_set`` is
    their hash. ``num_ctx``, ``temperature``, ``seed`` and ``think`` are only sent if they are set.

    ``stages`` vary the load over time; ``concurrency`` or ``rate`` is then their peak and ``duration_s`` their sum.
    ``messages`` are whole chats instead of prompts; ``weights`` are the relative frequencies of prompts or chats, equal
    by default; ``images`` are base64, one per request in turn. With ``turns`` each client holds chats of that many
    questions, including the model's answers. ``retries`` is how often a request that got 502, 503 or 504 is sent again.
    The load stops early when more than the share ``abort_error_rate`` of its requests has failed.
    """

    model: str
    endpoint: Endpoint = Endpoint.GENERATE
    stream: bool = True
    concurrency: int | None = 1
    rate: float | None = None
    arrival: Arrival = Arrival.POISSON
    requests: int | None = 20
    duration_s: float | None = None
    warmup: int = 1
    think_time_s: tuple[float, float] = (0.0, 0.0)
    prompts: tuple[str, ...] = ()
    prompt_words: int = 32
    prefix: Prefix = Prefix.UNIQUE
    raw: bool = True
    num_predict: int = 64
    num_ctx: int | None = None
    temperature: float | None = None
    seed: int | None = None
    think: bool | str | None = None
    keep_alive: str | float = "5m"
    options: dict[str, Any] = {}
    cold: bool = False
    timeouts: Timeouts = Timeouts()
    drain_s: float = 30.0
    balance: Balance = Balance.ROUND_ROBIN
    stages: tuple[Stage, ...] = ()
    messages: tuple[tuple[ChatMessage, ...], ...] = ()
    weights: tuple[float, ...] = ()
    images: tuple[str, ...] = ()
    turns: int = 1
    retries: int = 0
    abort_error_rate: float | None = None
    reuse_connections: bool = True
    salt: str = ""
    prompt_set: str = ""

    @property
    def random_seed(self) -> int:
        """Seed of synthetic prompts, arrivals and pauses; unlike ``seed`` it is always a number."""
        return DEFAULT_SEED if self.seed is None else self.seed

    @property
    def sends_raw_prompt(self) -> bool:
        """Whether prompts bypass the model's template; thinking, which the template turns on, rules that out."""
        return self.raw and self.endpoint is Endpoint.GENERATE and not self.think

    @property
    def clients(self) -> int:
        """The number of connections to open before the clock starts."""
        return self.concurrency or 1

    @property
    def unloads_itself(self) -> bool:
        """Whether the model is unloaded after every request: ``keep_alive`` is 0."""
        return str(self.keep_alive).rstrip("smh") in {"0", "0.0"}


def build_load_id(workload: Workload) -> str:
    """Return the arguments that distinguish the loads of a contract file: ``concurrency=4``, ``rate=2.5``.

    It is part of the node id of a contract item, and so of the key under which its history is stored: it depends on
    the values of the arguments only, never on a text for display.
    """
    return ",".join(f"{name}={_format_argument(value)}" for name, value in _list_id_arguments(workload))


def _list_id_arguments(workload: Workload) -> Iterator[tuple[str, object]]:
    if workload.rate is None:
        yield "concurrency", workload.clients
    else:
        yield "rate", workload.rate
    if workload.rate is not None and workload.arrival is not Arrival.POISSON:
        yield "arrival", workload.arrival.value
    if workload.stages:
        yield "stages", len(workload.stages)
    if workload.turns > 1:
        yield "turns", workload.turns
    if workload.duration_s is not None:
        yield "duration", workload.duration_s
    if workload.cold:
        yield "cold", "true"


def _format_argument(value: object) -> str:
    """Return a number without a needless ``.0``, and never rounded."""
    return repr(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


_NON_IDENTITY_FIELDS = frozenset(
    {
        "model",
        "timeouts",
        "keep_alive",
        "drain_s",
        "salt",
        "prompts",
        "messages",
        "images",
        "prompt_set",
        "abort_error_rate",
    }
)
"""Fields that are not part of the identity: the model is identified by its digest, the prompts by their hash."""

_ADDED_FIELDS = ("balance", "stages", "weights", "turns", "retries", "reuse_connections")
"""Fields that older stored workloads lack. They are left out at their defaults, so that identities do not change."""


def hash_prompts(
    prompts: Sequence[str], messages: Sequence[Sequence[ChatMessage]] = (), images: Sequence[str] = ()
) -> str:
    """Return the hash of user-given ``prompts``, chats and images in their order, ``""`` when there are none."""
    if not prompts and not messages and not images:
        return ""
    given: list[object] = [_escape_surrogates(prompt) for prompt in prompts]
    if messages or images:
        chats = [
            [(_escape_surrogates(each.role), _escape_surrogates(each.content)) for each in chat] for chat in messages
        ]
        given = [given, chats, list(images)]
    return hashlib.sha256(msgspec.json.encode(given)).hexdigest()[:32]


def compute_identity(workload: Workload) -> str:
    """Return 16 hex digits that are equal for two workloads if and only if they are the same load."""
    return hashlib.sha256(
        msgspec.json.encode(_normalize_numbers(collect_identity_fields(workload)), order="sorted")
    ).hexdigest()[:16]


def collect_identity_fields(workload: Workload) -> dict[str, Any]:
    """Return the fields that identify the load, with the prompts as a hash."""
    fields = {
        name: value for name, value in msgspec.structs.asdict(workload).items() if name not in _NON_IDENTITY_FIELDS
    }
    for name, default in _ADDED_FIELD_DEFAULTS.items():
        if fields[name] == default:
            del fields[name]
    if workload.stages:
        fields["stages"] = [msgspec.structs.asdict(stage) for stage in workload.stages]
    given = hash_prompts(workload.prompts, workload.messages, workload.images)
    return fields | {"prompt_set": workload.prompt_set or given}


_ADDED_FIELD_DEFAULTS = {
    field.name: field.default for field in msgspec.structs.fields(Workload) if field.name in _ADDED_FIELDS
}


def _escape_surrogates(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _normalize_numbers(value: object) -> object:
    """Return ``value`` with all numbers as floats, because JSON has one kind of number: 2 and 2.0 are the same load."""
    if isinstance(value, dict):
        return {key: _normalize_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_normalize_numbers(inner) for inner in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


_EPSILON = 1e-9


class StageSchedule:
    """Consecutive stages; seconds count from the start of the first."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        ends = list(accumulate(stage.seconds for stage in stages))
        begins = [0.0, *ends[:-1]]
        before = [0.0, *(stage.level for stage in stages[:-1])]
        self.seconds = ends[-1]
        self._parts = [
            (begin, end, start if stage.ramp else stage.level, stage.level)
            for stage, begin, end, start in zip(stages, begins, ends, before, strict=True)
        ]

    def compute_level(self, at_s: float) -> float:
        """Return the level at a time; 0 after the end."""
        for begin, end, low, high in self._parts:
            if at_s < end:
                return low + (high - low) * (at_s - begin) / (end - begin)
        return 0.0

    def compute_join_time(self, client: int, after_s: float) -> float:
        """Return the first time from ``after_s`` on at which ``client`` may run; ``inf`` for never."""
        wanted = client + 1 - _EPSILON
        for begin, end, low, high in self._parts:
            since = max(begin, after_s)
            if since >= end:
                continue
            now = low + (high - low) * (since - begin) / (end - begin)
            if now >= wanted:
                return since
            if high >= wanted:
                return max(since, begin + (client + 1 - low) / (high - low) * (end - begin))
        return math.inf

    def compute_arrival_time(self, arrivals: float) -> float:
        """Return when the given number of requests is due, with the level in requests/s; ``inf`` if fewer ever are.

        The rate's integral over a ramp is a parabola; this is its inverse.
        """
        left = arrivals
        for begin, end, low, high in self._parts:
            whole = (low + high) / 2 * (end - begin)
            # nothing is due at the end itself
            if left < whole:
                return begin + _solve_ramp_time(left, low, (high - low) / (end - begin))
            left -= whole
        return math.inf


def _solve_ramp_time(area: float, low: float, slope: float) -> float:
    """Solve low t + slope t^2 / 2 = area for the earliest t of 0 or more."""
    if not slope:
        return area / low
    # this form is accurate for small slopes
    root = math.sqrt(max(0.0, low * low + 2 * slope * area))
    return 2 * area / (low + root) if low + root else 0.0
