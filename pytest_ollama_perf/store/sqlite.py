"""SQLite, with Python's own module."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_ollama_perf.core.errors import StoreError
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.store.database import SCHEMA_TABLE, Row

_BUSY_TIMEOUT_S = 30
"""Seconds to wait for another writer."""


class SqliteDatabase:
    """One file; it is created when the first run is saved."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self.name = f"sqlite:///{sanitize(str(path))}"

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Run one statement, commit it, and return its rows."""
        with self._lock, _translate_errors():
            return self.connect().execute(statement, parameters).fetchall()

    def has_tables(self) -> bool:
        """Whether the tables of this package exist; a missing file is not created."""
        if not self._path.exists():
            return False
        return bool(self.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (SCHEMA_TABLE,)))

    def create_tables(self, statements: Sequence[str]) -> None:
        """Run ``statements`` in one transaction."""
        with self._lock, _translate_errors():
            connection = self.connect()
            connection.execute("BEGIN IMMEDIATE")
            try:
                for statement in statements:
                    connection.execute(statement.replace("BYTES", "BLOB"))
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def connect(self) -> sqlite3.Connection:
        """Return the connection; it is opened when it is first needed."""
        if self._connection is None:
            self._connection = sqlite3.connect(
                self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
        return self._connection

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(sanitize(str(error))) from None
