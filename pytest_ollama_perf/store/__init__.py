"""The history of every test: one interface, kept in a directory or in a database that a team shares."""

from __future__ import annotations

from pathlib import Path

from pytest_ollama_perf.core.errors import ConfigError
from pytest_ollama_perf.core.text import suggest_match
from pytest_ollama_perf.store.base import HISTORY_LIMIT, Store
from pytest_ollama_perf.store.directory import DirectoryStore

__all__ = ["HISTORY_LIMIT", "Store", "open_store"]

_DATABASES = ("sqlite", "postgresql")


def open_store(text: str) -> Store:
    """Open the store that ``text`` names: a directory, or the URL of a database (``sqlite:///x.db``, ``postgresql://``).

    Raises ``ConfigError`` for a text that names neither, ``MissingExtra`` where the database needs a package that is
    not installed, ``StoreError`` where it cannot be reached.
    """
    if not text.strip():
        raise ConfigError("the store has no name: give a directory such as .ollama-perf, or the URL of a database")
    if "://" not in text:
        return DirectoryStore(Path(text).expanduser())
    scheme = text.partition("://")[0]
    if scheme.partition("+")[0] not in _DATABASES:
        raise ConfigError(
            f"no store of the kind '{scheme}://': a directory, sqlite:/// or postgresql:// are valid"
            + suggest_match(scheme, _DATABASES)
        )
    from pytest_ollama_perf.store.sql import open_sql_store

    return open_sql_store(text)
