"""A server on loopback with scripted faults: raw sockets, one thread per connection."""

import contextlib
import re
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time

import anyio
import pytest

from pytest_ollama_perf.client.address import Address
from pytest_ollama_perf.client.polling import enable_receive_stamps


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


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    options = {"use_uvloop": request.param == "uvloop"}
    return lambda function: anyio.run(function, backend="asyncio", backend_options=options)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the command openssl")
    folder = tmp_path_factory.mktemp("tls")
    key, pem = str(folder / "key.pem"), str(folder / "cert.pem")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key]
    name = ["-subj", "/CN=loopback", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-out", pem]
    subprocess.run([openssl, "req", "-x509", *curve, *name], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    return context, pem


@pytest.fixture(scope="session", autouse=True)
def kernel_stamps():
    """Keep a stamped socket open: the kernel starts stamping packets only some time after the first one asks for it."""
    with socket.socket() as sock:
        enable_receive_stamps(sock)
        time.sleep(0.05)
        yield
