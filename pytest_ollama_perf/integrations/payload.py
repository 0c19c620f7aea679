"""What a worker of pytest-xdist sends to the controller: the evaluations of one test as base64 text of MessagePack."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import SupportsFloat, Union

import msgspec

from pytest_ollama_perf.analysis import Finding
from pytest_ollama_perf.analysis.ab import ABComparison
from pytest_ollama_perf.analysis.cold_warm import ColdStart
from pytest_ollama_perf.analysis.load_profile import Servers, Timeline
from pytest_ollama_perf.analysis.scaling import Sweep
from pytest_ollama_perf.analysis.sustained import MaxConcurrency
from pytest_ollama_perf.core.verdict import Verdict
from pytest_ollama_perf.harness.evaluation import Evaluation, MeasuredLoad

FINDING_TYPES: tuple[type[Finding], ...] = (ABComparison, ColdStart, MaxConcurrency, Servers, Sweep, Timeline)
"""Every kind of finding that can be sent; each class declares the tag that it is sent with."""


class _PackedEvaluation(msgspec.Struct, frozen=True):
    verdict: Verdict
    loads: tuple[MeasuredLoad, ...]
    findings: tuple[msgspec.Raw, ...]


class _PackedTest(msgspec.Struct, frozen=True):
    test: str
    evaluations: tuple[_PackedEvaluation, ...]


def encode_payload(test: str, evaluations: Sequence[Evaluation]) -> str:
    """Return the evaluations of ``test`` as text."""
    return base64.b64encode(pack_evaluations(test, evaluations)).decode("ascii")


def decode_payload(payload: str) -> tuple[str, list[Evaluation]]:
    """Return the test and its evaluations."""
    return unpack_evaluations(base64.b64decode(payload))


def pack_evaluations(test: str, evaluations: Sequence[Evaluation]) -> bytes:
    """Return the evaluations of ``test`` as MessagePack."""
    packed = tuple(
        _PackedEvaluation(each.verdict, each.loads, tuple(map(_encode_finding, each.findings))) for each in evaluations
    )
    return _encode_value(_PackedTest(test, packed))


def unpack_evaluations(packed: bytes) -> tuple[str, list[Evaluation]]:
    """Return what was packed: the test and its evaluations."""
    whole = msgspec.msgpack.decode(packed, type=_PackedTest)
    return whole.test, [
        Evaluation(each.verdict, each.loads, tuple(map(_decode_finding, each.findings))) for each in whole.evaluations
    ]


def _encode_value(value: object) -> bytes:
    return msgspec.msgpack.encode(value, enc_hook=_to_float)


def _to_float(value: object) -> float:
    """Return a number of another library, such as numpy, as a Python float."""
    if isinstance(value, SupportsFloat):
        return float(value)
    raise NotImplementedError(f"cannot pack a {type(value).__name__}: {value!r}")


def _encode_finding(finding: Finding) -> msgspec.Raw:
    return msgspec.Raw(_encode_value(finding))


def _decode_finding(packed: msgspec.Raw) -> Finding:
    return msgspec.msgpack.decode(packed, type=Union[FINDING_TYPES])  # type: ignore[no-any-return]  # noqa: UP007
