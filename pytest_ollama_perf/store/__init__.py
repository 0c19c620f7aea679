"""The history of every test: one interface, with a directory or a database behind it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.text import suggest_match
from pytest_ollama_perf.store.base import HISTORY_LIMIT, Store
from pytest_ollama_perf.store.database import DatabaseStore
from pytest_ollama_perf.store.directory import DirectoryStore

__all__ = ["HISTORY_LIMIT", "Store", "open_store"]

_DATABASES = ("sqlite", "postgresql")
_DATABASE_NAME = re.compile(
    r"(file|sqlite3?|postgres|postgresql|pgsql|psql|mysql|mariadb)(\+\w+)?:(?!//)", re.IGNORECASE
)
_URL_FORMS = "sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"


_added_stores: dict[str, Callable[[str], Store]] = {}


def add_store(scheme: str, open_added: Callable[[str], Store]) -> None:
    """Add a kind of store; ``open_added`` opens the store at a URL with this scheme.

    Raises:
        ConfigError: the scheme is in use or is not a valid one.
    """
    if scheme in {*_added_stores, *_DATABASES} or not re.fullmatch("[a-z][a-z0-9+.-]*", scheme):
        raise ConfigError(f"cannot add the store {scheme!r}: the scheme is in use, or not a scheme such as 'shared'")
    _added_stores[scheme] = open_added


def remove_store(scheme: str) -> None:
    """Remove a kind of store that was added."""
    _added_stores.pop(scheme, None)


def open_store(text: str) -> Store:
    """Open the store that ``text`` names: a directory, or a URL (``sqlite:///perf.db``, ``postgresql://...``).

    Raises ``ConfigError`` for a text that names neither, ``MissingExtraError`` if the database's package is not
    installed. A database is first contacted when it is first used.
    """
    if not text.strip():
        raise ConfigError("the store is empty: expected a directory such as .ollama-perf, or the URL of a database")
    if _DATABASE_NAME.match(text):
        scheme = text.partition(":")[0]
        raise ConfigError(f"'{scheme}:' without '//' is no store: expected a directory, {_URL_FORMS}")
    if "://" not in text:
        return DirectoryStore(Path(text).expanduser())
    return _open_database(text)


def _open_database(text: str) -> Store:
    scheme = text.partition("://")[0]
    if scheme in _added_stores:
        return _added_stores[scheme](text)
    if scheme == "sqlite":
        from pytest_ollama_perf.store.database import SqliteDatabase

        return DatabaseStore(SqliteDatabase(_parse_sqlite_path(text)))
    if scheme == "postgresql":
        from pytest_ollama_perf.store.postgresql import PostgresqlDatabase

        return DatabaseStore(PostgresqlDatabase(text))
    raise ConfigError(
        f"no store of the kind '{scheme}://': expected a directory, {_URL_FORMS}" + suggest_match(scheme, _DATABASES)
    )


def _parse_sqlite_path(url: str) -> Path:
    """Return the file of ``sqlite:///perf.db`` (relative) or ``sqlite:////var/perf.db`` (absolute)."""
    host, slash, path = url.partition("://")[2].partition("/")
    is_file = path and not path.endswith("/") and not path.startswith((":memory:", "file:"))
    if host or not slash or not is_file or "?" in path or "\0" in path:
        raise ConfigError(
            f"the store's URL names no file: expected {_URL_FORMS}; "
            "the FILE of sqlite:///perf.db is relative, that of sqlite:////var/perf.db absolute"
        )
    return Path(path).expanduser()
