"""The measured path: requests over persistent connections, on any asyncio event loop."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import anyio
import httpx

from pytest_ollama_perf.client.address import Access, Address, SecretMask
from pytest_ollama_perf.client.asyncio_transport import open_asyncio_connection
from pytest_ollama_perf.client.exchange import DeadlineTimer, Exchange, format_timeout
from pytest_ollama_perf.client.transport import (
    Connection,
    ConnectionContext,
    SocketAddress,
    describe_client_error,
    describe_connection_error,
    open_socket_connection,
)
from pytest_ollama_perf.core.sample import Outcome, Sample
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.workload import Endpoint
from pytest_ollama_perf.loadgen import Request, StreamProgress

_MAX_CONCURRENT_DIALS = 64

STALE_GRACE_NS = 10_000_000
"""How much later than two round trips the reset of a connection that was closed while idle may be read."""


def build_request_head(address: Address, access: Access, endpoint: Endpoint) -> bytes:
    """Return the request line and the headers that all requests to ``endpoint`` share, as httpx builds them."""
    url = httpx.URL(f"{address.url}/api/{endpoint.value}")
    given = [("Accept", "application/x-ndjson, application/json"), ("Accept-Encoding", "identity")]
    named = {name.lower() for name, _ in access.headers}
    given += [("Content-Type", "application/json"), ("User-Agent", "pytest-ollama-perf")]
    headers = [*(pair for pair in given if pair[0].lower() not in named), *access.build_headers()]
    request = httpx.Request("POST", url, headers=headers)
    auth = access.build_basic_auth(address)
    if auth is not None:
        request = next(auth.sync_auth_flow(request))
    rows = [name + b": " + value for name, value in request.headers.raw if name.lower() != b"content-length"]
    return b"\r\n".join([b"POST " + url.raw_path + b" HTTP/1.1", *rows, b""])


async def open_connection(
    found: SocketAddress, io: ConnectionContext, tls: ssl.SSLContext | None, server_name: str
) -> Connection:
    """Connect to ``found`` in the way that the running loop supports.

    Raises:
        OSError: the connection could not be made.
    """
    if io.poller is None:
        return await open_asyncio_connection(found, tls, server_name)
    return await open_socket_connection(found, io, tls, server_name)


@dataclass
class _Target:
    """One server: how to reach it, and its open connections."""

    address: Address
    heads: dict[Endpoint, bytes]
    tls: ssl.SSLContext | None
    mask: SecretMask
    idle: list[Connection] = field(default_factory=list)
    busy: set[Connection] = field(default_factory=set)
    socket_addresses: list[SocketAddress] = field(default_factory=list)

    async def dial(self, io: ConnectionContext) -> Connection:
        """Open a connection, trying every address of the host.

        Raises:
            OSError: none of them accepts.
        """
        if not self.socket_addresses:
            loop = asyncio.get_running_loop()
            self.socket_addresses = list(
                await loop.getaddrinfo(self.address.host, self.address.port, type=socket.SOCK_STREAM)
            )
        failure: OSError | None = None
        for found in list(self.socket_addresses):
            try:
                connection = await open_connection(found, io, self.tls, self.address.host)
            except OSError as error:
                failure = failure or error
            else:
                self.socket_addresses = [found]
                return connection
        self.socket_addresses.clear()
        raise failure or OSError("the host has no address")

    def take_idle(self) -> Connection | None:
        """Return the idle connection that was used last, or ``None``."""
        while self.idle:
            connection = self.idle.pop()
            if connection.is_usable:
                return connection
        return None


class HttpBackend:
    """Sends requests to servers and makes a sample of each. ``Request.target`` is an index into ``addresses``.

    Args:
        addresses: the servers, at least one.
        access: credentials, headers and TLS trust, the same for all servers.
        connect_timeout_s: limit for opening one connection before the load starts.

    Raises:
        ConfigError: the CA file cannot be used.
    """

    def __init__(
        self, addresses: Sequence[Address], access: Access | None = None, *, connect_timeout_s: float = 10.0
    ) -> None:
        access = access or Access()
        tls = access.build_ssl_context() if any(address.tls for address in addresses) else None
        self._targets = [
            _Target(
                address,
                {endpoint: build_request_head(address, access, endpoint) for endpoint in Endpoint},
                tls if address.tls else None,
                SecretMask(access, address),
            )
            for address in addresses
        ]
        self._connect_timeout_s = connect_timeout_s
        self._io: ConnectionContext | None = None
        self._active_exchanges: set[Exchange] = set()

    def now_ns(self) -> int:
        """The clock of every ``*_ns`` in a sample: ``time.perf_counter_ns``."""
        return time.perf_counter_ns()

    async def connect(self, connections: int) -> None:
        """Open that many connections, spread over the servers; one that fails is opened again by the first ``send``."""
        gate = asyncio.Semaphore(_MAX_CONCURRENT_DIALS)

        async def open_one(target: _Target) -> None:
            async with gate:
                try:
                    target.idle.append(await self._open(target, self._connect_timeout_s))
                except OSError:
                    return

        await asyncio.gather(*(open_one(self._targets[n % len(self._targets)]) for n in range(connections)))

    async def send(self, request: Request, record: Callable[[Sample], None]) -> None:
        """Send ``request`` and call ``record`` once with its sample, also when cancelled."""
        target = self._targets[request.target]
        exchange = Exchange(request, target.address.url, time.perf_counter_ns())
        self._active_exchanges.add(exchange)
        try:
            await self._run_exchange(target, exchange)
        except Exception as error:
            exchange.fail(Outcome.CLIENT_ERROR, describe_client_error(error))
        except BaseException:  # cancelled or interrupted
            exchange.fail(Outcome.CANCELLED, "the load was stopped")
            raise
        finally:
            self._active_exchanges.discard(exchange)
            record(exchange.build_sample(target.mask.apply))

    def get_stream_progress(self) -> list[StreamProgress]:
        """Return the progress of each request in flight; may be called from any thread."""
        return [exchange.get_stream_progress() for exchange in list(self._active_exchanges)]

    async def aclose(self) -> None:
        """Close every connection; requests in flight end as cut off."""
        for target in self._targets:
            for connection in [*target.idle, *target.busy]:
                connection.abandon()
            target.idle.clear()
        if self._io is not None:
            self._io.close()
            self._io = None

    async def _open(self, target: _Target, timeout_s: float) -> Connection:
        if self._io is None:
            self._io = ConnectionContext()
        with anyio.fail_after(timeout_s):
            return await target.dial(self._io)

    async def _run_exchange(self, target: _Target, exchange: Exchange) -> None:
        request = exchange.request
        data = _build_request(target.heads[request.endpoint], request)
        if self._io is not None:
            self._io.catch_up()  # many sends in a row must not delay the reading of the first responses
        connection = target.take_idle() if request.reuse_connection else None
        is_reused = connection is not None and connection.served > 0
        if connection is None:
            connection = await self._open_fresh(target, exchange)
        if connection is None:
            return
        await _run_attempt(target, connection, exchange, data)
        if is_reused and _was_closed_while_idle(connection, exchange):
            connection = await self._open_fresh(target, exchange)
            if connection is not None:
                exchange.restart()
                await _run_attempt(target, connection, exchange, data)

    async def _open_fresh(self, target: _Target, exchange: Exchange) -> Connection | None:
        timeouts = exchange.request.timeouts
        began_ns = time.perf_counter_ns()
        try:
            connection = await self._open(target, timeouts.connect_s)
        except TimeoutError:
            exchange.fail(Outcome.CONNECT_TIMEOUT, format_timeout(Outcome.CONNECT_TIMEOUT, timeouts))
            return None
        except OSError as error:
            outcome = Outcome.CLIENT_ERROR if error.errno in _CLIENT_ERRNOS else Outcome.REFUSED
            exchange.fail(outcome, _describe_refusal(error))
            return None
        exchange.connect_ns = time.perf_counter_ns() - began_ns
        return connection


def _build_request(head: bytes, request: Request) -> bytes:
    return b"%sX-Request-Id: %s\r\n%sContent-Length: %d\r\n\r\n%s" % (
        head,
        request.request_id.encode("ascii", "replace"),
        b"" if request.reuse_connection else b"Connection: close\r\n",
        len(request.body),
        request.body,
    )


async def _run_attempt(target: _Target, connection: Connection, exchange: Exchange, data: bytes) -> None:
    response = exchange.response
    target.busy.add(connection)
    over = connection.start(response, data)
    timer = DeadlineTimer(connection, response, exchange.request.timeouts)
    try:
        await over
    except BaseException:
        connection.close()
        raise
    finally:
        timer.stop()
        target.busy.discard(connection)
    if not exchange.request.reuse_connection:
        connection.close()
    elif not connection.is_closed:
        target.idle.append(connection)


def _was_closed_while_idle(connection: Connection, exchange: Exchange) -> bool:
    """Return whether the server had closed the connection before the request reached it.

    Such a server answers within a round trip. One that breaks the connection later had the request, and sending it
    again would hide a failure.
    """
    lost = exchange.response
    within_ns = 2 * connection.round_trip_ns + STALE_GRACE_NS
    return lost.is_lost_unanswered and lost.body.done_ns - lost.sent_ns <= within_ns


_CLIENT_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL})
"""Why this machine cannot open a connection; the server was not asked."""


def _describe_refusal(error: OSError) -> str:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many open files: raise the limit (ulimit -n) or lower the concurrency"
    return sanitize(describe_connection_error(error), 250)
