"""The history in a database that a team shares: SQLite or PostgreSQL, through SQLAlchemy."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pytest_ollama_perf.errors import ConfigError, MissingExtra, StoreError
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.store.acceptance import decode_acceptance, encode_acceptance
from pytest_ollama_perf.store.base import LIMIT, newest_session, slug
from pytest_ollama_perf.store.record import decode, encode
from pytest_ollama_perf.store.seal import corrupt, plain
from pytest_ollama_perf.text import inert
from pytest_ollama_perf.verdict.epoch import Acceptance, History, Kind
from pytest_ollama_perf.workload import identity as identity_of

try:
    import sqlalchemy as sa

    from pytest_ollama_perf.store.tables import ACCEPTANCES, RUNS, prepare, version
except ImportError as error:
    raise MissingExtra("a store in a database", "sql") from error

_BUSY_S = 30
"""How long SQLite waits for another writer."""


def connect(url: str) -> SqlStore:
    """Return the store in the database at ``url``, which is first asked when it is first used.

    Raises ``ConfigError`` for a text that is no such URL, ``MissingExtra`` without the driver.
    """
    try:
        return SqlStore(_engine(sa.make_url(url)))
    except (sa.exc.NoSuchModuleError, ModuleNotFoundError):
        backend = url.partition(":")[0].partition("+")[0]
        raise MissingExtra(f"a store in {backend}", backend) from None
    except (sa.exc.ArgumentError, ValueError):
        raise ConfigError(
            "the store's URL cannot be read: expected sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from None


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() == "sqlite":
        return sa.create_engine(url, connect_args={"timeout": _BUSY_S})
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
        return inert(f"{url.get_backend_name()}://{host}/{url.database or ''}")

    def add(self, run: Run, kind: Kind = Kind.SAVED) -> None:
        values = {
            "id": slug(run.id),
            "test_key": _key(run.test),
            "test": plain(run.test),
            "identity": identity_of(run.workload),
            "kind": kind.value,
            "started_at": run.started_at,
            "record": encode(run),
        }
        self._insert(RUNS, values, f"run {inert(run.id)}")

    def history(self, test: str, *, identity: str | None = None, limit: int | None = LIMIT) -> History:
        with self._reading() as connection:
            acceptances, damaged = self._acceptances(connection, test)
            accepted = [slug(run) for acceptance in acceptances for run in acceptance.runs]
            chosen = _of(test).where(sa.or_(RUNS.c.kind == Kind.SAVED.value, RUNS.c.id.in_(accepted)))
            if identity is not None:
                chosen = chosen.where(RUNS.c.identity == identity)
            runs, unread = self._newest(connection, chosen, limit)
        return History(runs=runs, acceptances=acceptances, damaged=damaged + unread)

    def pending(self, test: str, *, limit: int | None = LIMIT) -> History:
        with self._reading() as connection:
            acceptances, damaged = self._acceptances(connection, test)
            accepted = [slug(run) for acceptance in acceptances for run in acceptance.runs]
            chosen = _of(test).where(RUNS.c.kind == Kind.REGRESSED.value, RUNS.c.id.not_in(accepted))
            if acceptances:
                chosen = chosen.where(RUNS.c.started_at > acceptances[-1].at)
            runs, unread = self._newest(connection, chosen, limit)
        return History(runs=runs, acceptances=acceptances, damaged=damaged + unread)

    def accept(self, test: str, *, why: str, who: str, at: float) -> Acceptance:
        runs = newest_session(self.pending(test, limit=None))
        acceptance = Acceptance(test=plain(test), at=at, why=plain(why), who=plain(who), runs=runs)
        data = encode_acceptance(acceptance)
        values = {
            "id": hashlib.sha256(data).hexdigest(),
            "test_key": _key(test),
            "accepted_at": at,
            "record": data,
        }
        self._insert(ACCEPTANCES, values, f"the acceptance of {inert(test)}")
        return acceptance

    def tests(self) -> tuple[str, ...]:
        with self._reading() as connection:
            return tuple(sorted(self._rows(connection, sa.select(RUNS.c.test).distinct())))

    def get(self, run_id: str) -> Run | None:
        with self._reading() as connection:
            records = self._rows(connection, sa.select(RUNS.c.record).where(RUNS.c.id == slug(run_id)))
        return decode(bytes(records[0]), self._row_name(run_id)) if records else None

    def runs_like(self, beginning: str) -> tuple[str, ...]:
        with self._reading() as connection:
            begins = RUNS.c.id.startswith(beginning, autoescape=True)
            found = self._rows(connection, sa.select(RUNS.c.id).where(begins).order_by(RUNS.c.id))
        return tuple(run for run in found if run.startswith(beginning))  # SQLite's LIKE ignores case

    def close(self) -> None:
        self._engine.dispose()

    def _row_name(self, run_id: str) -> str:
        return f"run {inert(run_id)} in {self.name}"

    def _insert(self, table: sa.Table, values: Mapping[str, Any], what: str) -> None:
        """Insert a row, or find the same one there."""
        try:
            self._prepare()
            with self._engine.begin() as connection:
                connection.execute(sa.insert(table).values(**values))
        except sa.exc.IntegrityError:
            self._must_be_same(table, values, what)
        except sa.exc.SQLAlchemyError as error:
            raise StoreError(
                f"{what} could not be saved in {self.name}: {self._reason(error)}; what was stored before is whole"
            ) from None

    def _prepare(self) -> None:
        if self._prepared:
            return
        with contextlib.suppress(sa.exc.IntegrityError):  # another process was faster
            with self._engine.begin() as connection:
                prepare(connection, self.name)
        self._prepared = True

    def _must_be_same(self, table: sa.Table, values: Mapping[str, Any], what: str) -> None:
        with self._reading() as connection:
            records = self._rows(connection, sa.select(table.c.record).where(table.c.id == values["id"]))
        if [bytes(record) for record in records] != [values["record"]]:
            raise StoreError(f"{what} could not be saved: {self.name} has another of that name, which is never changed")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as connection:
                self._prepared = self._prepared or version(connection, self.name) > 0
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise StoreError(f"the history in {self.name} cannot be read: {self._reason(error)}") from None

    def _reason(self, error: sa.exc.SQLAlchemyError) -> str:
        """Return what the database said, in one line that shows neither statement nor password."""
        said = str(error.orig) if isinstance(error, sa.exc.DBAPIError) else str(error)
        password = self._engine.url.password
        return inert(said.replace(str(password), "***") if password else said)

    def _rows(self, connection: sa.Connection, statement: sa.Select[Any]) -> list[Any]:
        """Return the first column; nothing where the tables do not exist yet."""
        return list(connection.scalars(statement)) if self._prepared else []

    def _acceptances(self, connection: sa.Connection, test: str) -> tuple[tuple[Acceptance, ...], tuple[str, ...]]:
        found: list[Acceptance] = []
        damaged: list[str] = []
        chosen = sa.select(ACCEPTANCES.c.record).where(ACCEPTANCES.c.test_key == _key(test))
        for record in self._rows(connection, chosen.order_by(ACCEPTANCES.c.accepted_at)):
            try:
                found.append(decode_acceptance(bytes(record), f"an acceptance of {inert(test)} in {self.name}"))
            except StoreError as error:
                damaged.append(str(error))
        return tuple(found), tuple(damaged)

    def _newest(
        self, connection: sa.Connection, chosen: sa.Select[Any], limit: int | None
    ) -> tuple[tuple[Run, ...], tuple[str, ...]]:
        """Return the newest ``limit`` runs that can be read, newest last, and what is wrong with those passed over."""
        ordered = chosen.order_by(RUNS.c.started_at.desc(), RUNS.c.id.desc()).limit(limit)
        runs: dict[str, Run] = {}
        damaged: list[str] = []
        looked_at = 0
        while self._prepared and (limit is None or len(runs) < limit):
            page = connection.execute(ordered.offset(looked_at)).all()
            wanted = page[: None if limit is None else limit - len(runs)]
            looked_at += len(wanted)
            self._sort_out(wanted, runs, damaged)
            if not page or limit is None:
                break
        return tuple(reversed(runs.values())), tuple(damaged)

    def _sort_out(self, rows: Iterable[Any], runs: dict[str, Run], damaged: list[str]) -> None:
        for run_id, test, record in rows:
            where = self._row_name(run_id)
            try:
                run = decode(bytes(record), where)
                if run.test != test:
                    raise corrupt(where, f"it is of the test {run.test}")
                runs[run_id] = run
            except StoreError as error:
                damaged.append(str(error))


def _key(test: str) -> str:
    return hashlib.sha256(plain(test).encode()).hexdigest()


def _of(test: str) -> sa.Select[Any]:
    return sa.select(RUNS.c.id, RUNS.c.test, RUNS.c.record).where(RUNS.c.test_key == _key(test))
