"""A server on loopback that misbehaves as told: raw sockets, one thread a connection."""

import contextlib
import re
import socket
import struct
import threading

import pytest

from pytest_ollama_perf.client.address import Address


class FaultServer:
    """Answers the n-th request with the n-th of ``answers`` (the last one again after that).

    An answer is bytes, sent whole, or a function of the connection; ``requests`` holds what was asked.
    """

    def __init__(self, answers, wrap=None):
        self.answers = list(answers)
        self.requests = []
        self.connections = []
        self._wrap = wrap
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = Address("127.0.0.1", self._listener.getsockname()[1], wrap is not None)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with contextlib.suppress(OSError):
            if self._wrap is not None:
                connection = self._wrap(connection)
            self.connections.append(connection)
            while request := read_request(connection):
                answer = self.answers[min(len(self.requests), len(self.answers) - 1)]
                self.requests.append(request)
                if callable(answer):
                    answer(connection)
                else:
                    connection.sendall(answer)


def read_request(connection):
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head, re.I)[1])
    body = bytearray(body)
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + bytes(body)


def reset(connection):
    """Close with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.fixture
def fault_server():
    servers = []

    def start(*answers, wrap=None):
        servers.append(FaultServer(answers, wrap))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def rst():
    return reset
