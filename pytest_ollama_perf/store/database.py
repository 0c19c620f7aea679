"""The history in a database: tables and statements that SQLite and PostgreSQL share."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from pytest_ollama_perf.analysis.epochs import Acceptance, RunKind
from pytest_ollama_perf.core import NewerSchemaError, StoreError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.workload import compute_identity
from pytest_ollama_perf.store.base import BaseStore
from pytest_ollama_perf.store.entries import AcceptanceEntry, RunEntry, format_stamp, to_slug
from pytest_ollama_perf.store.files import escape_surrogates
from pytest_ollama_perf.store.record import decode_run

Row = tuple[Any, ...]

TABLES_VERSION = 1
"""Version of the tables. Raise it when they change, and add the upgrade from the older version."""

SCHEMA_TABLE = "ollama_perf_schema"

TABLE_STATEMENTS = (
    f"CREATE TABLE IF NOT EXISTS {SCHEMA_TABLE} (version INTEGER PRIMARY KEY)",
    # id is a hash if the run's own id is long or has unusual characters; test_key is the hash of the node id,
    # which may be too long for an index.
    "CREATE TABLE IF NOT EXISTS ollama_perf_runs (id VARCHAR(64) PRIMARY KEY, test_key VARCHAR(64) NOT NULL,"
    " test TEXT NOT NULL, identity VARCHAR(16) NOT NULL, kind VARCHAR(16) NOT NULL,"
    " started_at DOUBLE PRECISION NOT NULL, record BYTES NOT NULL)",
    "CREATE INDEX IF NOT EXISTS ollama_perf_runs_of_test ON ollama_perf_runs"
    " (test_key, started_at, id, identity, kind)",
    "CREATE TABLE IF NOT EXISTS ollama_perf_acceptances (id VARCHAR(64) PRIMARY KEY, test_key VARCHAR(64) NOT NULL,"
    " accepted_at DOUBLE PRECISION NOT NULL, record BYTES NOT NULL)",
    "CREATE INDEX IF NOT EXISTS ollama_perf_acceptances_of_test ON ollama_perf_acceptances (test_key, accepted_at)",
    f"INSERT INTO {SCHEMA_TABLE} (version) VALUES ({TABLES_VERSION}) ON CONFLICT DO NOTHING",
)
"""``BYTES`` is replaced with the database's own type. The version is written last."""

_DAMAGED = "damaged"
_ROWS_PER_READ = 200


