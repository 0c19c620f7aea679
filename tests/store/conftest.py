"""The stores that the contract is tested on: a directory, SQLite, and PostgreSQL where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_ollama_perf.store import open_store
from pytest_ollama_perf.store.base import Store

POSTGRESQL = os.environ.get("OLLAMA_PERF_TEST_POSTGRESQL", "")
KINDS = ["directory", "sqlite", *(["postgresql"] if POSTGRESQL else [])]


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty store's name, of every kind."""
    if request.param == "directory":
        yield str(tmp_path / "history")
    elif request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/history.db"
    else:
        yield from _postgresql()


def _postgresql() -> Iterator[str]:
    _drop(POSTGRESQL)
    yield POSTGRESQL
    _drop(POSTGRESQL)


def _drop(url: str) -> None:
    import psycopg

    with psycopg.connect(url) as connection:
        connection.execute("DROP TABLE IF EXISTS ollama_perf_runs, ollama_perf_acceptances, ollama_perf_schema")


@pytest.fixture
def store(place: str) -> Iterator[Store]:
    opened = open_store(place)
    yield opened
    opened.close()
