"""Bencher Metric Format: benchmarks, their measures, and for each its value with both ends of its interval."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from pytest_ollama_perf.report.json_report import Document
from pytest_ollama_perf.report.numbers import Number, typical

_LONGEST = 1024
"""Characters of a benchmark's name that Bencher takes."""


def metrics(document: Document) -> bytes:
    """Return the metrics as JSON.

    What is infinite, a failed request's time, no JSON can hold: it is left out, and ``error_rate_share`` tells of it.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for number in typical(document):
        if math.isfinite(number.value):
            found.setdefault(number.benchmark[:_LONGEST], {})[number.name] = _measure(number)
    return msgspec.json.format(_encoded(found), indent=2) + b"\n"


def _encoded(found: dict[str, Any]) -> bytes:
    return msgspec.json.encode(found, order="sorted")


def _measure(number: Number) -> dict[str, float]:
    ends = {"lower_value": number.low, "upper_value": number.high}
    return {"value": number.value} | {name: end for name, end in ends.items() if end is not None and math.isfinite(end)}
