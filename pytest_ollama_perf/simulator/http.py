"""HTTP/1.1 on asyncio transports: one request at a time. A client that disconnects cancels the handler."""

from __future__ import annotations

import asyncio
import math
import socket
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import cast

import httptools

from pytest_ollama_perf.simulator.faults import Fault, FaultKind
from pytest_ollama_perf.simulator.job import ResponseSink

JSON_TYPE = "application/json; charset=utf-8"
_MAX_UNCHUNKED_BYTES = 2048
"""Go sends longer responses in chunks, because it does not buffer them to compute their length."""

_MAX_BODY_BYTES = 64 * 1024 * 1024


class IncomingRequest:
    """One HTTP request; ``read_ns`` is when its last byte was read (``time.perf_counter_ns``)."""

    def __init__(self) -> None:
        self.method = ""
        self.target = b""
        self.headers: dict[str, str] = {}
        self.body = b""
        self.keep_alive = True
        self.chunked = True
        self.read_ns = 0

    @property
    def path(self) -> str:
        """The path without the query."""
        return self.target.split(b"?", 1)[0].decode("latin-1")


RequestHandler = Callable[[IncomingRequest, "OutgoingResponse"], Awaitable[None]]


class OutgoingResponse:
    """The response to one request, sent whole or in chunks. Nothing is sent before the first call."""

    def __init__(self, transport: asyncio.Transport, keep_alive: bool, chunked: bool = True) -> None:
        self._transport = transport
        self._keep_alive = keep_alive
        self._chunked = chunked
        self.started = False
        self.ended = False

    def send_whole(self, status: int, content_type: str, body: bytes) -> None:
        """Send a complete response."""
        if len(body) > _MAX_UNCHUNKED_BYTES:
            self.start(status, content_type)
            self.send_chunk(body)
            self.end()
            return
        self.started = self.ended = True
        self._transport.write(self._format_head(status, content_type, f"Content-Length: {len(body)}\r\n") + body)

    def start(self, status: int, content_type: str) -> None:
        """Send the header of a response in chunks."""
        self.started = True
        framing = "Transfer-Encoding: chunked\r\n" if self._chunked else ""
        self._transport.write(self._format_head(status, content_type, framing))

    def send_chunk(self, data: bytes) -> None:
        """Send one chunk."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end(self) -> None:
        """End a response in chunks."""
        self.ended = True
        if self._chunked:
            self._transport.write(b"0\r\n\r\n")

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are, without any framing."""
        self.started = True
        self._transport.write(data)

    def reset(self) -> None:
        """Reset the connection: the client receives a TCP RST and nothing that was not sent yet."""
        self.ended = True
        reset_connection(self._transport)

    def drop(self) -> None:
        """Close the connection after what was written."""
        self.ended = True
        self._transport.close()

    def _format_head(self, status: int, content_type: str, framing: str) -> bytes:
        kind = f"Content-Type: {content_type}\r\n" if content_type else ""
        close = "" if self._keep_alive else "Connection: close\r\n"
        phrase = HTTPStatus(status).phrase
        date = _format_date(int(time.time()))
        return f"HTTP/1.1 {status} {phrase}\r\n{kind}{close}Date: {date}\r\n{framing}\r\n".encode()


def reset_connection(transport: asyncio.Transport) -> None:
    """Close the connection with a TCP RST, where the transport has a socket."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


_last_date = (0, "")


def _format_date(second: int) -> str:
    global _last_date
    if _last_date[0] != second:
        _last_date = (second, formatdate(second, usegmt=True))
    return _last_date[1]


class HttpServerConnection(asyncio.Protocol):
    """One connection; pipelined requests are answered in order."""

    def __init__(self, handler: RequestHandler, connections: set[HttpServerConnection]) -> None:
        self._handler = handler
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._request = IncomingRequest()
        self._parts: list[bytes] = []
        self._size = 0
        self._waiting: deque[IncomingRequest] = deque()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what the client no longer waits for."""
        self._connections.discard(self)
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    def eof_received(self) -> bool:
        """Treat a client that closes its sending side as disconnected."""
        return False

    def reset(self) -> None:
        """Reset the connection; its handler is cancelled when the loop notices."""
        reset_connection(self._transport)

    async def close(self) -> None:
        """Close the connection and wait until its handler has ended."""
        self._transport.abort()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def data_received(self, data: bytes) -> None:
        """Parse the received bytes; an invalid request is answered with status 400."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise
        except httptools.HttpParserError:
            self._transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n")
            self._transport.write(b"Connection: close\r\n\r\n400 Bad Request")
            self._transport.close()

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._request = IncomingRequest()
        self._parts, self._size = [], 0

    def on_url(self, url: bytes) -> None:
        """Add a part of the target."""
        self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header."""
        self._request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Answer ``Expect: 100-continue``."""
        if self._request.headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Add a part of the body, up to the maximum size."""
        self._size += len(body)
        if self._size > _MAX_BODY_BYTES:
            self._transport.abort()
            return
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """Queue the complete request."""
        request = self._request
        request.method = self._parser.get_method().decode("latin-1")
        # HTTP/1.0, which a proxy may use, has no chunks: the end of the connection is the end of the response.
        request.chunked = self._parser.get_http_version() != "1.0"
        request.keep_alive = self._parser.should_keep_alive() and request.chunked
        request.body = b"".join(self._parts)
        request.read_ns = time.perf_counter_ns()
        self._waiting.append(request)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._serve())

    async def _serve(self) -> None:
        while self._waiting:
            request = self._waiting.popleft()
            await self._handler(request, OutgoingResponse(self._transport, request.keep_alive, request.chunked))
            if not request.keep_alive:
                self._transport.close()
        self._task = None


