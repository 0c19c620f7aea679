"""What the database alone promises: its address stays secret, its tables are made once, newer ones are refused."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from store_makers import TEST, make_run

from pytest_ollama_perf.core import ConfigError, MissingExtraError, NewerSchemaError, StoreError
from pytest_ollama_perf.store import open_store
from pytest_ollama_perf.store.database import DatabaseStore, SqliteDatabase

HERE = Path(__file__).parent
SECRET = "hunter2"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ada:{SECRET}@127.0.0.1:1/perf",
        f"postgresql://ada:{SECRET}@127.0.0.1:1/perf?password={SECRET}",
        f"postgresql://ada:p@{SECRET}@127.0.0.1:1/perf",
        f"postgresql://ada:p/{SECRET}:@@127.0.0.1:1/perf",
        f"postgresql://ada:p%40{SECRET}@127.0.0.1:1/perf",
        f"postgresql://127.0.0.1:1/perf?user=ada&password={SECRET}",
    ],
)
def test_credentials_are_never_shown(url: str) -> None:
    pytest.importorskip("psycopg")
    store = open_store(url)
    assert store.name == "postgresql://127.0.0.1:1/perf"
    for use in (lambda: store.add(make_run()), lambda: store.read_history(TEST), store.list_tests):
        with pytest.raises(StoreError) as caught:
            use()
        assert SECRET not in str(caught.value)
        assert "postgresql://127.0.0.1:1/perf" in str(caught.value)
        assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ada:{SECRET}@host:port/perf",
        f"sqlite://{SECRET}@[/x",
        f"mysql://ada:{SECRET}@h/x",
        f"postgresql://ada:5?{SECRET}@h/x",
        f"postgres://a:{SECRET}@h/x",
    ],
)
def test_an_address_that_cannot_be_read_is_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert SECRET not in str(caught.value)
    assert "sqlite:///" in str(caught.value)
    assert "postgresql://" in str(caught.value)


def test_a_scheme_close_to_a_valid_one_is_suggested() -> None:
    with pytest.raises(ConfigError, match="did you mean 'postgresql'"):
        open_store("postgres://h/x")


def test_a_store_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected a directory such as \.ollama-perf, or the URL of a database"):
        open_store(" ")


def test_sqlite_needs_no_extra(tmp_path: Path) -> None:
    script = """
import sys
for name in ("sqlalchemy", "psycopg"):
    sys.modules[name] = None
from store_makers import TEST, make_run
from pytest_ollama_perf.store import open_store
store = open_store(sys.argv[1])
store.add(make_run())
print([run.id for run in store.read_history(TEST).runs])
"""
    url = f"sqlite:///{tmp_path}/x.db"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", script, url], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.stdout, done.stderr) == ("['r1']\n", "")


def test_without_a_driver_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pytest_ollama_perf.store.postgresql", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError) as caught:
        open_store("postgresql://h/x")
    assert str(caught.value) == "a store in PostgreSQL needs an extra: pip install 'pytest-ollama-perf[postgresql]'"


def test_reading_a_missing_database_does_not_create_it(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/x.db")
    assert store.list_tests() == ()
    assert not (tmp_path / "x.db").exists()


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:perf.db",
        "sqlite:/x",
        "sqlite3:perf.db",
        "postgresql:",
        "postgresql:/db",
        "postgresql+psycopg:x",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///file::memory:",
        "sqlite:///perf.db?mode=memory",
        "file:perf.db",
        "pgsql:perf",
        "sqlite://perf.db",
        "sqlite:///folder/",
        " ",
        "",
    ],
)
def test_text_that_is_neither_a_folder_nor_a_database_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"expected (a directory|sqlite:///)"):
        open_store(text)
    assert not list(tmp_path.iterdir())


def test_newer_tables_are_refused_with_what_to_do(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    first = open_store(url)
    first.add(make_run())
    first.close()
    with sqlite3.connect(tmp_path / "x.db") as connection:
        connection.execute("UPDATE ollama_perf_schema SET version = 9")
    connection.close()
    store = open_store(url)
    for use in (lambda: store.read_history(TEST), lambda: store.add(make_run("r2"))):
        with pytest.raises(
            NewerSchemaError, match=r"has schema 9, newer than this version understands \(up to 1\): upgrade"
        ):
            use()
    store.close()


@pytest.mark.parametrize("content", [b"this is no database, whatever its name says", b"SQLite format 3\0" + bytes(50)])
def test_a_file_that_is_no_database_is_an_error_and_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.db").write_bytes(content)
    store = open_store(f"sqlite:///{tmp_path}/x.db")
    with pytest.raises(StoreError, match=r"the history in sqlite:///.*x\.db cannot be read: file is not a database"):
        store.read_history(TEST)
    with pytest.raises(StoreError, match=r"run r1 could not be saved in .*; records stored earlier are not affected"):
        store.add(make_run())
    store.close()
    assert (tmp_path / "x.db").read_bytes() == content


def test_a_full_database_keeps_what_it_had_and_says_so(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "x.db")
    store = DatabaseStore(database)
    store.add(make_run())
    pages = database.execute("PRAGMA page_count")[0][0]
    database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError) as caught:
        store.add(make_run("big", requests=400, tokens=60))
    assert "database or disk is full; records stored earlier are not affected" in str(caught.value)
    history = store.read_history(TEST, limit=None)
    assert [run.id for run in history.runs] == ["r1"]
    assert history.damaged == ()
    store.close()


def test_a_read_only_database_is_read_and_not_written(tmp_path: Path) -> None:
    writable = open_store(f"sqlite:///{tmp_path}/x.db")
    writable.add(make_run())
    writable.close()
    database = SqliteDatabase(tmp_path / "x.db")
    store = DatabaseStore(database)
    assert [run.id for run in store.read_history(TEST).runs] == ["r1"]
    database.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match="attempt to write a readonly database"):
        store.add(make_run("r2"))
    store.close()
