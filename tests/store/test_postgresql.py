"""What PostgreSQL needs: lost connections, servers that do not answer, encodings."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from store_makers import TEST, make_run

from pytest_ollama_perf.core import StoreError
from pytest_ollama_perf.store import open_store
from pytest_ollama_perf.store.base import Store
from pytest_ollama_perf.store.database import DatabaseStore

psycopg = pytest.importorskip("psycopg")
postgresql = pytest.importorskip("pytest_ollama_perf.store.postgresql")

URL = os.environ.get("OLLAMA_PERF_TEST_POSTGRESQL", "")
needs_server = pytest.mark.skipif(not URL, reason="no PostgreSQL: run under tests/postgres.sh")


@pytest.fixture
def store() -> Iterator[Store]:
    _execute("DROP TABLE IF EXISTS ollama_perf_runs, ollama_perf_acceptances, ollama_perf_schema")
    opened = open_store(URL)
    yield opened
    opened.close()
    _execute("DROP TABLE IF EXISTS ollama_perf_runs, ollama_perf_acceptances, ollama_perf_schema")


def _execute(statement: str) -> None:
    with psycopg.connect(URL, autocommit=True) as connection:
        connection.execute(statement)


def _cut_connections() -> None:
    _execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = 'perf'"
    )


@needs_server
def test_a_connection_that_was_cut_is_opened_again(store: Store) -> None:
    store.add(make_run())
    _cut_connections()
    assert [run.id for run in store.read_history(TEST).runs] == ["r1"]
    _cut_connections()
    store.add(make_run("r2", started_at=2e9))
    assert [run.id for run in store.read_history(TEST).runs] == ["r1", "r2"]


@needs_server
def test_a_database_in_sql_ascii_is_refused_in_one_line() -> None:
    _execute("DROP DATABASE IF EXISTS ascii_perf")
    _execute("CREATE DATABASE ascii_perf TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    store = open_store(URL.rpartition("/")[0] + "/ascii_perf")
    with pytest.raises(StoreError, match=r"encoding SQL_ASCII.*ENCODING 'UTF8'"):
        store.add(make_run())
    store.close()
    _execute("DROP DATABASE ascii_perf")


def test_a_server_that_cannot_be_reached_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[str] = []
    real = psycopg.connect
    monkeypatch.setattr(psycopg, "connect", lambda *args, **kw: attempts.append("") or real(*args, **kw))
    store = open_store("postgresql://ada@127.0.0.1:1/perf")
    for use in (store.list_tests, lambda: store.add(make_run()), lambda: store.read_history(TEST)):
        with pytest.raises(StoreError, match="connection"):
            use()
    assert len(attempts) == 1


def test_a_host_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "CONNECT_TIMEOUT_S", 2)  # the driver's smallest
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = DatabaseStore(postgresql.PostgresqlDatabase(f"postgresql://ada@127.0.0.1:{silent.getsockname()[1]}/x"))
        with pytest.raises(StoreError, match=r"timeout.*expired$"):
            store.list_tests()
        with pytest.raises(StoreError, match=r"timeout.*expired \(not tried again\)$"):
            store.list_tests()
