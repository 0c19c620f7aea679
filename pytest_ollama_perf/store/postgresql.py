"""PostgreSQL, with psycopg (extra ``postgresql``)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar
from urllib.parse import parse_qsl, quote, unquote

from pytest_ollama_perf.core import ConfigError, MissingExtraError, StoreError
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.store.database import SCHEMA_TABLE, Row

try:
    import psycopg
except ImportError as error:
    raise MissingExtraError("a store in PostgreSQL", "postgresql") from error

CONNECT_TIMEOUT_S = 10
"""Seconds until a server that does not answer counts as unreachable."""

_LOCK_NUMBER = 0x6F6C6C61
"""Key of the advisory lock that a process holds while it creates the tables."""

_URL_FORM = (
    "expected sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE (special characters of the password as %XX)"
)
_T = TypeVar("_T")


class PostgresqlDatabase:
    """One database. A connection that was cut is opened again once per statement; a server that cannot be reached is
    not tried again by this object."""

    def __init__(self, url: str) -> None:
        self._url, self._secrets, self.name = _read_url(url)
        self._connection: psycopg.Connection[Row] | None = None
        self._unreachable = ""

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Run one statement, commit it, and return its rows."""
        return self._run(lambda connection: _execute(connection, statement, parameters))

    def has_tables(self) -> bool:
        """Whether the tables of this package exist."""
        return bool(self.execute("SELECT 1 WHERE to_regclass(?) IS NOT NULL", (SCHEMA_TABLE,)))

    def create_tables(self, statements: Sequence[str]) -> None:
        """Run ``statements`` in one transaction; other processes wait until it ends."""
        self._run(lambda connection: _create_tables(connection, statements))

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _run(self, act: Callable[[psycopg.Connection[Row]], _T]) -> _T:
        """Act, and once more on a new connection if the old one was cut. Every statement here may run twice."""
        with self._translate_errors():
            connection = self._connect()
            try:
                return act(connection)
            except psycopg.OperationalError:
                if not connection.closed:
                    raise
            self._connection = None
            return act(self._connect())

    def _connect(self) -> psycopg.Connection[Row]:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        if self._unreachable:
            raise StoreError(f"{self._unreachable} (not tried again)")
        try:
            connection = psycopg.connect(
                self._url,
                autocommit=True,
                prepare_threshold=None,
                connect_timeout=CONNECT_TIMEOUT_S,
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=3,
                tcp_user_timeout=30_000,
            )
        except psycopg.OperationalError as error:
            self._unreachable = self._format_reason(error)
            raise
        _check_encoding(connection)
        self._connection = connection
        return connection

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise StoreError(self._format_reason(error)) from None

    def _format_reason(self, error: psycopg.Error) -> str:
        """Return the server's message on one line, without the password."""
        text = str(error)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return sanitize(text)


def _execute(connection: psycopg.Connection[Row], statement: str, parameters: Sequence[object]) -> list[Row]:
    cursor = connection.execute(statement.replace("?", "%s").encode(), parameters)
    return cursor.fetchall() if cursor.description else []


def _create_tables(connection: psycopg.Connection[Row], statements: Sequence[str]) -> None:
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK_NUMBER,))
        for statement in statements:
            connection.execute(statement.replace("BYTES", "BYTEA").encode())


def _check_encoding(connection: psycopg.Connection[Row]) -> None:
    encoding = connection.info.parameter_status("server_encoding")
    if encoding == "SQL_ASCII":
        connection.close()
        raise StoreError(
            "the database has the encoding SQL_ASCII, which cannot hold node ids: "
            "create one with CREATE DATABASE name TEMPLATE template0 ENCODING 'UTF8'"
        )


def _read_url(url: str) -> tuple[str, tuple[str, ...], str]:
    """Return the URL for the driver, the secrets in it, and a name without credentials.

    The user's part ends at the last ``@`` before the options, so that a password may contain one.
    """
    body, question, query = url.partition("://")[2].partition("?")
    account, _, place = body.rpartition("@")
    host, _, database = place.partition("/")
    options = [option.split("=", 1) for option in query.split("&") if option]
    if any("@" in option[0] for option in options) or not _is_valid_host(host):
        raise ConfigError(f"the store's URL cannot be read: {_URL_FORM}")
    user, colon, password = account.partition(":")
    login = f"{_quote(user)}{colon}{_quote(password)}@" if account else ""
    secrets = {password, unquote(password), *_read_password_options(query)} - {""}
    name = f"postgresql://{sanitize(host)}/{sanitize(database)}"
    return f"postgresql://{login}{place}{question}{query}", tuple(sorted(secrets, key=len, reverse=True)), name


def _read_password_options(query: str) -> list[str]:
    return [value for option, value in parse_qsl(query) if "password" in option]


def _is_valid_host(host: str) -> bool:
    """Accept HOST, HOST:PORT, [IPv6]:PORT, a list of them, and nothing (a local socket)."""
    one = r"(?:[\w.%-]*|\[[0-9A-Fa-f:.%]+\])(?::[0-9]+)?"
    return re.fullmatch(rf"{one}(?:,{one})*", host) is not None


def _quote(text: str) -> str:
    """Encode what is special in a URL; sequences that are encoded already stay."""
    return quote(unquote(text), safe="")