class Database(Protocol):
    """A connection to one database. Statements mark their parameters with ``?``.

    Methods raise ``StoreError`` with one line that shows neither statement nor credentials.
    """

    name: str

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Run one statement, commit it, and return its rows."""

    def has_tables(self) -> bool:
        """Whether the tables of this package exist."""

    def create_tables(self, statements: Sequence[str]) -> None:
        """Run ``statements`` in one transaction; safe if several processes do so at the same time."""

    def close(self) -> None:
        """Close the connection."""


class DatabaseStore(BaseStore):
    """Runs as rows of a table; rows are never changed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._prepared = False

    @property
    def name(self) -> str:
        """The address of the database without its secrets."""
        return self._database.name

    def list_tests(self) -> tuple[str, ...]:
        """Return the tests that have runs."""
        return tuple(sorted(row[0] for row in self._query("SELECT DISTINCT test FROM ollama_perf_runs")))

    def read_run(self, run_id: str) -> Run | None:
        """Return a run by its id, None without one."""
        rows = self._query("SELECT record FROM ollama_perf_runs WHERE id = ?", to_slug(run_id))
        return decode_run(bytes(rows[0][0]), self._describe("", run_id)) if rows else None

    def find_run_ids(self, beginning: str) -> tuple[str, ...]:
        """Return the ids that begin with ``beginning``."""
        rows = self._query("SELECT id FROM ollama_perf_runs WHERE substr(id, 1, ?) = ?", len(beginning), beginning)
        return tuple(sorted(row[0] for row in rows))

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _list_entries(self, test: str) -> list[RunEntry]:
        rows = self._query(
            "SELECT started_at, identity, id, kind FROM ollama_perf_runs WHERE test_key = ? AND kind <> ?",
            _hash_test(test),
            _DAMAGED,
        )
        return [RunEntry(format_stamp(at), identity, run, RunKind(kind), run) for at, identity, run, kind in rows]

    def _list_acceptances(self, test: str) -> list[AcceptanceEntry]:
        rows = self._query(
            "SELECT id, accepted_at, record FROM ollama_perf_acceptances WHERE test_key = ? ORDER BY accepted_at",
            _hash_test(test),
        )
        return [AcceptanceEntry(location, at, bytes(data)) for location, at, data in rows]

    def _read_records(self, test: str, entries: Sequence[RunEntry]) -> Iterator[tuple[RunEntry, bytes | StoreError]]:
        for start in range(0, len(entries), _ROWS_PER_READ):
            page = entries[start : start + _ROWS_PER_READ]
            marks = ", ".join("?" * len(page))
            rows = self._query(
                f"SELECT id, test, record FROM ollama_perf_runs WHERE id IN ({marks})",
                *(entry.location for entry in page),
            )
            found = {run: bytes(data) for run, _, data in rows}
            yield from ((entry, found[entry.location]) for entry in page if entry.location in found)

    def _describe(self, test: str, location: str) -> str:
        return f"record {sanitize(location)} in {self.name}"

    def _write_run(self, run: Run, kind: RunKind, data: bytes) -> None:
        values = (to_slug(run.id), _hash_test(run.test), escape_surrogates(run.test), compute_identity(run.workload))
        self._insert(
            "INSERT INTO ollama_perf_runs (id, test_key, test, identity, kind, started_at, record)"
            " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (*values, kind.value, run.started_at, data),
            f"run {sanitize(run.id)}",
        )
        rows = self._query("SELECT record FROM ollama_perf_runs WHERE id = ?", values[0])
        if [bytes(row[0]) for row in rows] != [data]:
            raise StoreError(
                f"run {sanitize(run.id)} could not be saved: {self.name} has another run with this id; "
                "stored runs are immutable"
            )

    def _write_acceptance(self, acceptance: Acceptance, data: bytes) -> None:
        self._insert(
            "INSERT INTO ollama_perf_acceptances (id, test_key, accepted_at, record)"
            " VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (hashlib.sha256(data).hexdigest(), _hash_test(acceptance.test), acceptance.at, data),
            f"the acceptance of {sanitize(acceptance.test)}",
        )

    def _set_aside(self, test: str, location: str, *, is_run: bool) -> str:
        """Keep the row, but under a kind or key that no history has."""
        if is_run:
            self._query("UPDATE ollama_perf_runs SET kind = ? WHERE id = ?", _DAMAGED, location)
            return f"kind '{_DAMAGED}' of table ollama_perf_runs"
        self._query("UPDATE ollama_perf_acceptances SET test_key = ? WHERE id = ?", _DAMAGED, location)
        return f"test_key '{_DAMAGED}' of table ollama_perf_acceptances"

    def _delete(self, test: str, entries: Sequence[RunEntry]) -> None:
        for entry in entries:
            self._query("DELETE FROM ollama_perf_runs WHERE id = ?", entry.location)

    def _query(self, statement: str, *parameters: object) -> list[Row]:
        """Return the rows of ``statement``; an empty list if the tables do not exist yet."""
        try:
            self._prepared = self._prepared or self._check_version()
            return self._database.execute(statement, parameters) if self._prepared else []
        except NewerSchemaError:
            raise
        except StoreError as error:
            raise StoreError(f"the history in {self.name} cannot be read: {error}") from None

    def _insert(self, statement: str, parameters: Sequence[object], what: str) -> None:
        try:
            if not self._prepared and not self._check_version():
                self._database.create_tables(TABLE_STATEMENTS)
            self._prepared = True
            self._database.execute(statement, parameters)
        except NewerSchemaError:
            raise
        except StoreError as error:
            raise StoreError(
                f"{what} could not be saved in {self.name}: {error}; records stored earlier are not affected"
            ) from None

    def _check_version(self) -> bool:
        """Whether the tables exist; ``NewerSchemaError`` if a newer version of this package made them."""
        if not self._database.has_tables():
            return False
        found = max((row[0] for row in self._database.execute(f"SELECT version FROM {SCHEMA_TABLE}")), default=0)
        if found > TABLES_VERSION:
            raise NewerSchemaError(
                f"{self.name} has schema {found}, newer than this version understands (up to {TABLES_VERSION}): "
                "upgrade pytest-ollama-perf to read it"
            )
        return bool(found)


def _hash_test(test: str) -> str:
    return hashlib.sha256(escape_surrogates(test).encode()).hexdigest()


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
