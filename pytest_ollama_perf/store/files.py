"""Files that are there whole or not at all, whatever happens to the writer."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from pytest_ollama_perf.core import CorruptRecordError, NewerSchemaError
from pytest_ollama_perf.core.text import sanitize

ABANDONED_S = 3600.0
"""A temporary file of this age has no writer any more."""


def write_once(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` and see it on the disk; ``FileExistsError`` where there is one. Raises ``OSError``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    _write_and_rename(path, data, _publish)


def write_over(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, sync it to disk and keep the permissions of a replaced file. Raises ``OSError``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_and_rename(path, data, _replace_with_permissions)


def _write_and_rename(path: Path, data: bytes, name: Callable[[Path, Path], None]) -> None:
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        _write_synced(temporary, data)
        name(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _publish(temporary: Path, path: Path) -> None:
    """Give the file its name; a hard link refuses a name that is taken, a rename serves where there are no links."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        if path.exists():
            raise FileExistsError(path) from None
        temporary.replace(path)


def _replace_with_permissions(temporary: Path, path: Path) -> None:
    """Give the file its name and the permissions of the file that it replaces."""
    with contextlib.suppress(OSError):
        temporary.chmod(stat.S_IMODE(path.stat().st_mode))
    temporary.replace(path)


def _sync_directory(directory: Path) -> None:
    """Make the new name last; not every system lets a directory be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_abandoned(directory: Path) -> None:
    """Remove what killed writers left behind."""
    with contextlib.suppress(OSError):
        for leftover in directory.glob(".*.tmp"):
            if time.time() - leftover.stat().st_mtime > ABANDONED_S:
                leftover.unlink(missing_ok=True)


MAX_FILE_BYTES = 64 << 20
"""No file of a store is longer; what is longer is not read."""

DECODE_ERRORS = (msgspec.MsgspecError, ValueError, TypeError, KeyError, OverflowError, RecursionError)
"""What reading foreign content may raise; msgspec's own errors are ``ValueError``s in its newest versions only."""

SchemaUpgrade = Callable[[dict[str, Any]], dict[str, Any]]


def escape_surrogates(text: str) -> str:
    """Return ``text`` as a file can hold it: what is no Unicode (a path of odd bytes) is written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def build_corrupt_error(where: str, reason: str) -> CorruptRecordError:
    """Return the error for a file that this package did not write, or not so."""
    return CorruptRecordError(
        f"{where} is damaged or foreign ({sanitize(reason)}): restore it, or run pytest-ollama-perf repair"
    )


def encode_checked(body: dict[str, Any], opened: tuple[str, ...] = ()) -> bytes:
    """Return ``body`` as JSON with its check, one member on a line, so that people and ``git diff`` can point at one.

    Members of the objects named in ``opened`` also have a line each.
    """
    members = body | {"check": _compute_checksum(body)}
    return (
        _encode_members(
            {name: _encode_members(part) if name in opened else _encode_value(part) for name, part in members.items()}
        )
        + b"\n"
    )


def decode_checked(data: bytes, where: str, newest: int, upgrades: Mapping[int, SchemaUpgrade]) -> dict[str, Any]:
    """Return the body of a sealed file, brought to schema ``newest`` step by step.

    Raises ``CorruptRecord`` and ``NewerSchema``, which name ``where``; an upgrade may raise what ``DAMAGE`` lists.
    """
    if len(data) > MAX_FILE_BYTES:
        raise build_corrupt_error(where, f"{len(data)} bytes, at most {MAX_FILE_BYTES}")
    try:
        body = msgspec.json.decode(data)
        schema = _read_schema(body)
        if schema <= newest and body.pop("check", None) != _compute_checksum(body):
            raise build_corrupt_error(where, "its check does not fit its content")
    except DECODE_ERRORS as error:
        raise build_corrupt_error(where, str(error)) from error
    if schema > newest:
        raise NewerSchemaError(
            f"{where} has schema {schema}, newer than this version understands (up to {newest}): "
            "upgrade pytest-ollama-perf to read it"
        )
    for step in range(schema, newest):
        body = upgrades[step](body) | {"schema": step + 1}
    return dict(body)


def _read_schema(body: object) -> int:
    schema = body.get("schema") if isinstance(body, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or not 1 <= schema < 1 << 31:
        raise ValueError("no schema number")
    return schema


def _compute_checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(body, order="sorted")).hexdigest()[:16]


def _encode_members(parts: dict[str, Any]) -> bytes:
    members = (
        _encode_value(name) + b":" + (part if isinstance(part, bytes) else _encode_value(part))
        for name, part in parts.items()
    )
    return b"{" + b",\n".join(members) + b"}"


def _encode_value(part: object) -> bytes:
    return msgspec.json.encode(part)
