"""The measured path: requests over connections of our own, under asyncio (and uvloop where it runs the loop)."""

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

from pytest_ollama_perf.client.address import Access, Address
from pytest_ollama_perf.client.clock import ReceiveClock
from pytest_ollama_perf.client.response import Exchange
from pytest_ollama_perf.client.transport import (
    ClientConnection,
    ConnectionContext,
    SocketAddress,
    describe_connection_error,
    make_poller,
    open_connection,
)
from pytest_ollama_perf.core.sample import Outcome, Sample
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.workload import Endpoint, Timeouts
from pytest_ollama_perf.loadgen.backend import Request, StreamProgress

_SECOND_NS = 1_000_000_000
_MAX_CONCURRENT_DIALS = 64

TIMEOUT_MESSAGES = {
    Outcome.FIRST_TOKEN_TIMEOUT: "no first token within {first_token_s:g} s",
    Outcome.IDLE_TIMEOUT: "nothing more for {idle_s:g} s",
    Outcome.TOTAL_TIMEOUT: "not done within {total_s:g} s",
    Outcome.CONNECT_TIMEOUT: "no connection within {connect_s:g} s",
}


def _format_timeout(outcome: Outcome, timeouts: Timeouts) -> str:
    return TIMEOUT_MESSAGES[outcome].format(
        first_token_s=timeouts.first_token_s,
        idle_s=timeouts.idle_s,
        total_s=timeouts.total_s,
        connect_s=timeouts.connect_s,
    )


def build_request_head(address: Address, access: Access, endpoint: Endpoint) -> bytes:
    """Return the request line and the headers that all requests to ``endpoint`` share, made by httpx."""
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


