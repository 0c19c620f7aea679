"""The tables of a shared history. Records stand in them as the same bytes that a directory holds."""

from __future__ import annotations

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

from pytest_ollama_perf.errors import NewerSchema

VERSION = 1
"""Version of these tables. Whoever changes them raises it and brings older ones here in ``prepare``."""

_LOCK = 0x6F6C6C61
"""Any number of our own: who holds PostgreSQL's lock of this number makes the tables, the others wait."""

_METADATA = MetaData()

SCHEMA = Table("ollama_perf_schema", _METADATA, Column("version", Integer, primary_key=True, autoincrement=False))

RUNS = Table(
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

ACCEPTANCES = Table(
    "ollama_perf_acceptances",
    _METADATA,
    Column("id", String(64), primary_key=True),
    Column("test_key", String(64), nullable=False),
    Column("accepted_at", Double, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Index("ollama_perf_acceptances_of_test", "test_key", "accepted_at"),
)


def version(connection: Connection, where: str) -> int:
    """Return the version of the tables there, 0 where there are none; ``NewerSchema`` where it is newer than ours."""
    if not inspect(connection).has_table(SCHEMA.name):
        return 0
    found = max(connection.scalars(select(SCHEMA.c.version)), default=0)
    if found > VERSION:
        raise NewerSchema(
            f"{where} has schema {found}, newer than this version understands (up to {VERSION}): "
            "upgrade pytest-ollama-perf to read it"
        )
    return found


def prepare(connection: Connection, where: str) -> None:
    """Make the tables where there are none; safe with many at once. The version is written last."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})
    if version(connection, where):
        return
    for table in _METADATA.sorted_tables:
        connection.execute(CreateTable(table, if_not_exists=True))
        for index in table.indexes:
            connection.execute(CreateIndex(index, if_not_exists=True))
    if not version(connection, where):
        connection.execute(insert(SCHEMA).values(version=VERSION))
