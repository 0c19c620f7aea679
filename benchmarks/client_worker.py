"""One client in a separate process, pinned to one core: this package's, a bare loop, or plain httpx.

Prints ``{"cpu_s", "wall_s", "chunks", "rss_mb", "ttft": {request id: [sent_ns, first_token_ns]}, "failed"}``.
"""

import argparse
import asyncio
import gc
import json
import os
import resource
import select
import socket
import sys
import time
from collections.abc import Awaitable, Callable

import httptools
import httpx
import uvloop

from pytest_ollama_perf.client.address import parse_address
from pytest_ollama_perf.client.backend import HttpBackend
from pytest_ollama_perf.core.sample import Phase, Sample
from pytest_ollama_perf.core.workload import Endpoint, Timeouts
from pytest_ollama_perf.loadgen import Request

BODY = b'{"model":"bench","prompt":" word","stream":true,"raw":true,"options":{"num_predict":64,"num_ctx":4096}}'
Report = dict[str, object]


def report(chunks: int, cpu_s: float, wall_s: float, ttft: dict[str, list[int]], failed: int) -> Report:
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu_s": cpu_s, "wall_s": wall_s, "chunks": chunks, "rss_mb": rss_mb, "ttft": ttft, "failed": failed}


async def closed_loop(streams: int, each: int, send: Callable[[int, int], Awaitable[None]]) -> tuple[float, float]:
    async def client(number: int) -> None:
        for turn in range(each):
            await send(number, turn)

    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(streams)))
    return time.process_time() - cpu, time.perf_counter() - wall


async def ours(port: int, streams: int, each: int) -> Report:
    backend = HttpBackend([parse_address(f"127.0.0.1:{port}")])
    samples: list[Sample] = []
    await backend.connect(streams)

    async def send(number: int, turn: int) -> None:
        request = Request(
            index=number * each + turn,
            client=number,
            target=0,
            request_id=f"{number}-{turn}",
            stage=Phase.MEASURED,
            endpoint=Endpoint.GENERATE,
            stream=True,
            body=BODY,
            timeouts=Timeouts(),
        )
        await backend.send(request, samples.append)

    gc.collect()
    gc.freeze()
    gc.disable()  # as the runner does while a load runs
    cpu_s, wall_s = await closed_loop(streams, each, send)
    gc.enable()
    await backend.aclose()
    ttft = {sample.request_id: [sample.sent_ns, sample.first_token_ns or 0] for sample in samples}
    chunks = sum(sample.line_count for sample in samples)
    return report(chunks, cpu_s, wall_s, ttft, sum(not sample.ok for sample in samples))


async def plain_httpx(port: int, streams: int, each: int) -> Report:
    limits = httpx.Limits(max_connections=streams, max_keepalive_connections=streams)
    chunks = 0
    ttft: dict[str, list[int]] = {}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=120) as client:

        async def send(number: int, turn: int) -> None:
            nonlocal chunks
            name, sent = f"{number}-{turn}", time.perf_counter_ns()
            headers = {"X-Request-Id": name}
            async with client.stream("POST", "/api/generate", content=BODY, headers=headers) as response:
                async for line in response.aiter_lines():
                    if json.loads(line)["response"]:
                        ttft.setdefault(name, [sent, time.perf_counter_ns()])
                    chunks += 1

        cpu_s, wall_s = await closed_loop(streams, each, send)
    return report(chunks, cpu_s, wall_s, ttft, 0)


class Bare:
    """The least that reading such streams can cost in Python: ``recvmsg``, httptools, a count."""

    def __init__(self, port: int, name: str, each: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, 35, 1)
        self.parser = httptools.HttpResponseParser(self)
        self.name, self.left, self.chunks = name, each, 0

    def send(self) -> None:
        head = b"POST /api/generate HTTP/1.1\r\nHost: bench\r\nX-Request-Id: %s-%d\r\nContent-Length: %d\r\n\r\n"
        self.sock.send(head % (self.name.encode(), self.left, len(BODY)) + BODY)

    def on_body(self, body: bytes) -> None:
        self.chunks += 1

    def on_message_complete(self) -> None:
        self.left -= 1
        if self.left:
            self.send()


def bare(port: int, streams: int, each: int) -> Report:
    epoll = select.epoll()
    clients = [Bare(port, str(number), each) for number in range(streams)]
    by_fd = {client.sock.fileno(): client for client in clients}
    for fd in by_fd:
        epoll.register(fd, select.EPOLLIN)
    cpu, wall, open_streams = time.process_time(), time.perf_counter(), streams
    for client in clients:
        client.send()
    while open_streams:
        for fd, _ in epoll.poll():
            client = by_fd[fd]
            client.parser.feed_data(client.sock.recvmsg(65536, 64)[0])
            if not client.left:
                epoll.unregister(fd)
                open_streams -= 1
    cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - wall
    return report(sum(client.chunks for client in clients), cpu_s, wall_s, {}, 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("client", choices=("ours", "ours-asyncio", "bare", "httpx"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--each", type=int, default=1)
    parser.add_argument("--core", type=int, default=-1)
    given = parser.parse_args()
    if given.core >= 0:
        os.sched_setaffinity(0, {given.core})
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    where = (given.port, given.streams, given.each)
    if given.client == "bare":
        result = bare(*where)
    elif given.client == "ours-asyncio":
        result = asyncio.run(ours(*where))
    else:
        result = uvloop.run((ours if given.client == "ours" else plain_httpx)(*where))
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
