"""One connection of the measured path: a non-blocking socket, read by ``recvmsg`` with the kernel's receive stamps."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from abc import ABC, abstractmethod
from time import perf_counter_ns
from typing import Any

from pytest_ollama_perf.client import polling
from pytest_ollama_perf.client.polling import ANCILLARY_BYTES, Poller, make_poller
from pytest_ollama_perf.client.response import Response
from pytest_ollama_perf.core.sample import Outcome
from pytest_ollama_perf.core.text import sanitize

READ_BYTES = 65_536
_WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

SocketAddress = tuple[int, int, int, str, Any]
"""One entry of what ``getaddrinfo`` returns."""


class ConnectionContext:
    """What all connections of one backend share. ``poller`` is ``None`` where the loop cannot watch sockets."""

    def __init__(self) -> None:
        self.poller: Poller | None = make_poller()
        self.receive_clock = polling.ReceiveClock()

    def catch_up(self) -> None:
        """Read everything that is readable, if the loop has not looked for a while."""
        if self.poller is not None:
            self.poller.catch_up()

    def close(self) -> None:
        """Stop watching sockets."""
        if self.poller is not None:
            self.poller.close()


class Connection(ABC):
    """Carries one response at a time. ``served`` counts its requests; ``round_trip_ns`` is what connecting took."""

    __slots__ = ("_loop", "_over", "_response", "is_closed", "round_trip_ns", "served")

    def __init__(self, round_trip_ns: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._response: Response | None = None
        self._over: asyncio.Future[None] | None = None
        self.is_closed = False
        self.round_trip_ns = round_trip_ns
        self.served = 0

    @property
    @abstractmethod
    def is_usable(self) -> bool:
        """Whether the server has not closed it, checked now."""

    def start(self, response: Response, data: bytes) -> asyncio.Future[None]:
        """Mark the time of sending and send ``data``; the future is done when the response is finished."""
        self._response = response
        self._over = self._loop.create_future()
        self.served += 1
        response.mark_sent(perf_counter_ns())
        self._send(data)
        return self._over

    @abstractmethod
    def _send(self, data: bytes) -> None:
        """Send ``data``. An error is not raised: reading shows what happened, and what the server sent before."""

    @abstractmethod
    def poll(self) -> None:
        """Read what has arrived and was not read yet, as far as the platform allows."""

    def finish(self) -> None:
        """Let go of a finished response; the connection stays open if it can carry another request."""
        response, over = self._response, self._over
        self._response = self._over = None
        if response is None or not response.reusable or self._is_sending:
            self.close()
        if over is not None and not over.done():
            over.set_result(None)

    @property
    @abstractmethod
    def _is_sending(self) -> bool:
        """Whether part of the request is not sent yet."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection. It may be closed already."""

    def abandon(self) -> None:
        """Close the connection during a response, which ends as cut off."""
        if self._response is not None:
            self._response.on_connection_closed(perf_counter_ns(), "this client closed the connection")
        self.close()
        self.finish()

    def _on_lost(self, error: Exception | None) -> bool:
        self.close()
        if self._response is not None:
            why = "" if error is None else describe_connection_error(error)
            self._response.on_connection_closed(perf_counter_ns(), why)
        self.finish()
        return False


async def open_socket_connection(
    found: SocketAddress, io: ConnectionContext, tls: ssl.SSLContext | None, server_name: str
) -> Connection:
    """Connect to ``found`` with a socket that ``io.poller`` watches; TLS handshake included.

    Raises:
        OSError: the connection could not be made.
    """
    assert io.poller is not None
    loop = asyncio.get_running_loop()
    family, kind, protocol, _, place = found
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began_ns = perf_counter_ns()
        await loop.sock_connect(sock, place)
        round_trip_ns = perf_counter_ns() - began_ns
        if tls is not None:
            sock = tls.wrap_socket(sock, server_hostname=server_name, do_handshake_on_connect=False)
            await _do_handshake(sock)
        return SocketConnection(sock, io.poller, io.receive_clock, round_trip_ns)
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


