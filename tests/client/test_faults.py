"""Faults of the client, the connection and the machine: each is named, and none is hidden or blamed on the server."""

import asyncio
import errno
import threading
import time

import anyio
import anyio.lowlevel
import pytest
from wire_makers import FINAL, FULL, HEAD, TOKEN, LoopWithoutReaders, fire, make_request

from pytest_ollama_perf.client import backend as backend_module
from pytest_ollama_perf.client.address import Access, Address
from pytest_ollama_perf.client.backend import HttpBackend
from pytest_ollama_perf.core.sample import Outcome
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.loadgen import runner


def test_an_exception_of_the_client_is_a_failure_with_its_text(run, fault_server, monkeypatch):
    async def broken(*args):
        raise AttributeError("no such thing")

    monkeypatch.setattr(backend_module, "open_connection", broken)
    (sample,) = fire(run, [fault_server(FULL).address], make_request())
    assert (sample.outcome, sample.error) == (
        Outcome.CLIENT_ERROR,
        "the client failed: AttributeError: no such thing",
    )


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EADDRNOTAVAIL])
def test_a_connection_that_this_machine_cannot_open_is_an_error_of_the_client(run, fault_server, monkeypatch, number):
    async def broken(*args):
        raise OSError(number, "cannot open a connection")

    monkeypatch.setattr(backend_module, "open_connection", broken)
    (sample,) = fire(run, [fault_server(FULL).address], make_request())
    assert sample.outcome is Outcome.CLIENT_ERROR


def test_an_exception_while_reading_ends_the_request_at_once(run, fault_server, monkeypatch):
    def broken(*args):
        raise RuntimeError("cannot read")

    monkeypatch.setattr("pytest_ollama_perf.client.response.Response._count_headless_bytes", broken)
    (sample,) = fire(run, [fault_server(HEAD).address], make_request(first_token_s=30))
    assert (sample.outcome, sample.error) == (Outcome.CLIENT_ERROR, "the client failed: RuntimeError: cannot read")


def test_a_reset_after_more_than_a_round_trip_is_not_sent_again(run, fault_server, rst):
    def slow_reset(connection):
        time.sleep(0.15)
        rst(connection)

    server = fault_server(FULL, slow_reset, FULL)
    samples = fire(run, [server.address], make_request(0), make_request(1))
    assert [(sample.outcome, sample.attempt) for sample in samples] == [(Outcome.OK, 1), (Outcome.CUT_OFF, 1)]
    assert len(server.requests) == 2


def test_a_request_that_was_sent_again_counts_from_its_first_send(run, fault_server, rst, monkeypatch):
    monkeypatch.setattr(backend_module, "STALE_GRACE_NS", 10**10)

    def slow_reset(connection):
        time.sleep(0.05)
        rst(connection)

    samples = fire(run, [fault_server(FULL, slow_reset, FULL).address], make_request(0), make_request(1))
    again = samples[1]
    assert (again.outcome, again.attempt) == (Outcome.OK, 2)
    assert again.first_error == "cut_off: the connection was reset before any answer"
    assert again.sent_ns - again.start_ns >= 50_000_000


def test_the_text_of_a_lost_attempt_is_no_part_of_the_answer(run, fault_server, rst, monkeypatch):
    monkeypatch.setattr(backend_module, "STALE_GRACE_NS", 10**10)
    server = fault_server(FULL, rst, FULL)
    request = make_request(1)
    request = type(request)(
        **{name: getattr(request, name) for name in request.__struct_fields__} | {"answer_parts": []}
    )
    fire(run, [server.address], make_request(0), request)
    assert request.answer_parts == ["a"]


def test_a_frozen_client_keeps_the_times_of_the_kernel(run, fault_server):
    sent = threading.Event()

    def answer(connection):
        connection.sendall(FULL)
        sent.set()

    samples = []

    async def main():
        backend = HttpBackend([fault_server(answer).address])
        await backend.connect(1)
        async with anyio.create_task_group() as group:
            group.start_soon(backend.send, make_request(idle_s=0.05, first_token_s=0.05), samples.append)
            await anyio.lowlevel.checkpoint()
            sent.wait(10)
            time.sleep(0.3)  # noqa: ASYNC251 - as after SIGSTOP and SIGCONT, longer than every timeout
        await backend.aclose()

    run(main)
    assert samples[0].ok
    assert samples[0].read_lag_ns > 200_000_000
    assert samples[0].first_token_ns < time.perf_counter_ns() - 200_000_000


def test_a_frozen_client_does_not_charge_the_server_for_the_pause(run, fault_server):
    thawed = threading.Event()

    def answer(connection):
        connection.sendall(HEAD + TOKEN)
        thawed.wait(10)
        connection.sendall(FINAL + b"0\r\n\r\n")

    samples = []

    async def main():
        backend = HttpBackend([fault_server(answer).address])
        async with anyio.create_task_group() as group:
            group.start_soon(backend.send, make_request(idle_s=0.1), samples.append)
            with anyio.fail_after(10):
                while not any(stream.chunks for stream in backend.get_stream_progress()):  # noqa: ASYNC110
                    await anyio.sleep(0.001)
            time.sleep(0.4)  # noqa: ASYNC251
            thawed.set()
        await backend.aclose()

    run(main)
    assert samples[0].ok, samples[0].error


