"""Responses on the wire, and a way to send requests through a backend."""

import asyncio

from pytest_ollama_perf.client.backend import HttpBackend
from pytest_ollama_perf.core.sample import Phase
from pytest_ollama_perf.core.workload import Endpoint, Timeouts
from pytest_ollama_perf.loadgen import Request

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(body):
    return b"%x\r\n%s\r\n" % (len(body), body)


TOKEN = chunk(b'{"response":"a","done":false}\n')
FINAL = chunk(b'{"response":"","done":true,"done_reason":"stop","eval_count":1}\n')
FULL = HEAD + TOKEN + FINAL + b"0\r\n\r\n"


def make_request(index=0, *, target=0, endpoint=Endpoint.GENERATE, stream=True, body=b"{}", **timeouts):
    return Request(
        index=index,
        client=0,
        target=target,
        request_id=f"id-{index}",
        stage=Phase.MEASURED,
        endpoint=endpoint,
        stream=stream,
        body=body,
        timeouts=Timeouts(**timeouts),
    )


def fire(run, addresses, *requests, connections=0, access=None, between=None):
    """Send ``requests`` one after another and return their samples."""
    samples = []

    async def main():
        backend = HttpBackend(addresses, access)
        try:
            await backend.connect(connections)
            for request in requests:
                if between is not None and samples:
                    await between(backend)
                await backend.send(request, samples.append)
        finally:
            await backend.aclose()

    run(main)
    assert len(samples) == len(requests)
    return samples


class LoopWithoutReaders(asyncio.SelectorEventLoop):
    """A loop whose users cannot watch sockets, as the default loop of Windows."""

    def add_reader(self, *args):
        raise NotImplementedError

    def remove_reader(self, *args):
        raise NotImplementedError

    def add_writer(self, *args):
        raise NotImplementedError

    def remove_writer(self, *args):
        raise NotImplementedError