class DelayingSink:
    """Collects pieces until ``flush``. ``held_until_ns`` is when the end of the response may leave; 0 is at once."""

    def __init__(self, sink: ResponseSink) -> None:
        self._sink = sink
        self._pieces: list[tuple[str, bool]] = []
        self.held_until_ns = 0

    def write_text(self, text: str, thinking: bool, at_ns: int) -> None:
        """Keep a piece of text until it is due."""
        self._pieces.append((text, thinking))
        if self.is_due(at_ns):
            self.flush(at_ns)

    def write_garbage(self, at_ns: int) -> None:
        """Flush, then pass garbage on."""
        self.flush(at_ns)
        self._sink.write_garbage(at_ns)

    def is_due(self, at_ns: int) -> bool:
        """Return whether what was collected may leave now."""
        raise NotImplementedError

    def flush(self, at_ns: int) -> None:
        """Release everything that was collected."""
        for text, thinking in self._pieces:
            self._sink.write_text(text, thinking, at_ns)
        self._pieces.clear()


class BufferingSink(DelayingSink):
    """Releases pieces at a fixed period, as a buffering proxy does."""

    def __init__(self, sink: ResponseSink, fault: Fault, start_ns: int) -> None:
        super().__init__(sink)
        self._period_ns = max(1, round(fault.seconds * 1e9))
        self._due_ns = start_ns + self._period_ns

    def is_due(self, at_ns: int) -> bool:
        """Return whether the period has ended."""
        return at_ns >= self._due_ns

    def flush(self, at_ns: int) -> None:
        """Pass everything on and begin the next period."""
        super().flush(at_ns)
        self._due_ns += self._period_ns * max(1, math.ceil((at_ns - self._due_ns) / self._period_ns))


class BurstingSink(DelayingSink):
    """Releases pieces in bursts of one fewer than ``fault.tokens``, that many, and one more, in turn."""

    def __init__(self, sink: ResponseSink, fault: Fault, start_ns: int) -> None:
        super().__init__(sink)
        self._tokens = max(1, fault.tokens)
        self._bursts = 0

    def is_due(self, at_ns: int) -> bool:
        """Return whether the burst is complete."""
        due = len(self._pieces) >= max(1, self._tokens - 1 + self._bursts % 3)
        self._bursts += due
        return due


class HoldingSink(DelayingSink):
    """Holds the beginning of a response back until some time after its first piece, then passes everything on."""

    def __init__(self, sink: ResponseSink, fault: Fault, start_ns: int) -> None:
        super().__init__(sink)
        self._hold_ns = round(fault.seconds * 1e9)

    def is_due(self, at_ns: int) -> bool:
        """Return whether the hold has ended."""
        self.held_until_ns = self.held_until_ns or at_ns + self._hold_ns
        return at_ns >= self.held_until_ns


_DELAYING_SINKS: Mapping[FaultKind, type[BufferingSink | BurstingSink | HoldingSink]] = {
    FaultKind.BUFFER: BufferingSink,
    FaultKind.BURST: BurstingSink,
    FaultKind.HOLD: HoldingSink,
}


def wrap_sink(sink: ResponseSink, faults: Mapping[FaultKind, Fault], start_ns: int) -> ResponseSink:
    """Return ``sink`` behind the delaying sink that the first of ``faults`` asks for, or ``sink`` itself."""
    for kind, delaying in _DELAYING_SINKS.items():
        if kind in faults:
            return delaying(sink, faults[kind], start_ns)
    return sink
