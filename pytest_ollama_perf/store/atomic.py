"""Files that are there whole or not at all, whatever happens to the writer."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

ABANDONED_S = 3600.0
"""A temporary file of this age has no writer any more."""


def write_once(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` and see it on the disk; ``FileExistsError`` where there is one. Raises ``OSError``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    _place(path, data, _publish)


def write_over(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` in place of what is there, and see it on the disk. Raises ``OSError``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _place(path, data, os.replace)


def _place(path: Path, data: bytes, name: Callable[[Path, Path], None]) -> None:
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        _write(temporary, data)
        name(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _write(path: Path, data: bytes) -> None:
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


def _sync(directory: Path) -> None:
    """Make the new name last; not every system lets a directory be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sweep(directory: Path) -> None:
    """Remove what killed writers left behind."""
    with contextlib.suppress(OSError):
        for leftover in directory.glob(".*.tmp"):
            if time.time() - leftover.stat().st_mtime > ABANDONED_S:
                leftover.unlink(missing_ok=True)
