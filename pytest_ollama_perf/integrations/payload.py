"""Evaluations as bytes: what a test measured, sent from the process that measured to the one that reports."""

from __future__ import annotations

from typing import SupportsFloat, Union

import msgspec

from pytest_ollama_perf.analysis.ab import ABComparison
from pytest_ollama_perf.analysis.cold_warm import ColdStart
from pytest_ollama_perf.analysis.findings import Finding
from pytest_ollama_perf.analysis.load_profile import Servers, Timeline
from pytest_ollama_perf.analysis.scaling import Sweep
from pytest_ollama_perf.analysis.sustained import MaxConcurrency
from pytest_ollama_perf.core.verdict import Verdict
from pytest_ollama_perf.harness.evaluation import Evaluation
from pytest_ollama_perf.harness.results import MeasuredLoad


class _PackedEvaluation(msgspec.Struct, frozen=True):
    verdict: Verdict
    loads: tuple[MeasuredLoad, ...]
    findings: tuple[msgspec.Raw, ...]


class _PackedTest(msgspec.Struct, frozen=True):
    test: str
    evaluations: tuple[_PackedEvaluation, ...]


def pack_evaluations(test: str, trials: list[Evaluation]) -> bytes:
    """Return the ``trials`` of ``test`` as MessagePack."""
    packed = tuple(
        _PackedEvaluation(trial.verdict, trial.loads, tuple(map(_encode_finding, trial.findings))) for trial in trials
    )
    return _encode_value(_PackedTest(test, packed))


def unpack_evaluations(parcel: bytes) -> tuple[str, list[Evaluation]]:
    """Return what was packed: the test and its trials."""
    whole = msgspec.msgpack.decode(parcel, type=_PackedTest)
    return whole.test, [
        Evaluation(packed.verdict, packed.loads, tuple(map(_decode_finding, packed.findings)))
        for packed in whole.evaluations
    ]


def _encode_value(value: object) -> bytes:
    return msgspec.msgpack.encode(value, enc_hook=_to_float)


def _to_float(value: object) -> float:
    """Return a number of another library, such as numpy, as a plain one."""
    if isinstance(value, SupportsFloat):
        return float(value)
    raise NotImplementedError(f"cannot pack a {type(value).__name__}: {value!r}")


def _encode_finding(finding: Finding) -> msgspec.Raw:
    return msgspec.Raw(_encode_value(finding))


def _decode_finding(raw: msgspec.Raw) -> Finding:
    return msgspec.msgpack.decode(raw, type=Union[FINDING_TYPES])  # type: ignore[no-any-return]  # noqa: UP007


FINDING_TYPES: tuple[type[Finding], ...] = (ABComparison, ColdStart, MaxConcurrency, Servers, Sweep, Timeline)
"""Every kind of finding that can travel."""