@pytest.mark.parametrize("limits", [{"idle_s": 0.05}, {"total_s": 0.05}])
def test_an_http_error_stays_one_when_its_body_does_not_end(run, fault_server, limits):
    server = fault_server(b"HTTP/1.1 500 Oops\r\nContent-Length: 900\r\n\r\nout of memory")
    (sample,) = fire(run, [server.address], make_request(**limits))
    assert (sample.outcome, sample.status) == (Outcome.HTTP_ERROR, 500)
    assert sample.error.startswith("HTTP 500: out of memory (the answer did not end: ")


@pytest.mark.parametrize(
    "access",
    [
        Access(bearer="s3cret-key-1"),
        Access(headers=(("Authorization", "Bearer s3cret-key-1"),)),
        Access(headers=(("X-Key", "s3cret-key-1"),)),
    ],
)
def test_a_credential_that_the_server_echoes_is_masked(run, fault_server, access):
    body = b'{"error":"invalid key s3cret-key-1 of Bearer s3cret-key-1"}'
    head = b"HTTP/1.1 401 No\r\nVia: s3cret-key-1\r\nContent-Length: %d\r\n\r\n" % len(body)
    (sample,) = fire(run, [fault_server(head + body).address], make_request(), access=access)
    assert sample.status == 401
    assert "invalid key ***" in sample.error
    assert "s3cret" not in repr(sample)


def test_an_echoed_password_is_masked_also_where_the_text_is_cut(run, fault_server):
    body = b"x" * 290 + b"hunter22hunter22" * 2
    head = b"HTTP/1.1 500 Oops\r\nContent-Length: %d\r\n\r\n" % len(body)
    server = fault_server(head + body)
    address = Address("127.0.0.1", server.address.port, auth=("bob", "hunter22hunter22"))
    (sample,) = fire(run, [address], make_request())
    assert "hunter" not in sample.error


def test_an_untrusted_certificate_names_the_option(run, fault_server, certificate):
    context, _ = certificate
    server = fault_server(FULL, wrap=lambda sock: context.wrap_socket(sock, server_side=True))
    (sample,) = fire(run, [server.address], make_request())
    assert "--ollama-ca-file" in sample.error


@pytest.fixture
def run_without_readers():
    def run_main(function):
        loop = LoopWithoutReaders()
        try:
            return loop.run_until_complete(function())
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    return run_main


def test_a_loop_without_add_reader_measures(run_without_readers, fault_server):
    server = fault_server(FULL)
    samples = fire(run_without_readers, [server.address], *map(make_request, range(3)), connections=1)
    assert [(sample.outcome, sample.connect_ns) for sample in samples] == [(Outcome.OK, None)] * 3
    assert all(sample.sent_ns < sample.first_token_ns <= sample.done_ns for sample in samples)
    assert len(server.connections) == 1


def test_a_loop_without_add_reader_sends_large_bodies_and_notices_failures(run_without_readers, fault_server, rst):
    body = bytes(range(256)) * 20_000
    server = fault_server(FULL, rst, FULL)
    samples = fire(
        run_without_readers,
        [server.address],
        make_request(0, body=body),
        make_request(1),
        make_request(2, first_token_s=5),
    )
    assert samples[0].ok
    assert server.requests[0].endswith(body)
    assert samples[2].ok
    (silent,) = fire(run_without_readers, [fault_server(HEAD).address], make_request(first_token_s=0.05))
    assert silent.outcome is Outcome.FIRST_TOKEN_TIMEOUT
    (cut,) = fire(run_without_readers, [fault_server(rst).address], make_request())
    assert cut.outcome is Outcome.CUT_OFF


def test_a_whole_load_runs_where_the_default_loop_cannot_watch_sockets(fault_server, monkeypatch):
    server = fault_server(FULL)
    loops = []

    def make_loop():
        loops.append(LoopWithoutReaders())
        return loops[-1]

    monkeypatch.setattr(asyncio.events, "new_event_loop", make_loop)
    monkeypatch.setattr(runner, "_has_uvloop", lambda: False)
    workload = Workload(model="m", concurrency=4, requests=12, warmup=0)
    measured = runner.run_load(workload, lambda: HttpBackend([server.address]))
    assert len(loops) == 1
    assert [sample.outcome for sample in measured.samples] == [Outcome.OK] * 12
    assert all(sample.first_token_ns > sample.sent_ns for sample in measured.samples)


def test_a_loop_without_add_reader_speaks_tls(run_without_readers, fault_server, certificate):
    context, ca_file = certificate
    server = fault_server(FULL, wrap=lambda sock: context.wrap_socket(sock, server_side=True))
    samples = fire(run_without_readers, [server.address], *map(make_request, range(2)), access=Access(ca_file=ca_file))
    assert [sample.ok for sample in samples] == [True, True]
    (refused,) = fire(run_without_readers, [server.address], make_request())
    assert refused.outcome is Outcome.REFUSED
