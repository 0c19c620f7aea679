"""One connection of the measured path: a non-blocking socket, read by ``recvmsg`` with the kernel's receive stamps."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns, sleep
from typing import Any, Protocol

from pytest_ollama_perf.client import clock
from pytest_ollama_perf.client.clock import ANCILLARY_BYTES
from pytest_ollama_perf.client.response import Exchange

_MAX_EVENTS = 256
_CATCH_UP_AFTER_NS = 1_000_000
_BUSY_INTERVAL_NS = 100_000
_BATCH_PAUSE_S = 150e-6
_MIN_BATCHED_SOCKETS = 64
"""With fewer sockets two chunks of one stream could come within a nap and take the same stamp."""

ReadCallback = Callable[[], bool]
"""Reads once; returns whether there may be more to read."""


class Poller(Protocol):
    """Calls back while a descriptor is readable."""

    def watch(self, fd: int, callback: ReadCallback) -> None:
        """Call ``callback`` whenever there is more to read from ``fd``, and again while it says so."""

    def forget(self, fd: int) -> None:
        """Stop that; must come before ``fd`` is closed."""

    def catch_up(self) -> None:
        """Call back at once for what has become readable, where the loop has been kept from it for long."""

    def close(self) -> None:
        """Watch nothing any more."""


class LoopPoller:
    """The event loop's own watching, for platforms without epoll."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._watched: set[int] = set()

    def watch(self, fd: int, callback: ReadCallback) -> None:
        self._watched.add(fd)
        self._loop.add_reader(fd, callback)

    def forget(self, fd: int) -> None:
        self._watched.discard(fd)
        self._loop.remove_reader(fd)

    def catch_up(self) -> None:
        """Nothing: the loop keeps its own order."""

    def close(self) -> None:
        for fd in list(self._watched):
            self.forget(fd)


if sys.platform == "linux":
    _EDGE_TRIGGERED = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET

    class EpollPoller:
        """An epoll that the loop watches; closed with the backend that uses it."""

        def __init__(self) -> None:
            self._loop = asyncio.get_running_loop()
            self._epoll = select.epoll()
            self._looked_ns = 0
            self._callbacks: dict[int, ReadCallback] = {}
            self._loop.add_reader(self._epoll.fileno(), self._on_ready)

        def watch(self, fd: int, callback: ReadCallback) -> None:
            self._callbacks[fd] = callback
            self._epoll.register(fd, _EDGE_TRIGGERED)

        def forget(self, fd: int) -> None:
            if self._callbacks.pop(fd, None) is not None:
                self._epoll.unregister(fd)

        def catch_up(self) -> None:
            if perf_counter_ns() - self._looked_ns > _CATCH_UP_AFTER_NS:
                self._read_ready()
                self._looked_ns = perf_counter_ns()

        def close(self) -> None:
            if not self._epoll.closed:
                self._loop.remove_reader(self._epoll.fileno())
                self._callbacks.clear()
                self._epoll.close()

        def _on_ready(self) -> None:
            if len(self._callbacks) >= _MIN_BATCHED_SOCKETS and perf_counter_ns() - self._looked_ns < _BUSY_INTERVAL_NS:
                sleep(_BATCH_PAUSE_S)
            self._read_ready()
            self._looked_ns = perf_counter_ns()

        def _read_ready(self) -> None:
            callbacks = self._callbacks
            for fd, event in self._epoll.poll(0, _MAX_EVENTS):
                callback = callbacks.get(fd)  # an earlier callback may have closed this one
                if callback is None:
                    continue
                more = callback()
                if (more or event != select.EPOLLIN) and fd in callbacks:
                    self._epoll.modify(
                        fd, _EDGE_TRIGGERED
                    )  # reports again at once where there is more, as after the last bytes


def make_poller() -> Poller:
    """Return the cheapest poller of this platform, for the running loop."""
    return EpollPoller() if sys.platform == "linux" else LoopPoller()


READ_BYTES = 65_536
_WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

SocketAddress = tuple[int, int, int, str, Any]
"""One answer of ``getaddrinfo``."""


async def open_connection(
    found: SocketAddress, io: ConnectionContext, tls: ssl.SSLContext | None, server_name: str
) -> ClientConnection:
    """Connect to ``found`` and shake hands.

    Raises:
        OSError: the connection could not be made.
    """
    loop = asyncio.get_running_loop()
    family, kind, protocol, _, place = found
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(sock, place)
        if tls is not None:
            sock = tls.wrap_socket(sock, server_hostname=server_name, do_handshake_on_connect=False)
            await _do_handshake(sock)
        return ClientConnection(sock, io)
    except BaseException:
        sock.close()
        raise


async def _do_handshake(sock: ssl.SSLSocket) -> None:
    loop = asyncio.get_running_loop()
    while True:
        ready = loop.create_future()
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            loop.add_reader(sock.fileno(), _set_ready, ready)
            try:
                await ready
            finally:
                loop.remove_reader(sock.fileno())
        except ssl.SSLWantWriteError:
            loop.add_writer(sock.fileno(), _set_ready, ready)
            try:
                await ready
            finally:
                loop.remove_writer(sock.fileno())
        else:
            return


