"""What experiments find: plain values computed from the summaries of several loads. Pure, as verdicts are."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from pytest_ollama_perf.core.verdict import VerdictStatus
from pytest_ollama_perf.metrics.format import format_number, format_seconds


class Finding(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Base of what an experiment found; ``kind`` in files is the tag that each kind declares.

    A finding is part of a test's result: ``report.findings.lines`` knows how to show each kind, the JSON report holds
    every field of it. ``beside_numbers`` says that it adds to a load's own numbers, where others stand for them.
    """

    supplements_metrics: ClassVar[bool] = False


class BoundCheck(msgspec.Struct, frozen=True, kw_only=True):
    """``name`` ``op`` ``bound``, and the ``value`` found (``None`` where there was none to find).

    ``unit`` is ``""`` for a count, ``s`` for seconds, ``x`` for a ratio; ``reason`` stands alone in one line.
    """

    name: str
    op: str
    bound: float
    value: float | None
    word: VerdictStatus
    reason: str
    unit: str = ""


def check_bound(
    name: str, value: float | None, op: str, bound: float, *, unit: str = "", missing: str = ""
) -> BoundCheck:
    """Hold ``value`` against ``bound``; what was not found breaks its limit, and ``missing`` says why it was not."""
    met = value is not None and (value >= bound if op == ">=" else value <= bound)
    found = f"{name} was not found: {missing}" if value is None else f"{name} {format_quantity(value, unit)}"
    return BoundCheck(
        name=name,
        op=op,
        bound=bound,
        value=value,
        word=VerdictStatus.OK if met else VerdictStatus.BROKEN,
        reason=f"{found}, limit {op} {format_quantity(bound, unit)}",
        unit=unit,
    )


def format_quantity(value: float, unit: str) -> str:
    """Return ``value`` as a person reads it: ``4``, ``182 ms``, ``19 x``."""
    if value == float("inf"):
        return "inf"
    return format_seconds(value) if unit == "s" else f"{format_number(value)} {unit}".rstrip()