class SocketConnection(Connection):
    """A socket that is watched from its opening on, so that a close while idle is noticed immediately."""

    __slots__ = ("_fd", "_is_stamped", "_is_tls", "_poller", "_recvmsg", "_sock", "_stamp", "_unsent")

    def __init__(
        self, sock: socket.socket, poller: Poller, receive_clock: polling.ReceiveClock, round_trip_ns: int
    ) -> None:
        super().__init__(round_trip_ns)
        self._sock = sock
        self._fd = sock.fileno()
        self._poller = poller
        self._stamp = receive_clock.to_arrival_ns
        self._unsent = memoryview(b"")
        self._is_tls = isinstance(sock, ssl.SSLSocket)
        self._is_stamped = not self._is_tls and hasattr(sock, "recvmsg") and polling.enable_receive_stamps(sock)
        if self._is_stamped:
            self._recvmsg = sock.recvmsg
        read_once = self._read_stamped if self._is_stamped else self._read_plain
        self._poller.watch(self._fd, self._read_available if self._is_tls else read_once)

    @property
    def is_usable(self) -> bool:
        """Whether another request can be sent: open, and nothing unexpected received."""
        if self.is_closed or self._is_tls:
            return not self.is_closed
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except _WOULD_BLOCK:
            return True
        except OSError:
            pass
        self.close()
        return False

    def _send(self, data: bytes) -> None:
        try:
            sent = self._sock.send(data)
        except _WOULD_BLOCK:
            sent = 0
        except OSError:
            return
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]
            self._loop.add_writer(self._fd, self._send_rest)

    @property
    def _is_sending(self) -> bool:
        return bool(self._unsent)

    def poll(self) -> None:
        """Read everything that has arrived."""
        if self._is_stamped:
            while not self.is_closed and self._read_stamped():
                pass
        else:
            self._read_available()

    def close(self) -> None:
        """Close the socket; closing twice does nothing."""
        if self.is_closed:
            return
        self.is_closed = True
        self._poller.forget(self._fd)
        self._stop_sending()
        self._sock.close()

    def _send_rest(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except _WOULD_BLOCK:
            return
        except OSError:
            self._stop_sending()
            return
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._stop_sending()

    def _stop_sending(self) -> None:
        self._loop.remove_writer(self._fd)
        self._unsent = memoryview(b"")

    def _read_stamped(self) -> bool:
        recvmsg = self._recvmsg  # calling a bound method through a local name is twice as fast as through a slot
        try:
            data, ancillary, _, _ = recvmsg(READ_BYTES, ANCILLARY_BYTES)
        except _WOULD_BLOCK:
            return False
        except OSError as error:
            return self._on_lost(error)
        now_ns = perf_counter_ns()
        response = self._response
        if response is None or not data:
            return self._on_lost(None)
        stamp = self._stamp
        try:
            response.receive(data, stamp(ancillary, now_ns), now_ns)
        except Exception as error:
            fail_by_client(response, error)
        if response.finished:
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
        response = self._response
        if response is None or not data:
            return self._on_lost(None)
        try:
            response.receive(data, now_ns, now_ns)
        except Exception as error:
            fail_by_client(response, error)
        if response.finished:
            self.finish()
        return True

    def _read_available(self) -> bool:
        """Read until nothing is left: the rest of a TLS record waits inside TLS, where no event reports it."""
        while not self.is_closed and self._read_plain():
            pass
        return False


def fail_by_client(response: Response, error: BaseException) -> None:
    """End ``response`` because of an exception of this client, never of the server."""
    response.fail(Outcome.CLIENT_ERROR, describe_client_error(error), perf_counter_ns())


def describe_client_error(error: BaseException) -> str:
    """Return the error text of a request that failed by an exception of this client."""
    return sanitize(f"the client failed: {type(error).__name__}: {error}")


def describe_connection_error(error: Exception) -> str:
    """Return what went wrong with a connection, on one line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: certificate not trusted ({error.verify_message}); {TLS_TRUST_HINT}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}{find_tls_hint(error)}"
    if isinstance(error, ConnectionResetError):
        return "the connection was reset"
    if isinstance(error, socket.gaierror):
        return f"host name not found ({error.strerror})"
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error)


TLS_TRUST_HINT = "name its CA with --ollama-ca-file, or skip the check with --ollama-insecure"


def find_tls_hint(error: ssl.SSLError) -> str:
    """Return what to do about a failed handshake, after a semicolon; empty where nothing is known."""
    reasons = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
    if error.reason in reasons:
        return "; the server does not speak TLS: write http:// in its URL"
    if "CERTIFICATE" in (error.reason or "") or "UNKNOWN_CA" in (error.reason or ""):
        return f"; {TLS_TRUST_HINT}"
    return ""
