"""Requests over real sockets on loopback; every asyncio test runs on the plain loop and on uvloop."""

import asyncio
import socket
import sys
import threading
import time

import anyio
import anyio.lowlevel
import pytest
from wire_makers import FINAL, FULL, HEAD, TOKEN, chunk, fire, make_request

from pytest_ollama_perf.client import polling, transport
from pytest_ollama_perf.client.address import Access, Address
from pytest_ollama_perf.client.backend import HttpBackend
from pytest_ollama_perf.core.sample import Outcome
from pytest_ollama_perf.core.workload import Endpoint


def test_a_request_carries_its_id_host_and_body_and_comes_back_as_a_sample(run, fault_server):
    server = fault_server(FULL)
    before = time.perf_counter_ns()
    (sample,) = fire(run, [server.address], make_request(body=b'{"x":1}'), connections=1)
    after = time.perf_counter_ns()
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert body == b'{"x":1}'
    assert head.startswith(b"POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % server.address.port)
    assert b"\r\nX-Request-Id: id-0\r\n" in head
    assert (sample.outcome, sample.request_id, sample.url) == (Outcome.OK, "id-0", server.address.url)
    assert before < sample.sent_ns < sample.header_ns <= sample.first_token_ns <= sample.done_ns < after
    assert sample.connect_ns is None
    assert (sample.counters.eval_count, sample.attempt) == (1, 1)


def test_a_connection_serves_one_request_after_another(run, fault_server):
    server = fault_server(FULL)
    samples = fire(run, [server.address], *map(make_request, range(3)))
    assert [sample.ok for sample in samples] == [True] * 3
    assert samples[0].connect_ns > 0
    assert [sample.connect_ns for sample in samples[1:]] == [None, None]
    assert len(server.connections) == 1


def test_connections_are_opened_before_the_clock_and_spread_over_the_servers(run, fault_server):
    servers = [fault_server(FULL), fault_server(FULL)]
    requests = [make_request(n, target=n % 2) for n in range(4)]
    samples = fire(run, [server.address for server in servers], *requests, connections=4)
    assert [sample.connect_ns for sample in samples] == [None] * 4
    assert [sample.url for sample in samples] == [servers[n % 2].address.url for n in range(4)]
    assert [len(server.connections) for server in servers] == [2, 2]


def test_the_connection_used_last_is_used_next(run, fault_server):
    server = fault_server(FULL)
    ports = []

    async def note(backend):
        ports.append([c._sock.getsockname()[1] for c in backend._targets[0].idle][-1])

    fire(run, [server.address], *map(make_request, range(4)), connections=3, between=note)
    assert len(set(ports)) == 1


@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_each_endpoint_has_its_path(run, fault_server, endpoint):
    body = b'{"embeddings":[[1.0]],"message":{"content":"x"},"response":"x","done":true}'
    server = fault_server(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    address = Address("127.0.0.1", server.address.port, path="/prefix")
    (sample,) = fire(run, [address], make_request(endpoint=endpoint, stream=False))
    assert sample.ok
    assert server.requests[0].startswith(b"POST /prefix/api/%s HTTP/1.1\r\n" % endpoint.value.encode())


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_nobody_listening_is_refused(run):
    samples = fire(run, [Address("127.0.0.1", free_port())], make_request(), make_request(), connections=2)
    assert [sample.outcome for sample in samples] == [Outcome.REFUSED] * 2
    assert samples[0].error == "Connection refused"
    assert samples[0].done_ns >= samples[0].sent_ns


def test_a_name_that_does_not_resolve_is_refused(run, monkeypatch):
    async def unknown(self, *args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def main():
        monkeypatch.setattr(type(asyncio.get_running_loop()), "getaddrinfo", unknown, raising=False)
        await backend.send(make_request(), samples.append)

    samples, backend = [], HttpBackend([Address("nowhere.invalid", 1)])
    anyio.run(main, backend="asyncio", backend_options={"use_uvloop": False})
    assert (samples[0].outcome, samples[0].error) == (
        Outcome.REFUSED,
        "host name not found (Name or service not known)",
    )


def test_a_connection_that_never_stands_times_out(run, monkeypatch):
    async def never(*args):
        await anyio.sleep_forever()

    monkeypatch.setattr("pytest_ollama_perf.client.backend.open_connection", never)
    (sample,) = fire(run, [Address("127.0.0.1", 9)], make_request(connect_s=0.01))
    assert (sample.outcome, sample.error) == (Outcome.CONNECT_TIMEOUT, "no connection within 0.01 s")


def test_too_many_open_files_says_what_to_raise(run, monkeypatch):
    async def full(*args):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("pytest_ollama_perf.client.backend.open_connection", full)
    (sample,) = fire(run, [Address("127.0.0.1", 9)], make_request())
    assert sample.outcome is Outcome.CLIENT_ERROR
    assert "ulimit -n" in sample.error


@pytest.mark.parametrize(
    ("sent", "limits", "outcome", "error"),
    [
        (b"", {"first_token_s": 0.02}, Outcome.FIRST_TOKEN_TIMEOUT, "no first token within 0.02 s"),
        (HEAD, {"first_token_s": 0.02}, Outcome.FIRST_TOKEN_TIMEOUT, "no first token within 0.02 s"),
        (
            b"HTTP/1.1 200 OK\r\nX-Slow: ",
            {"first_token_s": 0.02},
            Outcome.FIRST_TOKEN_TIMEOUT,
            "no first token within 0.02 s",
        ),
        (HEAD + TOKEN, {"idle_s": 0.02}, Outcome.IDLE_TIMEOUT, "nothing more for 0.02 s"),
        (HEAD + TOKEN, {"total_s": 0.02}, Outcome.TOTAL_TIMEOUT, "not done within 0.02 s"),
        (b"", {"total_s": 0.02}, Outcome.TOTAL_TIMEOUT, "not done within 0.02 s"),
    ],
)
def test_a_silent_server_ends_in_the_timeout_it_earned(run, fault_server, sent, limits, outcome, error):
    server = fault_server(sent)
    (sample,) = fire(run, [server.address], make_request(**limits))
    assert (sample.outcome, sample.error) == (outcome, error)
    assert sample.done_ns - sample.sent_ns >= 0.02e9
    assert (sample.first_token_ns is not None) == (TOKEN in sent)


def test_a_slow_stream_outlives_a_short_idle_limit(run, fault_server):
    def drip(connection):
        connection.sendall(HEAD)
        for _ in range(6):
            connection.sendall(TOKEN)
            time.sleep(0.01)
        connection.sendall(FINAL + b"0\r\n\r\n")

    (sample,) = fire(run, [fault_server(drip).address], make_request(idle_s=5, first_token_s=5))
    assert (sample.ok, len(sample.chunk_ns)) == (True, 6)


@pytest.mark.parametrize("sent", [b"", HEAD, HEAD + TOKEN, HEAD + TOKEN + FINAL])
def test_a_reset_is_cut_off_and_sent_once(run, fault_server, rst, sent):
    def answer(connection):
        connection.sendall(sent)
        rst(connection)

    server = fault_server(answer)
    (sample,) = fire(run, [server.address], make_request(), connections=1)
    assert (sample.outcome, sample.attempt) == (Outcome.CUT_OFF, 1)
    assert len(server.requests) == 1


def test_a_half_close_after_a_token_is_cut_off(run, fault_server):
    def answer(connection):
        connection.sendall(HEAD + TOKEN)
        connection.shutdown(socket.SHUT_WR)

    (sample,) = fire(run, [fault_server(answer).address], make_request())
    assert (sample.outcome, sample.error) == (
        Outcome.CUT_OFF,
        "the server closed the connection inside the answer",
    )
    assert len(sample.chunk_ns) == 1


def test_a_connection_closed_while_idle_is_replaced_without_a_second_attempt(run, fault_server):
    def answer(connection):
        connection.sendall(FULL)
        connection.shutdown(socket.SHUT_RDWR)

    async def settle(backend):
        await anyio.sleep(0.02)

    samples = fire(run, [fault_server(answer).address], make_request(0), make_request(1), between=settle)
    assert [(sample.ok, sample.attempt) for sample in samples] == [(True, 1), (True, 1)]
    assert samples[1].connect_ns > 0


def test_a_kept_alive_connection_that_breaks_at_once_is_tried_again_once(run, fault_server, rst):
    server = fault_server(FULL, rst, FULL)
    samples = fire(run, [server.address], make_request(0), make_request(1))
    assert [(sample.outcome, sample.attempt) for sample in samples] == [(Outcome.OK, 1), (Outcome.OK, 2)]
    assert samples[1].connect_ns > 0
    assert len(server.connections) == 2
    server = fault_server(FULL, rst)
    samples = fire(run, [server.address], make_request(0), make_request(1))
    assert [(sample.outcome, sample.attempt) for sample in samples] == [(Outcome.OK, 1), (Outcome.CUT_OFF, 2)]
    assert len(server.requests) == 3


def test_a_broken_answer_does_not_cost_the_next_request(run, fault_server):
    server = fault_server(b"SSH-2.0-OpenSSH\r\n", HEAD + chunk(b"nonsense\n") + b"0\r\n\r\n", FULL)
    samples = fire(run, [server.address], *map(make_request, range(3)))
    assert [sample.outcome for sample in samples] == [Outcome.MALFORMED, Outcome.MALFORMED, Outcome.OK]


def test_a_prompt_larger_than_every_buffer_goes_out_whole(run, fault_server):
    server = fault_server(FULL)
    body = bytes(range(256)) * 20_000
    samples = fire(run, [server.address], make_request(0, body=body), make_request(1))
    assert [(sample.ok, sample.connect_ns is None) for sample in samples] == [(True, False), (True, True)]
    assert server.requests[0].partition(b"\r\n\r\n")[2] == body


def test_a_refusal_before_the_prompt_is_read_is_heard(run):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        samples = []

        async def refuse():
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            with connection:
                await asyncio.get_running_loop().sock_sendall(
                    connection, b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"
                )
                await anyio.sleep(0.02)

        async def main():
            backend = HttpBackend([Address("127.0.0.1", listener.getsockname()[1])])
            async with anyio.create_task_group() as group:
                group.start_soon(refuse)
                await backend.send(make_request(body=b" " * 20_000_000), samples.append)
            assert backend._targets[0].idle == []
            await backend.aclose()

        run(main)
    assert (samples[0].outcome, samples[0].status) == (Outcome.HTTP_ERROR, 413)


def test_a_cancelled_request_is_recorded_once_and_its_connection_closed(run, fault_server):
    server = fault_server(HEAD + TOKEN)
    samples = []

    async def main():
        backend = HttpBackend([server.address])
        with anyio.move_on_after(0.05):
            await backend.send(make_request(), samples.append)
        assert backend._targets[0].idle == []
        await backend.aclose()

    run(main)
    assert [sample.outcome for sample in samples] == [Outcome.CANCELLED]
    assert len(samples[0].chunk_ns) == 1


def test_closing_under_a_request_cuts_it_off(run, fault_server):
    server = fault_server(HEAD + TOKEN)
    samples = []

    async def main():
        backend = HttpBackend([server.address])
        async with anyio.create_task_group() as group:
            group.start_soon(backend.send, make_request(), samples.append)
            await anyio.sleep(0.02)
            await backend.aclose()

    run(main)
    assert [sample.outcome for sample in samples] == [Outcome.CUT_OFF]


def test_many_requests_at_once_each_have_their_own_answer(run, fault_server):
    server = fault_server(FULL)
    samples = []

    async def main():
        backend = HttpBackend([server.address])
        await backend.connect(40)
        async with anyio.create_task_group() as group:
            for index in range(40):
                group.start_soon(backend.send, make_request(index), samples.append)
        await backend.aclose()

    run(main)
    assert sorted(sample.index for sample in samples) == list(range(40))
    assert all(sample.ok and sample.connect_ns is None for sample in samples)


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_flood_larger_than_many_reads_is_read_to_its_last_byte(run, fault_server, version):
    lines = b'{"response":"a","done":false}\n' * 20_000 + b'{"done":true}\n'
    head = b"HTTP/%s 200 OK\r\n" % version

    def answer(connection):
        if version == b"1.1":
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(lines) + lines)
        else:
            connection.sendall(head + b"\r\n" + lines)
            connection.shutdown(socket.SHUT_WR)

    (sample,) = fire(run, [fault_server(answer).address], make_request(idle_s=5))
    assert (sample.outcome, sample.line_count) == (Outcome.OK, 20_001)
    assert len(sample.chunk_ns) == 20_000


def test_a_connection_that_closes_without_a_word_while_idle_is_forgotten(run, fault_server):
    server = fault_server(FULL)

    async def main():
        backend = HttpBackend([server.address])
        await backend.connect(2)
        while len(server.connections) < 2:  # noqa: ASYNC110 - a thread opens them
            await anyio.sleep(0.001)
        for connection in server.connections:
            connection.shutdown(socket.SHUT_RDWR)
        idle = backend._targets[0].idle
        while not all(connection.is_closed for connection in idle):  # noqa: ASYNC110
            await anyio.sleep(0.001)
        await backend.aclose()

    run(main)


def test_an_interrupt_inside_a_request_still_records_it(run, fault_server, monkeypatch):
    samples = []

    async def interrupt(*args):
        raise KeyboardInterrupt

    async def main():
        backend = HttpBackend([Address("127.0.0.1", 9)])
        with pytest.raises(KeyboardInterrupt):
            await backend.send(make_request(), samples.append)
        await backend.aclose()

    monkeypatch.setattr("pytest_ollama_perf.client.backend.open_connection", interrupt)
    run(main)
    assert [sample.outcome for sample in samples] == [Outcome.CANCELLED]


def test_credentials_go_to_the_server_and_not_into_the_sample(run, fault_server):
    server = fault_server(FULL)
    address = Address("127.0.0.1", server.address.port, auth=("user", "s3cret"))
    (sample,) = fire(run, [address], make_request(), access=Access(headers=(("X-Key", "k3y"),)))
    assert b"\r\nAuthorization: Basic dXNlcjpzM2NyZXQ=\r\n" in server.requests[0]
    assert b"\r\nX-Key: k3y\r\n" in server.requests[0]
    assert "s3cret" not in repr(sample)


@pytest.mark.parametrize("way", ["no kernel stamps", "no epoll"])
def test_a_platform_with_less_measures_all_the_same(run, fault_server, monkeypatch, way):
    if way == "no epoll":
        monkeypatch.setattr("pytest_ollama_perf.client.transport.make_poller", polling.LoopPoller)
    else:
        monkeypatch.setattr(transport.polling, "enable_receive_stamps", lambda sock: False)
    samples = fire(run, [fault_server(FULL).address], *map(make_request, range(2)), connections=1)
    assert [(sample.ok, sample.connect_ns) for sample in samples] == [(True, None)] * 2
    if way == "no kernel stamps":
        assert {sample.read_lag_ns for sample in samples} == {0}


@pytest.mark.skipif(sys.platform != "linux", reason="kernel receive stamps are Linux's")
def test_a_read_that_comes_late_is_told_by_the_kernel_stamp(run, fault_server):
    server = fault_server(FULL)
    samples = []

    async def main():
        backend = HttpBackend([server.address])
        await backend.connect(1)
        async with anyio.create_task_group() as group:
            group.start_soon(backend.send, make_request(), samples.append)
            await anyio.lowlevel.checkpoint()
            deadline = time.perf_counter() + 5
            while not server.requests and time.perf_counter() < deadline:
                time.sleep(0.001)  # noqa: ASYNC251 - this client is what must be slow
            time.sleep(0.03)  # noqa: ASYNC251
        await backend.aclose()

    run(main)
    assert samples[0].ok
    assert samples[0].read_lag_ns > 5_000_000
    assert samples[0].done_ns < time.perf_counter_ns() - 5_000_000


def test_tls_is_trusted_through_a_ca_file_and_refused_without(run, fault_server, certificate):
    context, ca_file = certificate
    server = fault_server(FULL, wrap=lambda sock: context.wrap_socket(sock, server_side=True))
    trusted = fire(run, [server.address], *map(make_request, range(2)), connections=1, access=Access(ca_file=ca_file))
    assert [(sample.ok, sample.connect_ns) for sample in trusted] == [(True, None)] * 2
    assert fire(run, [server.address], make_request(), access=Access(verify=False))[0].ok
    (sample,) = fire(run, [server.address], make_request())
    assert sample.outcome is Outcome.REFUSED
    assert sample.error.startswith("TLS: certificate not trusted")


def test_plain_http_at_a_tls_port_is_a_named_failure(run, fault_server):
    server = fault_server(FULL)
    (sample,) = fire(run, [Address("127.0.0.1", server.address.port, tls=True)], make_request(connect_s=0.2))
    assert sample.outcome in (Outcome.REFUSED, Outcome.CONNECT_TIMEOUT)


def test_answers_under_way_tell_how_far_they_are_and_then_are_gone(run, fault_server):
    more = threading.Event()

    def answer(connection):
        connection.sendall(HEAD + TOKEN + TOKEN)
        more.wait(10)
        connection.sendall(FINAL + b"0\r\n\r\n")

    server = fault_server(answer)
    seen = []

    async def load():
        backend = HttpBackend([server.address])
        async with anyio.create_task_group() as group:
            group.start_soon(backend.send, make_request(), lambda sample: None)
            with anyio.fail_after(10):
                while not any(stream.chunks == 2 for stream in backend.get_stream_progress()):  # noqa: ASYNC110
                    await anyio.sleep(0.001)
            seen.extend(backend.get_stream_progress())
            more.set()
        seen.append(backend.get_stream_progress())
        await backend.aclose()

    run(load)
    (stream, after) = seen
    assert stream.chunks == 2
    assert stream.ttft_ns > 0
    assert after == []
