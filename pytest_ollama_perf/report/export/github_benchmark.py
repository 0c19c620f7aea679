"""Entries of github-action-benchmark.

It takes one direction a file: rates are ``customBiggerIsBetter``, times and error rates ``customSmallerIsBetter``.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from pytest_ollama_perf.metric import Better
from pytest_ollama_perf.report.json_report import Document
from pytest_ollama_perf.report.numbers import Number, typical
from pytest_ollama_perf.verdict.wording import label


def bigger(document: Document) -> bytes:
    """Return the numbers of which more is better, for ``customBiggerIsBetter``."""
    return _entries(document, Better.HIGHER)


def smaller(document: Document) -> bytes:
    """Return the numbers of which less is better, for ``customSmallerIsBetter``; infinite ones are left out."""
    return _entries(document, Better.LOWER)


def _entries(document: Document, better: Better) -> bytes:
    found = [
        _entry(number) for number in typical(document) if number.better == better.value and math.isfinite(number.value)
    ]
    return msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"


def _entry(number: Number) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": f"{number.benchmark}: {label(number.metric, number.stat)}",
        "unit": number.unit,
        "value": number.value,
    }
    if number.low is not None and number.high is not None and math.isfinite(number.high):
        entry["range"] = f"{number.low:.4g} .. {number.high:.4g}"
    return entry | {"extra": f"model: {number.model}\nverdict: {number.verdict}\nvalues: {number.n}"}
