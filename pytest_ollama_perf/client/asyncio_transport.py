"""A connection over asyncio's own transports, for loops that cannot watch sockets: the default loop of Windows.

Arrival times are those of the loop's callback: there are no receive stamps of the kernel.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from time import perf_counter_ns
from typing import cast

from pytest_ollama_perf.client.transport import Connection, SocketAddress, fail_by_client


async def open_asyncio_connection(found: SocketAddress, tls: ssl.SSLContext | None, server_name: str) -> Connection:
    """Connect to ``found``; TLS handshake included.

    Raises:
        OSError: the connection could not be made.
    """
    loop = asyncio.get_running_loop()
    family, kind, protocol, _, place = found
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began_ns = perf_counter_ns()
        await loop.sock_connect(sock, place)
        connection = AsyncioConnection(perf_counter_ns() - began_ns)
        hostname = server_name if tls is not None else None
        await loop.create_connection(lambda: _Receiver(connection), sock=sock, ssl=tls, server_hostname=hostname)
    except BaseException:
        sock.close()
        raise
    return connection


class AsyncioConnection(Connection):
    """A connection whose bytes arrive by callbacks of an asyncio protocol."""

    __slots__ = ("_transport",)

    _transport: asyncio.Transport

    def attach(self, transport: asyncio.Transport) -> None:
        """Take the transport; comes before everything else."""
        self._transport = transport

    @property
    def is_usable(self) -> bool:
        """Whether another request can be sent."""
        return not self.is_closed and not self._transport.is_closing()

    def _send(self, data: bytes) -> None:
        self._transport.write(data)

    @property
    def _is_sending(self) -> bool:
        return self._transport.get_write_buffer_size() > 0

    def poll(self) -> None:
        """Do nothing: the loop delivers what has arrived."""

    def close(self) -> None:
        """Close the connection at once."""
        self.is_closed = True
        self._transport.abort()

    def receive(self, data: bytes) -> None:
        """Take bytes from the protocol."""
        response, now_ns = self._response, perf_counter_ns()
        if response is None:
            self.close()
            return
        try:
            response.receive(data, now_ns, now_ns)
        except Exception as error:
            fail_by_client(response, error)
        if response.finished:
            self.finish()

    def lose(self, error: Exception | None) -> None:
        """Take the end of the connection from the protocol."""
        self._on_lost(error)


class _Receiver(asyncio.Protocol):
    """Passes the loop's callbacks on to a connection."""

    def __init__(self, connection: AsyncioConnection) -> None:
        self._connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection.attach(cast("asyncio.Transport", transport))

    def data_received(self, data: bytes) -> None:
        self._connection.receive(data)

    def eof_received(self) -> None:
        self._connection.lose(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._connection.lose(error)
