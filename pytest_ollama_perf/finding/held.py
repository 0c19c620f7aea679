"""A limit on what an experiment found, held against it: a knee, a largest concurrency, a ratio."""

from __future__ import annotations

import msgspec

from pytest_ollama_perf.verdict.wording import number, seconds
from pytest_ollama_perf.verdict.words import Word


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """``name`` ``op`` ``bound``, and the ``value`` found (``None`` where there was none to find).

    ``unit`` is ``""`` for a count, ``s`` for seconds, ``x`` for a ratio; ``reason`` stands alone in one line.
    """

    name: str
    op: str
    bound: float
    value: float | None
    word: Word
    reason: str
    unit: str = ""


def hold(name: str, value: float | None, op: str, bound: float, *, unit: str = "", missing: str = "") -> Held:
    """Hold ``value`` against ``bound``; what was not found breaks its limit, and ``missing`` says why it was not."""
    met = value is not None and (value >= bound if op == ">=" else value <= bound)
    found = f"{name} was not found: {missing}" if value is None else f"{name} {shown(value, unit)}"
    return Held(
        name=name,
        op=op,
        bound=bound,
        value=value,
        word=Word.OK if met else Word.BROKEN,
        reason=f"{found}, limit {op} {shown(bound, unit)}",
        unit=unit,
    )


def shown(value: float, unit: str) -> str:
    """Return ``value`` as a person reads it: ``4``, ``182 ms``, ``19 x``."""
    if value == float("inf"):
        return "inf"
    return seconds(value) if unit == "s" else f"{number(value)} {unit}".rstrip()