@dataclass
class _Target:
    """One server: how to reach it, and the connections that stand idle."""

    address: Address
    heads: dict[Endpoint, bytes]
    tls: ssl.SSLContext | None
    idle: list[ClientConnection] = field(default_factory=list)
    busy: set[ClientConnection] = field(default_factory=set)
    socket_addresses: list[SocketAddress] = field(default_factory=list)

    async def dial(self, io: ConnectionContext) -> ClientConnection:
        """Open a connection, trying every address of the host.

        Raises:
            OSError: none answers.
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

    def take_idle(self) -> ClientConnection | None:
        """Return the connection used last, so that the others may rest; ``None`` when none stands."""
        while self.idle:
            connection = self.idle.pop()
            if connection.is_usable:
                return connection
        return None


class HttpBackend:
    """Sends requests to real servers and makes a sample of each; ``targets`` are what ``Request.target`` counts.

    Args:
        addresses: the servers, at least one.
        access: credentials, headers and trust, the same for all of them.
        connect_timeout_s: how long opening connections before the clock may take, each.

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
            )
            for address in addresses
        ]
        self._connect_timeout_s = connect_timeout_s
        self._io: ConnectionContext | None = None
        self._active_exchanges: set[Exchange] = set()
        self.connected = 0
        """Connections opened so far, those before the clock included."""

    def now_ns(self) -> int:
        """The clock of every ``*_ns`` in a sample: ``time.perf_counter_ns``."""
        return time.perf_counter_ns()

    async def connect(self, connections: int) -> None:
        """Open that many connections, spread over the targets; one that fails is opened again by the first ``send``."""
        gate = asyncio.Semaphore(_MAX_CONCURRENT_DIALS)

        async def open_one(target: _Target) -> None:
            async with gate:
                try:
                    target.idle.append(await self._open_counted(target, self._connect_timeout_s))
                except OSError:
                    return

        await asyncio.gather(*(open_one(self._targets[n % len(self._targets)]) for n in range(connections)))

    async def send(self, request: Request, record: Callable[[Sample], None]) -> None:
        """Send ``request`` and call ``record`` once with its sample, also when cancelled."""
        target = self._targets[request.target]
        exchange = Exchange(request, target.address.display, time.perf_counter_ns())
        self._active_exchanges.add(exchange)
        try:
            await self._run_exchange(target, exchange)
        except BaseException:  # a sample is owed whatever happens, Ctrl-C included
            exchange.fail(Outcome.CANCELLED, "the load was stopped", time.perf_counter_ns())
            raise
        finally:
            self._active_exchanges.discard(exchange)
            record(exchange.build_sample())

    def get_stream_progress(self) -> list[StreamProgress]:
        """Return how far each request has come that is not done; may be asked from any thread."""
        return [exchange.get_stream_progress() for exchange in list(self._active_exchanges)]

    async def aclose(self) -> None:
        """Close every connection; requests under way end as cut off."""
        for target in self._targets:
            for connection in [*target.idle, *target.busy]:
                connection.abandon()
            target.idle.clear()
        if self._io is not None:
            self._io.poller.close()
            self._io = None

    async def _open_counted(self, target: _Target, timeout_s: float) -> ClientConnection:
        if self._io is None:
            self._io = ConnectionContext(make_poller(), ReceiveClock())
        with anyio.fail_after(timeout_s):
            connection = await target.dial(self._io)
        self.connected += 1
        return connection

    async def _run_exchange(self, target: _Target, exchange: Exchange) -> None:
        request = exchange.request
        head = target.heads[request.endpoint]
        data = b"%sX-Request-Id: %s\r\n%sContent-Length: %d\r\n\r\n%s" % (
            head,
            request.request_id.encode("ascii", "replace"),
            b"" if request.reuse_connection else b"Connection: close\r\n",
            len(request.body),
            request.body,
        )
        if self._io is not None:
            self._io.poller.catch_up()  # a wave of sends must not keep the first answers waiting
        connection = target.take_idle() if request.reuse_connection else None
        kept_alive = connection is not None and connection.served > 0
        if connection is None:
            connection = await self._open_fresh(target, exchange)
        if connection is None:
            return
        await self._run_on_connection(target, connection, exchange, data, first=True)
        if kept_alive and exchange.is_connection_stale:
            connection = await self._open_fresh(target, exchange)
            if connection is not None:
                await self._run_on_connection(target, connection, exchange, data, first=False)

    async def _open_fresh(self, target: _Target, exchange: Exchange) -> ClientConnection | None:
        timeouts = exchange.request.timeouts
        began_ns = time.perf_counter_ns()
        try:
            connection = await self._open_counted(target, timeouts.connect_s)
        except TimeoutError:
            exchange.fail(
                Outcome.CONNECT_TIMEOUT, _format_timeout(Outcome.CONNECT_TIMEOUT, timeouts), time.perf_counter_ns()
            )
            return None
        except OSError as error:
            exchange.fail(Outcome.REFUSED, _describe_refusal(error), time.perf_counter_ns())
            return None
        exchange.connect_ns = time.perf_counter_ns() - began_ns
        return connection

    async def _run_on_connection(
        self, target: _Target, connection: ClientConnection, exchange: Exchange, data: bytes, *, first: bool
    ) -> None:
        target.busy.add(connection)
        over = connection.start(exchange, data, first)
        watch = _DeadlineTimer(connection, exchange)
        try:
            await over
        except asyncio.CancelledError:
            connection.close()
            raise
        finally:
            watch.stop()
            target.busy.discard(connection)
        if not exchange.request.reuse_connection:
            connection.close()
        elif not connection.is_closed:
            target.idle.append(connection)


class _DeadlineTimer:
    """Ends an exchange that missed a deadline, with one timer that looks at most once per idle limit."""

    def __init__(self, connection: ClientConnection, exchange: Exchange) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._exchange = exchange
        self._start_timer(time.perf_counter_ns())

    def stop(self) -> None:
        self._timer.cancel()

    def _start_timer(self, now_ns: int) -> None:
        due_ns, _ = self._exchange.compute_deadline()
        wait_s = min((due_ns - now_ns) / _SECOND_NS, self._exchange.request.timeouts.idle_s)
        self._timer = self._loop.call_later(max(0.001, wait_s), self._check_deadline)

    def _check_deadline(self) -> None:
        self._connection.poll()
        if self._exchange.finished:
            return
        now_ns = time.perf_counter_ns()
        due_ns, outcome = self._exchange.compute_deadline()
        if now_ns < due_ns:
            self._start_timer(now_ns)
            return
        self._exchange.fail(outcome, _format_timeout(outcome, self._exchange.request.timeouts), now_ns)
        self._connection.close()
        self._connection.finish()


def _describe_refusal(error: OSError) -> str:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many open files: raise the limit (ulimit -n) or lower the concurrency"
    return sanitize(describe_connection_error(error), 200)
