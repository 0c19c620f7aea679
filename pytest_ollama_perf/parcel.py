"""Trials as bytes: what a test measured, on its way from the process that measured to the one that reports."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, SupportsFloat, Union

import msgspec

import pytest_ollama_perf.finding
from pytest_ollama_perf.finding import Finding
from pytest_ollama_perf.report.result import LoadResult
from pytest_ollama_perf.trial import Trial
from pytest_ollama_perf.verdict.words import Verdict


class _Packed(msgspec.Struct, frozen=True):
    verdict: Verdict
    loads: tuple[LoadResult, ...]
    findings: tuple[msgspec.Raw, ...]


class _Parcel(msgspec.Struct, frozen=True):
    test: str
    trials: tuple[_Packed, ...]


def pack(test: str, trials: list[Trial]) -> bytes:
    """Return the ``trials`` of ``test`` as MessagePack."""
    packed = tuple(_Packed(trial.verdict, trial.loads, tuple(map(_raw, trial.findings))) for trial in trials)
    return _encode(_Parcel(test, packed))


def unpack(parcel: bytes) -> tuple[str, list[Trial]]:
    """Return what was packed: the test and its trials."""
    whole = msgspec.msgpack.decode(parcel, type=_Parcel)
    return whole.test, [
        Trial(packed.verdict, packed.loads, tuple(map(_finding, packed.findings))) for packed in whole.trials
    ]


def _encode(value: object) -> bytes:
    return msgspec.msgpack.encode(value, enc_hook=_number)


def _number(value: object) -> float:
    """Return a number of another library, such as numpy, as a plain one."""
    if isinstance(value, SupportsFloat):
        return float(value)
    raise NotImplementedError(f"cannot pack a {type(value).__name__}: {value!r}")


def _raw(finding: Finding) -> msgspec.Raw:
    return msgspec.Raw(_encode(finding))


def _finding(raw: msgspec.Raw) -> Finding:
    return msgspec.msgpack.decode(raw, type=_kinds())  # type: ignore[no-any-return]


def _kinds() -> Any:
    """Return the union of every kind of finding there is."""
    for module in pkgutil.iter_modules(pytest_ollama_perf.finding.__path__):
        importlib.import_module(f"{pytest_ollama_perf.finding.__name__}.{module.name}")
    return Union[tuple(_below(Finding))]  # noqa: UP007


def _below(kind: type[Finding]) -> list[type[Finding]]:
    return [found for direct in kind.__subclasses__() for found in (direct, *_below(direct))]
