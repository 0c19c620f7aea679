"""Scripted faults: which requests fail, and how.

A fault is written as ``KIND[:ARGUMENT[:ARGUMENT]][@WHEN]``: ``error:12@3`` ends request 3 with an error line after 12
tokens. ``WHEN`` is ``3`` (that request), ``3+7`` (both), ``5-9`` (this range), ``20-`` (from 20 on), ``every10``, or
``p0.05`` (each with this probability); without it the fault applies to every request. Requests are numbered from 1.
Loads and unloads are not numbered with them. Faults whose name begins with ``control`` apply to everything that is not
a measured request: version, models, loads and unloads. Those calls have their own numbers.
"""

from __future__ import annotations

import enum
import random
import re
from collections.abc import Iterable
from types import MappingProxyType

import msgspec

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.text import suggest_match


class FaultKind(str, enum.Enum):
    """What a fault does."""

    HTTP_500 = "http_500"
    BUSY = "busy"
    DROP = "drop"
    ERROR = "error"
    TRUNCATE = "truncate"
    GARBAGE = "garbage"
    CRASH = "crash"
    STALL = "stall"
    EOS = "eos"
    SLOW = "slow"
    SLOW_DECODE = "slow_decode"
    SLOW_PREFILL = "slow_prefill"
    EVICT = "evict"
    BUFFER = "buffer"
    BURST = "burst"
    HOLD = "hold"
    COUNTERS = "counters"
    HTML = "html"
    RESET = "reset"
    REFUSE = "refuse"
    TRICKLE = "trickle"
    ECHO_KEY = "echo_key"
    CONTROL_HTML = "control_html"
    CONTROL_TRICKLE = "control_trickle"


FAULT_HELP = MappingProxyType(
    {
        FaultKind.HTTP_500: "answer 500 before anything else",
        FaultKind.BUSY: "answer 503, the queue is full",
        FaultKind.DROP: "close the connection after N tokens (drop:0 before the first)",
        FaultKind.ERROR: "end with an error line after N tokens",
        FaultKind.TRUNCATE: "end after N tokens without done: true",
        FaultKind.GARBAGE: "send a line that is not JSON after N tokens",
        FaultKind.CRASH: "the engine dies after N tokens: every stream fails, the next request reloads the model",
        FaultKind.STALL: "pause for S seconds before the first token, or after N (stall:S or stall:S:N)",
        FaultKind.EOS: "the Nth token ends the text: an output cut short",
        FaultKind.SLOW: "take X times as long, prefill and decode",
        FaultKind.SLOW_DECODE: "take X times as long to decode",
        FaultKind.SLOW_PREFILL: "take X times as long to read the prompt",
        FaultKind.EVICT: "unload the model when the request is done",
        FaultKind.BUFFER: "hold the stream back and release it every S seconds, as a buffering proxy does",
        FaultKind.BURST: "release tokens in bursts of N-1 to N+1",
        FaultKind.HOLD: "hold the response back until S seconds after its first token",
        FaultKind.COUNTERS: "report impossible counters: X times the tokens in 1/X of the time",
        FaultKind.HTML: "answer an HTML page with status 200",
        FaultKind.RESET: "reset the connection after S seconds without an answer",
        FaultKind.REFUSE: "reset all connections and refuse new ones for S seconds",
        FaultKind.TRICKLE: "send the headers of the response one byte every S seconds",
        FaultKind.ECHO_KEY: "answer 500 with the Authorization header in the error",
        FaultKind.CONTROL_HTML: "answer a control request with an HTML page and status 200",
        FaultKind.CONTROL_TRICKLE: "send the headers of a control response one byte every S seconds",
    }
)

CONTROL_FAULTS = frozenset({FaultKind.CONTROL_HTML, FaultKind.CONTROL_TRICKLE})
TRANSPORT_FAULTS = frozenset(
    {FaultKind.HTML, FaultKind.RESET, FaultKind.REFUSE, FaultKind.TRICKLE, FaultKind.ECHO_KEY, *CONTROL_FAULTS}
)
"""Faults of the connection and of HTTP; the request never reaches the model."""