def _set_ready(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


@dataclass(frozen=True)
class ConnectionContext:
    """What all connections of one backend share."""

    poller: Poller
    receive_clock: clock.ReceiveClock


class ClientConnection:
    """Carries one exchange at a time; it is watched all its life, so that a close while idle is noticed at once."""

    __slots__ = (
        "_exchange",
        "_fd",
        "_loop",
        "_over",
        "_poller",
        "_recvmsg",
        "_sock",
        "_stamp",
        "_unsent",
        "is_closed",
        "served",
    )

    def __init__(self, sock: socket.socket, io: ConnectionContext) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()
        self._poller = io.poller
        self._stamp = io.receive_clock.to_arrival_ns
        self._exchange: Exchange | None = None
        self._over: asyncio.Future[None] | None = None
        self._unsent = memoryview(b"")
        self.served = 0
        self.is_closed = False
        if isinstance(sock, ssl.SSLSocket):
            self._poller.watch(self._fd, self._read_tls)
        else:
            stamped = hasattr(sock, "recvmsg") and clock.enable_receive_stamps(sock)
            if stamped:
                self._recvmsg = sock.recvmsg
            self._poller.watch(self._fd, self._read_stamped if stamped else self._read_plain)

    @property
    def is_usable(self) -> bool:
        """Whether the server has not closed it, looked at just now."""
        if self.is_closed or isinstance(self._sock, ssl.SSLSocket):
            return not self.is_closed
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except _WOULD_BLOCK:
            return True
        except OSError:
            pass
        self.close()
        return False

    def start(self, exchange: Exchange, data: bytes, fresh: bool) -> asyncio.Future[None]:
        """Send ``data``, stamping the exchange right before; the future is done when the exchange is finished."""
        self._exchange = exchange
        self._over = self._loop.create_future()
        self.served += 1
        now_ns = perf_counter_ns()
        if fresh:
            exchange.sent_ns = exchange.last_ns = now_ns
        else:
            exchange.restart(now_ns)
        try:
            sent = self._sock.send(data)
        except _WOULD_BLOCK:
            sent = 0
        except OSError:
            return self._over  # reading tells what happened, and what the server said before
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]
            self._loop.add_writer(self._fd, self._write)
        return self._over

    def poll(self) -> None:
        """Read what has come and was not looked at yet."""
        if not self.is_closed:
            if isinstance(self._sock, ssl.SSLSocket):
                self._read_tls()
            else:
                self._read_plain()

    def finish(self) -> None:
        """Let go of an exchange that is finished; the connection stays open where it may serve again."""
        exchange, over = self._exchange, self._over
        self._exchange = self._over = None
        if exchange is None or not exchange.reusable or self._unsent:
            self.close()
        if over is not None and not over.done():
            over.set_result(None)

    def close(self) -> None:
        """Close the socket; what was under way is over."""
        if self.is_closed:
            return
        self.is_closed = True
        self._poller.forget(self._fd)
        self._stop_writing()
        self._sock.close()

    def _write(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except _WOULD_BLOCK:
            return
        except OSError:
            self._stop_writing()
            return
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._stop_writing()

    def _stop_writing(self) -> None:
        self._loop.remove_writer(self._fd)
        self._unsent = memoryview(b"")

    def _read_stamped(self) -> bool:
        recvmsg = self._recvmsg  # a bound method in a slot is called twice as fast by way of a name
        try:
            data, ancillary, _, _ = recvmsg(READ_BYTES, ANCILLARY_BYTES)
        except _WOULD_BLOCK:
            return False
        except OSError as error:
            return self._on_lost(error)
        now_ns = perf_counter_ns()
        exchange = self._exchange
        if exchange is None or not data:
            return self._on_lost(None)
        stamp = self._stamp
        exchange.receive(data, stamp(ancillary, now_ns), now_ns)
        if exchange.finished:
            self.finish()
        return len(data) == READ_BYTES

    def _read_plain(self) -> bool:
        try:
            data = self._sock.recv(READ_BYTES)
        except _WOULD_BLOCK:
            return False
        except OSError as error:
            return self._on_lost(error)
        now_ns = perf_counter_ns()
        exchange = self._exchange
        if exchange is None or not data:
            return self._on_lost(None)
        exchange.receive(data, now_ns, now_ns)
        if exchange.finished:
            self.finish()
        return True

    def _read_tls(self) -> bool:
        """Read all that came: the rest of a record waits inside TLS, where no event tells of it."""
        while not self.is_closed and self._read_plain():
            pass
        return False

    def _on_lost(self, error: OSError | None) -> bool:
        self.close()
        if self._exchange is not None:
            why = "" if error is None else describe_connection_error(error)
            self._exchange.on_connection_closed(perf_counter_ns(), why)
        self.finish()
        return False

    def abandon(self) -> None:
        """Close it under an exchange, which ends as cut off."""
        if self._exchange is not None:
            self._exchange.on_connection_closed(perf_counter_ns(), "this client closed the connection")
        self.close()
        self.finish()


def describe_connection_error(error: OSError) -> str:
    """Return what went wrong with a connection, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: certificate not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    if isinstance(error, ConnectionResetError):
        return "the connection was reset"
    if isinstance(error, socket.gaierror):
        return f"host name not found ({error.strerror})"
    return os.strerror(error.errno) if error.errno else str(error)
