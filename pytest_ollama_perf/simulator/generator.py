"""A token generator in a separate process, which serves as the reference when a client is measured.

``python -m pytest_ollama_perf.simulator.generator`` reads ``GeneratorSettings`` as one line of JSON from standard
input, prints its URL, and ends when standard input is closed. It answers every request with a stream of one-token
chunks, as fast as the socket accepts them or at a fixed rate. ``prompt_eval_duration`` in the last object is the time
from reading the request to writing the first token, so that a client can compare its own time to first token with it.
"""

from __future__ import annotations

import heapq
import re
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec

from pytest_ollama_perf.core import ServerError


class GeneratorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A response has ``tokens`` tokens, ``gap_s`` seconds apart; 0 means as fast as possible. The first one comes after
    ``first_s`` seconds and up to one gap more, so that streams which start together are not synchronised."""

    tokens: int
    gap_s: float = 0.0
    first_s: float = 0.0


def _encode_chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


_OBJECT_START = b'{"model":"generator","created_at":"2026-01-01T00:00:00.000000000Z"'
_RESPONSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
_TOKEN_CHUNK = _encode_chunk(_OBJECT_START + b',"response":" word","done":false}\n')
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_MAX_SEND_BYTES = 262_144
_START_S = 20.0
_GOLDEN_RATIO = 0.618034
"""Multiples of it, modulo 1, fill 0..1 evenly (Weyl 1916)."""


def _encode_final_chunk(tokens: int, first_ns: int) -> bytes:
    counters = b'"done":true,"done_reason":"length","eval_count":%d,"prompt_eval_duration":%d' % (tokens, first_ns)
    return _encode_chunk(_OBJECT_START + b',"response":"",' + counters + b"}\n") + b"0\r\n\r\n"


@dataclass(eq=False)
class _GeneratorStream:
    sock: socket.socket
    request: bytes = b""
    read_ns: int = 0
    first_ns: int = 0
    sent: int = 0
    backlog: memoryview = field(default_factory=lambda: memoryview(b""))


class TokenGenerator:
    """Serves on a free port of 127.0.0.1 in the thread that calls ``serve``."""

    def __init__(self, pace: GeneratorSettings) -> None:
        self._pace = pace
        self._full_response = _RESPONSE_HEAD + _TOKEN_CHUNK * pace.tokens + _encode_final_chunk(pace.tokens, 0)
        self._due: list[tuple[int, int, _GeneratorStream]] = []
        self._sequence = 0
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def serve(self) -> None:
        """Answer requests until the process ends."""
        while True:
            wait = max(0.0, (self._due[0][0] - time.perf_counter_ns()) / 1e9) if self._due else None
            for key, events in self._selector.select(wait):
                self._handle_event(key.data, events)
            self._write_due()

    def _handle_event(self, stream: _GeneratorStream | None, events: int) -> None:
        try:
            if stream is None:
                self._accept()
            elif events & selectors.EVENT_WRITE:
                self._send_backlog(stream)
            else:
                self._read(stream)
        except OSError:
            if stream is not None:
                self._drop(stream)

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(sock, selectors.EVENT_READ, _GeneratorStream(sock))

    def _read(self, stream: _GeneratorStream) -> None:
        data = stream.sock.recv(65536)
        now = time.perf_counter_ns()
        if not data:
            self._drop(stream)
            return
        stream.request += data
        head, whole, body = stream.request.partition(b"\r\n\r\n")
        length = _CONTENT_LENGTH.search(head)
        if whole and len(body) >= (int(length[1]) if length else 0):
            stream.request = b""
            self._begin(stream, now)

    def _begin(self, stream: _GeneratorStream, now: int) -> None:
        stream.read_ns, stream.sent = now, 0
        if self._pace.gap_s:
            later = self._sequence * _GOLDEN_RATIO % 1.0
            self._schedule(stream, now + int((self._pace.first_s + later * self._pace.gap_s) * 1e9))
        else:
            stream.backlog = memoryview(self._full_response)
            self._selector.modify(stream.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, stream)

    def _schedule(self, stream: _GeneratorStream, at_ns: int) -> None:
        self._sequence += 1
        heapq.heappush(self._due, (at_ns, self._sequence, stream))

    def _write_due(self) -> None:
        while self._due and self._due[0][0] <= time.perf_counter_ns():
            at_ns, _, stream = heapq.heappop(self._due)
            try:
                more = self._write(stream)
            except OSError:
                self._drop(stream)
            else:
                if more:
                    self._schedule(stream, at_ns + int(self._pace.gap_s * 1e9))

    def _write(self, stream: _GeneratorStream) -> bool:
        """Write the next token or the end; return whether there is more to write."""
        stream.sent += 1
        if stream.sent == 1:
            stream.first_ns = time.perf_counter_ns() - stream.read_ns
            stream.sock.send(_RESPONSE_HEAD + _TOKEN_CHUNK)
        elif stream.sent <= self._pace.tokens:
            stream.sock.send(_TOKEN_CHUNK)
        else:
            stream.sock.send(_encode_final_chunk(self._pace.tokens, stream.first_ns))
        return stream.sent <= self._pace.tokens

    def _send_backlog(self, stream: _GeneratorStream) -> None:
        stream.backlog = stream.backlog[stream.sock.send(stream.backlog[:_MAX_SEND_BYTES]) :]
        if not stream.backlog:
            self._selector.modify(stream.sock, selectors.EVENT_READ, stream)

    def _drop(self, stream: _GeneratorStream) -> None:
        if stream.sock.fileno() >= 0:
            self._selector.unregister(stream.sock)
            stream.sock.close()


@contextmanager
def start_generator(pace: GeneratorSettings) -> Iterator[str]:
    """Run a generator while the block runs; yield its URL.

    Raises:
        ServerError: it did not start.
    """
    command = [sys.executable, "-m", "pytest_ollama_perf.simulator.generator"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        watchdog = threading.Timer(_START_S, child.kill)
        watchdog.start()
        try:
            url = _await_url(child, pace)
            watchdog.cancel()
            yield url
        finally:
            watchdog.cancel()
            child.kill()


def _await_url(child: subprocess.Popen[bytes], pace: GeneratorSettings) -> str:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(msgspec.json.encode(pace) + b"\n")
    child.stdin.flush()
    url = child.stdout.readline().decode().strip()
    if not url:
        raise ServerError("the token generator, a process of this package, did not start")
    return url


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    # sys.exit would only end this thread
    signal.raise_signal(signal.SIGTERM)


def main() -> None:
    """Serve until the parent process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides when to stop
    generator = TokenGenerator(msgspec.json.decode(sys.stdin.buffer.readline(), type=GeneratorSettings))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    print(generator.url, flush=True)
    generator.serve()


if __name__ == "__main__":
    main()
