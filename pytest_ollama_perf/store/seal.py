"""What every file of a store has around its content: a schema number, and a check that tells damage from data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from pytest_ollama_perf.errors import CorruptRecord, NewerSchema
from pytest_ollama_perf.text import inert

MAX_BYTES = 64 << 20
"""No file of a store is longer; what is longer is not read."""

DAMAGE = (msgspec.MsgspecError, ValueError, TypeError, KeyError, OverflowError, RecursionError)
"""What reading foreign content may raise; msgspec's own errors are ``ValueError``s in its newest versions only."""

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]


def plain(text: str) -> str:
    """Return ``text`` as a file can hold it: what is no Unicode (a path of odd bytes) is written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def corrupt(where: str, reason: str) -> CorruptRecord:
    """Return the error for a file that this package did not write, or not so."""
    return CorruptRecord(f"{where} is damaged or foreign ({inert(reason)}): restore it or remove it")


def seal(body: dict[str, Any], opened: tuple[str, ...] = ()) -> bytes:
    """Return ``body`` as JSON with its check, one member on a line, so that people and ``git diff`` can point at one.

    The members of those in ``opened`` have a line each, too.
    """
    members = body | {"check": _check(body)}
    return _lines({name: _lines(part) if name in opened else _line(part) for name, part in members.items()}) + b"\n"


def unseal(data: bytes, where: str, newest: int, upgrades: Mapping[int, Upgrade]) -> dict[str, Any]:
    """Return the body of a sealed file, brought to schema ``newest`` step by step.

    Raises ``CorruptRecord`` and ``NewerSchema``, which name ``where``; an upgrade may raise what ``DAMAGE`` lists.
    """
    if len(data) > MAX_BYTES:
        raise corrupt(where, f"{len(data)} bytes, at most {MAX_BYTES}")
    try:
        body = msgspec.json.decode(data)
        schema = _schema(body)
        if schema <= newest and body.pop("check", None) != _check(body):
            raise corrupt(where, "its check does not fit its content")
    except DAMAGE as error:
        raise corrupt(where, str(error)) from error
    if schema > newest:
        raise NewerSchema(
            f"{where} has schema {schema}, newer than this version understands (up to {newest}): "
            "upgrade pytest-ollama-perf to read it"
        )
    for step in range(schema, newest):
        body = upgrades[step](body) | {"schema": step + 1}
    return dict(body)


def _schema(body: object) -> int:
    schema = body.get("schema") if isinstance(body, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or not 1 <= schema < 1 << 31:
        raise ValueError("no schema number")
    return schema


def _check(body: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(body, order="sorted")).hexdigest()[:16]


def _lines(parts: dict[str, Any]) -> bytes:
    members = (_line(name) + b":" + (part if isinstance(part, bytes) else _line(part)) for name, part in parts.items())
    return b"{" + b",\n".join(members) + b"}"


def _line(part: object) -> bytes:
    return msgspec.json.encode(part)
