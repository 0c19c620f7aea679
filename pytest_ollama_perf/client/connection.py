"""One connection of the measured path: a non-blocking socket, read by ``recvmsg`` with the kernel's receive stamps."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

from pytest_ollama_perf.client import clock
from pytest_ollama_perf.client.clock import ANCILLARY_BYTES
from pytest_ollama_perf.client.exchange import Exchange
from pytest_ollama_perf.client.poller import Poller

READ_BYTES = 65_536
_WAIT = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

SocketAddress = tuple[int, int, int, str, Any]
"""One answer of ``getaddrinfo``."""


async def open_connection(
    found: SocketAddress, io: SocketIO, tls: ssl.SSLContext | None, server_name: str
) -> Connection:
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
            await _handshake(sock)
        return Connection(sock, io)
    except BaseException:
        sock.close()
        raise


async def _handshake(sock: ssl.SSLSocket) -> None:
    loop = asyncio.get_running_loop()
    while True:
        ready = loop.create_future()
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            loop.add_reader(sock.fileno(), _wake, ready)
            try:
                await ready
            finally:
                loop.remove_reader(sock.fileno())
        except ssl.SSLWantWriteError:
            loop.add_writer(sock.fileno(), _wake, ready)
            try:
                await ready
            finally:
                loop.remove_writer(sock.fileno())
        else:
            return


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


@dataclass(frozen=True)
class SocketIO:
    """What all connections of one backend share."""

    poller: Poller
    stamps: clock.ReceiveClock


class Connection:
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

    def __init__(self, sock: socket.socket, io: SocketIO) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()
        self._poller = io.poller
        self._stamp = io.stamps.stamp
        self._exchange: Exchange | None = None
        self._over: asyncio.Future[None] | None = None
        self._unsent = memoryview(b"")
        self.served = 0
        self.is_closed = False
        if isinstance(sock, ssl.SSLSocket):
            self._poller.watch(self._fd, self._read_tls)
        else:
            stamped = hasattr(sock, "recvmsg") and clock.enable(sock)
            if stamped:
                self._recvmsg = sock.recvmsg
            self._poller.watch(self._fd, self._read_stamped if stamped else self._read_plain)

    @property
    def usable(self) -> bool:
        """Whether the server has not closed it, looked at just now."""
        if self.is_closed or isinstance(self._sock, ssl.SSLSocket):
            return not self.is_closed
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except _WAIT:
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
        except _WAIT:
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
        except _WAIT:
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
        except _WAIT:
            return False
        except OSError as error:
            return self._lost(error)
        now_ns = perf_counter_ns()
        exchange = self._exchange
        if exchange is None or not data:
            return self._lost(None)
        stamp = self._stamp
        exchange.receive(data, stamp(ancillary, now_ns), now_ns)
        if exchange.finished:
            self.finish()
        return len(data) == READ_BYTES

    def _read_plain(self) -> bool:
        try:
            data = self._sock.recv(READ_BYTES)
        except _WAIT:
            return False
        except OSError as error:
            return self._lost(error)
        now_ns = perf_counter_ns()
        exchange = self._exchange
        if exchange is None or not data:
            return self._lost(None)
        exchange.receive(data, now_ns, now_ns)
        if exchange.finished:
            self.finish()
        return True

    def _read_tls(self) -> bool:
        """Read all that came: the rest of a record waits inside TLS, where no event tells of it."""
        while not self.is_closed and self._read_plain():
            pass
        return False

    def _lost(self, error: OSError | None) -> bool:
        self.close()
        if self._exchange is not None:
            why = "" if error is None else error_name(error)
            self._exchange.closed(perf_counter_ns(), why)
        self.finish()
        return False

    def abandon(self) -> None:
        """Close it under an exchange, which ends as cut off."""
        if self._exchange is not None:
            self._exchange.closed(perf_counter_ns(), "this client closed the connection")
        self.close()
        self.finish()


def error_name(error: OSError) -> str:
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
