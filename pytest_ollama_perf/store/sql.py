"""The history in a database that a team shares: SQLite or PostgreSQL, through SQLAlchemy."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pytest_ollama_perf.analysis.epochs import Acceptance, RunKind, StoredRuns
from pytest_ollama_perf.core.errors import ConfigError, MissingExtraError, NewerSchemaError, StoreError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.workload import compute_identity as identity_of
from pytest_ollama_perf.store.base import HISTORY_LIMIT, find_newest_session, to_slug
from pytest_ollama_perf.store.files import build_corrupt_error, escape_surrogates
from pytest_ollama_perf.store.record import decode_acceptance, decode_run, encode_acceptance, encode_run

try:
    import sqlalchemy as sa
    from sqlalchemy import (
        Column,
        Connection,
        Double,
        Index,
        Integer,
        LargeBinary,
        MetaData,
        String,
        Table,
        Text,
        insert,
        inspect,
        select,
        text,
    )
    from sqlalchemy.schema import CreateIndex, CreateTable
except ImportError as error:
    raise MissingExtraError("a store in a database", "sql") from error

_BUSY_TIMEOUT_S = 30
"""How long SQLite waits for another writer."""


def open_sql_store(url: str) -> SqlStore:
    """Return the store in the database at ``url``, which is first asked when it is first used.

    Raises ``ConfigError`` for a text that is no such URL, ``MissingExtra`` without the driver.
    """
    try:
        return SqlStore(_create_engine(sa.make_url(url)))
    except (sa.exc.NoSuchModuleError, ModuleNotFoundError):
        backend = url.partition(":")[0].partition("+")[0]
        raise MissingExtraError(f"a store in {backend}", backend) from None
    except (sa.exc.ArgumentError, ValueError):
        raise ConfigError(
            "the store's URL cannot be read: expected sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from None


def _create_engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() == "sqlite":
        return sa.create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_S})
    return sa.create_engine(url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url)


class SqlStore:
    """Runs as rows; what was added is never changed."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._prepared = False

    @property
    def name(self) -> str:
        url = self._engine.url
        host = f"{url.host}:{url.port}" if url.host and url.port else url.host or ""
        return sanitize(f"{url.get_backend_name()}://{host}/{url.database or ''}")

    def add(self, run: Run, kind: RunKind = RunKind.SAVED) -> None:
        values = {
            "id": to_slug(run.id),
            "test_key": _hash_test(run.test),
            "test": escape_surrogates(run.test),
            "identity": identity_of(run.workload),
            "kind": kind.value,
            "started_at": run.started_at,
            "record": encode_run(run),
        }
        self._insert(RUNS_TABLE, values, f"run {sanitize(run.id)}")

    def read_history(self, test: str, *, identity: str | None = None, limit: int | None = HISTORY_LIMIT) -> StoredRuns:
        with self._connect_for_reading() as connection:
            acceptances, damaged = self._read_acceptances(connection, test)
            accepted = [to_slug(run) for acceptance in acceptances for run in acceptance.runs]
            chosen = _select_runs(test).where(
                sa.or_(RUNS_TABLE.c.kind == RunKind.SAVED.value, RUNS_TABLE.c.id.in_(accepted))
            )
            if identity is not None:
                chosen = chosen.where(RUNS_TABLE.c.identity == identity)
            runs, unread = self._fetch_newest(connection, chosen, limit)
        return StoredRuns(runs=runs, acceptances=acceptances, damaged=damaged + unread)

    def read_pending(self, test: str, *, limit: int | None = HISTORY_LIMIT) -> StoredRuns:
        with self._connect_for_reading() as connection:
            acceptances, damaged = self._read_acceptances(connection, test)
            accepted = [to_slug(run) for acceptance in acceptances for run in acceptance.runs]
            chosen = _select_runs(test).where(
                RUNS_TABLE.c.kind == RunKind.REGRESSED.value, RUNS_TABLE.c.id.not_in(accepted)
            )
            if acceptances:
                chosen = chosen.where(RUNS_TABLE.c.started_at > acceptances[-1].at)
            runs, unread = self._fetch_newest(connection, chosen, limit)
        return StoredRuns(runs=runs, acceptances=acceptances, damaged=damaged + unread)

    def accept(self, test: str, *, why: str, who: str, at: float) -> Acceptance:
        runs = find_newest_session(self.read_pending(test, limit=None))
        acceptance = Acceptance(
            test=escape_surrogates(test), at=at, why=escape_surrogates(why), who=escape_surrogates(who), runs=runs
        )
        data = encode_acceptance(acceptance)
        values = {
            "id": hashlib.sha256(data).hexdigest(),
            "test_key": _hash_test(test),
            "accepted_at": at,
            "record": data,
        }
        self._insert(ACCEPTANCES_TABLE, values, f"the acceptance of {sanitize(test)}")
        return acceptance

    def list_tests(self) -> tuple[str, ...]:
        with self._connect_for_reading() as connection:
            return tuple(sorted(self._fetch_rows(connection, sa.select(RUNS_TABLE.c.test).distinct())))

    def read_run(self, run_id: str) -> Run | None:
        with self._connect_for_reading() as connection:
            records = self._fetch_rows(
                connection, sa.select(RUNS_TABLE.c.record).where(RUNS_TABLE.c.id == to_slug(run_id))
            )
        return decode_run(bytes(records[0]), self._describe_row(run_id)) if records else None

    def find_run_ids(self, beginning: str) -> tuple[str, ...]:
        with self._connect_for_reading() as connection:
            begins = RUNS_TABLE.c.id.startswith(beginning, autoescape=True)
            found = self._fetch_rows(connection, sa.select(RUNS_TABLE.c.id).where(begins).order_by(RUNS_TABLE.c.id))
        return tuple(run for run in found if run.startswith(beginning))  # SQLite's LIKE ignores case

    def close(self) -> None:
        self._engine.dispose()

    def _describe_row(self, run_id: str) -> str:
        return f"run {sanitize(run_id)} in {self.name}"

    def _insert(self, table: sa.Table, values: Mapping[str, Any], what: str) -> None:
        """Insert a row, or find the same one there."""
        try:
            self._prepare()
            with self._engine.begin() as connection:
                connection.execute(sa.insert(table).values(**values))
        except sa.exc.IntegrityError:
            self._check_identical(table, values, what)
        except sa.exc.SQLAlchemyError as error:
            raise StoreError(
                f"{what} could not be saved in {self.name}: {self._format_reason(error)}; what was stored before "
                "is whole"
            ) from None

    def _prepare(self) -> None:
        if self._prepared:
            return
        with contextlib.suppress(sa.exc.IntegrityError):  # another process was faster
            with self._engine.begin() as connection:
                create_tables(connection, self.name)
        self._prepared = True

    def _check_identical(self, table: sa.Table, values: Mapping[str, Any], what: str) -> None:
        with self._connect_for_reading() as connection:
            records = self._fetch_rows(connection, sa.select(table.c.record).where(table.c.id == values["id"]))
        if [bytes(record) for record in records] != [values["record"]]:
            raise StoreError(f"{what} could not be saved: {self.name} has another of that name, which is never changed")

    @contextlib.contextmanager
    def _connect_for_reading(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as connection:
                self._prepared = self._prepared or read_tables_version(connection, self.name) > 0
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise StoreError(f"the history in {self.name} cannot be read: {self._format_reason(error)}") from None

    def _format_reason(self, error: sa.exc.SQLAlchemyError) -> str:
        """Return what the database said, in one line that shows neither statement nor password."""
        said = str(error.orig) if isinstance(error, sa.exc.DBAPIError) else str(error)
        password = self._engine.url.password
        return sanitize(said.replace(str(password), "***") if password else said)

    def _fetch_rows(self, connection: sa.Connection, statement: sa.Select[Any]) -> list[Any]:
        """Return the first column; nothing where the tables do not exist yet."""
        return list(connection.scalars(statement)) if self._prepared else []

    def _read_acceptances(self, connection: sa.Connection, test: str) -> tuple[tuple[Acceptance, ...], tuple[str, ...]]:
        found: list[Acceptance] = []
        damaged: list[str] = []
        chosen = sa.select(ACCEPTANCES_TABLE.c.record).where(ACCEPTANCES_TABLE.c.test_key == _hash_test(test))
        for record in self._fetch_rows(connection, chosen.order_by(ACCEPTANCES_TABLE.c.accepted_at)):
            try:
                found.append(decode_acceptance(bytes(record), f"an acceptance of {sanitize(test)} in {self.name}"))
            except StoreError as error:
                damaged.append(str(error))
        return tuple(found), tuple(damaged)

    def _fetch_newest(
        self, connection: sa.Connection, chosen: sa.Select[Any], limit: int | None
    ) -> tuple[tuple[Run, ...], tuple[str, ...]]:
        """Return the newest ``limit`` runs that can be read, newest last, and what is wrong with those passed over."""
        ordered = chosen.order_by(RUNS_TABLE.c.started_at.desc(), RUNS_TABLE.c.id.desc()).limit(limit)
        runs: dict[str, Run] = {}
        damaged: list[str] = []
        looked_at = 0
        while self._prepared and (limit is None or len(runs) < limit):
            page = connection.execute(ordered.offset(looked_at)).all()
            wanted = page[: None if limit is None else limit - len(runs)]
            looked_at += len(wanted)
            self._decode_rows(wanted, runs, damaged)
            if not page or limit is None:
                break
        return tuple(reversed(runs.values())), tuple(damaged)

    def _decode_rows(self, rows: Iterable[Any], runs: dict[str, Run], damaged: list[str]) -> None:
        for run_id, test, record in rows:
            where = self._describe_row(run_id)
            try:
                run = decode_run(bytes(record), where)
                if run.test != test:
                    raise build_corrupt_error(where, f"it is of the test {run.test}")
                runs[run_id] = run
            except StoreError as error:
                damaged.append(str(error))


def _hash_test(test: str) -> str:
    return hashlib.sha256(escape_surrogates(test).encode()).hexdigest()


def _select_runs(test: str) -> sa.Select[Any]:
    return sa.select(RUNS_TABLE.c.id, RUNS_TABLE.c.test, RUNS_TABLE.c.record).where(
        RUNS_TABLE.c.test_key == _hash_test(test)
    )


TABLES_VERSION = 1
"""Version of these tables. Whoever changes them raises it and brings older ones here in ``prepare``."""

_LOCK_NUMBER = 0x6F6C6C61
"""Any number of our own: who holds PostgreSQL's lock of this number makes the tables, the others wait."""

_METADATA = MetaData()

SCHEMA_TABLE = Table("ollama_perf_schema", _METADATA, Column("version", Integer, primary_key=True, autoincrement=False))

RUNS_TABLE = Table(
    "ollama_perf_runs",
    _METADATA,
    Column("id", String(64), primary_key=True),  # a hash where the run's own id is longer or odd
    Column("test_key", String(64), nullable=False),  # hash of the node id, which may be longer than an index takes
    Column("test", Text, nullable=False),
    Column("identity", String(16), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("started_at", Double, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Index("ollama_perf_runs_of_test", "test_key", "kind", "started_at"),
    Index("ollama_perf_runs_of_workload", "test_key", "identity", "started_at"),
)

ACCEPTANCES_TABLE = Table(
    "ollama_perf_acceptances",
    _METADATA,
    Column("id", String(64), primary_key=True),
    Column("test_key", String(64), nullable=False),
    Column("accepted_at", Double, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Index("ollama_perf_acceptances_of_test", "test_key", "accepted_at"),
)


def read_tables_version(connection: Connection, where: str) -> int:
    """Return the version of the tables there, 0 where there are none; ``NewerSchema`` where it is newer than ours."""
    if not inspect(connection).has_table(SCHEMA_TABLE.name):
        return 0
    found = max(connection.scalars(select(SCHEMA_TABLE.c.version)), default=0)
    if found > TABLES_VERSION:
        raise NewerSchemaError(
            f"{where} has schema {found}, newer than this version understands (up to {TABLES_VERSION}): "
            "upgrade pytest-ollama-perf to read it"
        )
    return found


def create_tables(connection: Connection, where: str) -> None:
    """Make the tables where there are none; safe with many at once. The version is written last."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK_NUMBER})
    if read_tables_version(connection, where):
        return
    for table in _METADATA.sorted_tables:
        connection.execute(CreateTable(table, if_not_exists=True))
        for index in table.indexes:
            connection.execute(CreateIndex(index, if_not_exists=True))
    if not read_tables_version(connection, where):
        connection.execute(insert(SCHEMA_TABLE).values(version=TABLES_VERSION))