_TOKEN_FAULTS = frozenset(
    {FaultKind.DROP, FaultKind.ERROR, FaultKind.TRUNCATE, FaultKind.GARBAGE, FaultKind.CRASH, FaultKind.EOS}
    | {FaultKind.BURST}
)
_TIMED_FAULTS = frozenset(
    {FaultKind.STALL, FaultKind.BUFFER, FaultKind.HOLD, FaultKind.RESET, FaultKind.REFUSE, FaultKind.TRICKLE}
    | {FaultKind.CONTROL_TRICKLE}
)
_FACTOR_FAULTS = frozenset({FaultKind.SLOW, FaultKind.SLOW_DECODE, FaultKind.SLOW_PREFILL, FaultKind.COUNTERS})
_FAULT_PATTERN = re.compile(r"(?P<kind>[^:@]+)(?P<arguments>(?::[^:@]+)*)(?:@(?P<when>.+))?")


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One scripted fault. It applies to requests from ``first`` to ``last`` (``None``: no end); ``numbers`` selects
    single ones, ``every`` each nth, ``probability`` a share from 0 to 1."""

    kind: FaultKind
    tokens: int = 0
    seconds: float = 0.0
    factor: float = 1.0
    numbers: tuple[int, ...] = ()
    first: int = 1
    last: int | None = None
    every: int = 1
    probability: float = 1.0

    def applies_to(self, number: int, chance: random.Random) -> bool:
        """Return whether the fault applies to request ``number``; draws from ``chance`` for a probability below 1."""
        if self.numbers and number not in self.numbers:
            return False
        if number < self.first or (self.last is not None and number > self.last) or number % self.every:
            return False
        return self.probability >= 1 or chance.random() < self.probability


def parse_fault(text: str) -> Fault:
    """Parse one fault; a ``ConfigError`` names what is wrong and what is valid."""
    form = _FAULT_PATTERN.fullmatch(text)
    if not form:
        raise _build_error(text, "write it as KIND[:ARGUMENT][@WHEN], for example error:12@3")
    kind = _parse_kind(text, form["kind"])
    given = [part for part in (form["arguments"] or "").split(":") if part]
    fields: dict[str, object] = {"kind": kind, **_parse_arguments(text, kind, given), **_parse_when(text, form["when"])}
    return msgspec.convert(fields, Fault)


def _build_error(text: str, why: str) -> ConfigError:
    return ConfigError(f"simulator: fault {text!r}: {why}")


def _parse_kind(text: str, given: str) -> FaultKind:
    valid = [kind.value for kind in FaultKind]
    if given not in valid:
        raise _build_error(text, f"unknown fault {given!r}{suggest_match(given, valid)}; valid: {', '.join(valid)}")
    return FaultKind(given)


def _parse_arguments(text: str, kind: FaultKind, given: list[str]) -> dict[str, object]:
    names = _list_argument_names(kind)
    if len(given) > len(names):
        raise _build_error(text, f"{kind.value} takes {len(names) or 'no'} argument{'s' * (len(names) != 1)}")
    if not given and kind in _TIMED_FAULTS | _FACTOR_FAULTS | {FaultKind.BURST}:
        raise _build_error(text, f"{kind.value} needs {names[0]}, for example {kind.value}:2")
    return {name: _parse_number(text, name, value) for name, value in zip(names, given, strict=False)}


def _list_argument_names(kind: FaultKind) -> tuple[str, ...]:
    if kind is FaultKind.STALL:
        return ("seconds", "tokens")
    if kind in _TOKEN_FAULTS:
        return ("tokens",)
    if kind in _TIMED_FAULTS:
        return ("seconds",)
    return ("factor",) if kind in _FACTOR_FAULTS else ()


def _parse_number(text: str, name: str, value: str) -> float:
    try:
        number = int(value) if name == "tokens" else float(value)
    except ValueError:
        raise _build_error(text, f"{name} {value!r} is not a number") from None
    if not 0 <= number < float("inf") or (name == "factor" and number == 0):
        raise _build_error(text, f"{name} {value!r} is out of range")
    return number


def _parse_when(text: str, when: str | None) -> dict[str, object]:
    if when is None:
        return {}
    if re.fullmatch(r"\d+(\+\d+)*", when):
        return {"numbers": tuple(int(part) for part in when.split("+"))}
    if span := re.fullmatch(r"(\d+)-(\d*)", when):
        return {"first": int(span[1]), "last": int(span[2]) if span[2] else None}
    if step := re.fullmatch(r"every([1-9]\d*)", when):
        return {"every": int(step[1])}
    if (share := re.fullmatch(r"p(\d*\.?\d+)", when)) and float(share[1]) <= 1:
        return {"probability": float(share[1])}
    raise _build_error(text, f"{when!r} names no requests; valid: 3, 3+7, 5-9, 20-, every10, p0.05")


class FaultScript:
    """The faults of one server, queried once per request; the same seed selects the same requests."""

    def __init__(self, faults: Iterable[Fault], seed: int) -> None:
        self._faults = tuple(faults)
        self._chance = random.Random(f"faults {seed}")

    def draw_faults(self, number: int) -> dict[FaultKind, Fault]:
        """Return the faults of request ``number``; of two of one kind the one written later applies."""
        return {fault.kind: fault for fault in self._faults if fault.applies_to(number, self._chance)}
