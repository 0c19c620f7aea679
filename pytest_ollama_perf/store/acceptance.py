"""An acceptance as a JSON file: who accepted how a test runs now, when, why, and which runs."""

from __future__ import annotations

from types import MappingProxyType

import msgspec

from pytest_ollama_perf.errors import CorruptRecord, StoreError
from pytest_ollama_perf.store.seal import DAMAGE, Upgrade, corrupt, seal, unseal
from pytest_ollama_perf.verdict.epoch import Acceptance

SCHEMA = 1
UPGRADES: MappingProxyType[int, Upgrade] = MappingProxyType({})


def encode_acceptance(acceptance: Acceptance) -> bytes:
    """Return ``acceptance`` as a file; ``StoreError`` where it holds what no file can."""
    try:
        data = seal({"schema": SCHEMA} | msgspec.to_builtins(acceptance))
        decode_acceptance(data, "it")
    except (*DAMAGE, CorruptRecord) as error:
        raise StoreError(f"the acceptance of {acceptance.test} cannot be stored: {error}") from error
    return data


def decode_acceptance(data: bytes, where: str) -> Acceptance:
    """Return the acceptance in a file; ``where`` names it in a ``CorruptRecord`` or ``NewerSchema``."""
    try:
        return msgspec.convert(unseal(data, where, SCHEMA, UPGRADES), Acceptance)
    except DAMAGE as error:
        raise corrupt(where, str(error)) from error
