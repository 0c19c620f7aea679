"""Scripted faults: which requests go wrong, and how.

Written as ``KIND[:ARGUMENT[:ARGUMENT]][@WHEN]``: ``error:12@3`` ends request 3 with an error line after 12 tokens.
``WHEN`` is ``3`` (that request), ``3+7`` (both), ``5-9`` (those), ``20-`` (from 20 on), ``every10``, ``p0.05`` (each
with that probability); without it every request. Requests count from 1; loads and unloads do not count.
"""

from __future__ import annotations

import enum
import random
import re
from collections.abc import Iterable
from types import MappingProxyType

import msgspec

from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.words import did_you_mean


class Kind(str, enum.Enum):
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


HELP = MappingProxyType(
    {
        Kind.HTTP_500: "answer 500 before anything else",
        Kind.BUSY: "answer 503, the queue is full",
        Kind.DROP: "break the connection after N tokens (drop:0 before the first)",
        Kind.ERROR: "end with an error line after N tokens",
        Kind.TRUNCATE: "end after N tokens without done: true",
        Kind.GARBAGE: "send a line that is no JSON after N tokens",
        Kind.CRASH: "the engine dies after N tokens: every stream fails, the next request loads the model again",
        Kind.STALL: "stand still for S seconds before the first token, or after N (stall:S or stall:S:N)",
        Kind.EOS: "the Nth token ends the text: an output cut short",
        Kind.SLOW: "take X times as long, prefill and decode",
        Kind.SLOW_DECODE: "take X times as long to decode",
        Kind.SLOW_PREFILL: "take X times as long to read the prompt",
        Kind.EVICT: "unload the model when the request is done",
        Kind.BUFFER: "hold the stream back and let it go every S seconds, as a buffering proxy does",
    }
)

_BY_TOKENS = frozenset({Kind.DROP, Kind.ERROR, Kind.TRUNCATE, Kind.GARBAGE, Kind.CRASH, Kind.EOS})
_BY_SECONDS = frozenset({Kind.STALL, Kind.BUFFER})
_BY_FACTOR = frozenset({Kind.SLOW, Kind.SLOW_DECODE, Kind.SLOW_PREFILL})
_FORM = re.compile(r"(?P<kind>[^:@]+)(?P<arguments>(?::[^:@]+)*)(?:@(?P<when>.+))?")


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One scripted fault. ``first`` to ``last`` (``None``: without end) bound the requests, ``numbers`` picks some,
    ``every`` each nth, ``probability`` is a share, 0..1."""

    kind: Kind
    tokens: int = 0
    seconds: float = 0.0
    factor: float = 1.0
    numbers: tuple[int, ...] = ()
    first: int = 1
    last: int | None = None
    every: int = 1
    probability: float = 1.0

    def hits(self, number: int, chance: random.Random) -> bool:
        """Say whether request ``number`` is struck; draws from ``chance`` only for a probability below 1."""
        if self.numbers and number not in self.numbers:
            return False
        if number < self.first or (self.last is not None and number > self.last) or number % self.every:
            return False
        return self.probability >= 1 or chance.random() < self.probability


def parse_fault(text: str) -> Fault:
    """Read one fault; a ``ConfigError`` names what is wrong and what is valid."""
    form = _FORM.fullmatch(text)
    if not form:
        raise _wrong(text, "write it as KIND[:ARGUMENT][@WHEN], for example error:12@3")
    kind = _kind(text, form["kind"])
    given = [part for part in (form["arguments"] or "").split(":") if part]
    fields: dict[str, object] = {"kind": kind, **_arguments(text, kind, given), **_when(text, form["when"])}
    return msgspec.convert(fields, Fault)


def _wrong(text: str, why: str) -> ConfigError:
    return ConfigError(f"simulator: fault {text!r}: {why}")


def _kind(text: str, given: str) -> Kind:
    valid = [kind.value for kind in Kind]
    if given not in valid:
        raise _wrong(text, f"no fault is called {given!r}{did_you_mean(given, valid)}; valid: {', '.join(valid)}")
    return Kind(given)


def _arguments(text: str, kind: Kind, given: list[str]) -> dict[str, object]:
    names = _argument_names(kind)
    if len(given) > len(names):
        raise _wrong(text, f"{kind.value} takes {len(names) or 'no'} argument{'s' * (len(names) != 1)}")
    if not given and (kind in _BY_SECONDS or kind in _BY_FACTOR):
        raise _wrong(text, f"{kind.value} needs {names[0]}, for example {kind.value}:2")
    return {name: _number(text, name, value) for name, value in zip(names, given, strict=False)}


def _argument_names(kind: Kind) -> tuple[str, ...]:
    if kind is Kind.STALL:
        return ("seconds", "tokens")
    if kind in _BY_TOKENS:
        return ("tokens",)
    if kind in _BY_SECONDS:
        return ("seconds",)
    return ("factor",) if kind in _BY_FACTOR else ()


def _number(text: str, name: str, value: str) -> float:
    try:
        number = int(value) if name == "tokens" else float(value)
    except ValueError:
        raise _wrong(text, f"{name} {value!r} is not a number") from None
    if not 0 <= number < float("inf") or (name == "factor" and number == 0):
        raise _wrong(text, f"{name} {value!r} is out of range")
    return number


def _when(text: str, when: str | None) -> dict[str, object]:
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
    raise _wrong(text, f"{when!r} names no requests; valid: 3, 3+7, 5-9, 20-, every10, p0.05")


class Script:
    """The faults of one server, asked once for each request; the same seed strikes the same requests."""

    def __init__(self, faults: Iterable[Fault], seed: int) -> None:
        self._faults = tuple(faults)
        self._chance = random.Random(f"faults {seed}")

    def strike(self, number: int) -> dict[Kind, Fault]:
        """Return the faults of request ``number``; of two of one kind the later written one counts."""
        return {fault.kind: fault for fault in self._faults if fault.hits(number, self._chance)}
