"""Faults of the connection and of HTTP, as a client sees them on a socket."""

from __future__ import annotations

import socket
import time
from contextlib import contextmanager

import httpx
import pytest

from pytest_ollama_perf.simulator.process import start_simulator
from pytest_ollama_perf.simulator.url import read_settings

FAST = {"tps": 5000, "prefill_tps": 100_000, "load_time": 0, "warm_load": 0, "overhead": 0, "models": "one"}
LIMITED = httpx.Timeout(20.0)


@contextmanager
def open_client(fault):
    with start_simulator(read_settings({**FAST, "fault": fault})) as simulator:
        headers = {"Authorization": "Bearer secret-key"}
        with httpx.Client(base_url=simulator.url, headers=headers, trust_env=False, timeout=LIMITED) as client:
            yield client


def generate(client):
    return client.post("/api/generate", json={"model": "one", "prompt": "a", "options": {"num_predict": 2}})


def test_an_html_page_comes_with_status_200():
    with open_client("html@1") as client:
        answer = generate(client)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert answer.text.startswith("<!DOCTYPE html>")
        assert b'"done":true' in generate(client).content


def test_a_reset_comes_after_its_time_and_on_a_reused_connection():
    with open_client("reset:0.3@2") as client:
        generate(client)
        began = time.perf_counter()
        with pytest.raises(httpx.ReadError):
            generate(client)
        assert time.perf_counter() - began >= 0.3
        assert b'"done":true' in generate(client).content


def test_a_refusal_ends_all_connections_and_new_ones_until_its_time_is_over():
    with open_client("refuse:0.5@1") as client:
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            generate(client)
        address = client.base_url.host, client.base_url.port
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        for _ in range(200):
            try:
                answer = generate(client)
                break
            except httpx.TransportError:
                time.sleep(0.05)
        assert b'"done":true' in answer.content


@pytest.mark.parametrize(("fault", "path"), [("trickle:0.01@1", ""), ("control_trickle:0.01@1", "/api/tags")])
def test_trickling_headers_never_end(fault, path):
    with open_client(fault) as client:
        address = client.base_url.host, client.base_url.port
        body = b'{"model":"one","prompt":"a"}'
        asked = b"GET /api/tags HTTP/1.1\r\nHost: localhost\r\n\r\n"
        if not path:
            asked = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (
                len(body),
                body,
            )
        with socket.create_connection(address, timeout=20) as plain:
            plain.sendall(asked)
            seen = b""
            while len(seen) < 90:
                seen += plain.recv(65536)
        assert seen.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\n\r\n" not in seen


def test_an_upstream_that_echoes_the_key_does_so_in_its_error():
    with open_client("echo_key@1") as client:
        answer = generate(client)
        assert answer.status_code == 500
        assert answer.json() == {"error": "upstream rejected Authorization: Bearer secret-key"}


def test_control_calls_have_their_own_numbers_and_loads_are_among_them():
    with open_client("control_html@2-3") as client:
        assert client.get("/api/version").json()["version"]
        assert b'"done":true' in generate(client).content
        assert client.get("/api/tags").text.startswith("<!DOCTYPE html>")
        assert client.post("/api/generate", json={"model": "one"}).text.startswith("<!DOCTYPE html>")
        assert client.get("/api/tags").json()["models"]
