"""A server that is faster than any client under test and records its times; runs in a separate process.

``POST`` of anything returns a stream of ``tokens`` lines, one token per chunk, the first ``first_s`` after the
request was read and the others ``gap_s`` apart (0: as fast as the socket takes them). ``GET /times`` returns, and
forgets, ``{"times": {request id: [read_ns, written_ns, arrived_ns]}, "cpu_s": ...}`` on the clock of
``time.perf_counter_ns``; ``arrived_ns`` is the kernel's stamp of the request, so that the server's own lateness shows.
"""

import argparse
import gc
import heapq
import json
import os
import select
import socket
import time
from dataclasses import dataclass, field

from pytest_ollama_perf.client.polling import ANCILLARY_BYTES, ReceiveClock, enable_receive_stamps


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


_STAMP = b'{"model":"bench:latest","created_at":"2026-01-01T00:00:00.000000000Z"'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
TOKEN = chunk(_STAMP + b',"response":" word","done":false}\n')


def final(tokens: int) -> bytes:
    counters = b',"total_duration":2000000,"load_duration":500000,"prompt_eval_count":7,"prompt_eval_duration":400000'
    counters += b',"eval_count":%d,"eval_duration":1000000' % tokens
    return chunk(_STAMP + b',"response":"","done":true,"done_reason":"length"' + counters + b"}\n") + b"0\r\n\r\n"


@dataclass
class Pace:
    tokens: int
    gap_s: float
    first_s: float


@dataclass(eq=False)
class Stream:
    sock: socket.socket
    request: bytes = b""
    request_id: str = ""
    read_ns: int = 0
    arrived_ns: int = 0
    sent: int = 0
    backlog: memoryview = field(default_factory=lambda: memoryview(b""))


class Server:
    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.final = final(pace.tokens)
        self.flood = HEAD + TOKEN * pace.tokens + self.final
        self.times: dict[str, list[int]] = {}
        self.streams: dict[int, Stream] = {}
        self.due: list[tuple[int, int, Stream]] = []
        self.stamps = ReceiveClock()
        self.epoll = select.epoll()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.listener.setblocking(False)
        self.epoll.register(self.listener, select.EPOLLIN)
        self.port = self.listener.getsockname()[1]

    def run(self) -> None:
        while True:
            wait = max(0.0, (self.due[0][0] - time.perf_counter_ns()) / 1e9) if self.due else -1
            for fd, event in self.epoll.poll(wait):
                if fd == self.listener.fileno():
                    self.accept()
                elif event & select.EPOLLOUT:
                    self.push(self.streams[fd])
                else:
                    self.read(self.streams[fd])
            self.write_due()

    def accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            enable_receive_stamps(sock)
            self.streams[sock.fileno()] = Stream(sock)
            self.epoll.register(sock, select.EPOLLIN)

    def read(self, stream: Stream) -> None:
        try:
            data, ancillary, _, _ = stream.sock.recvmsg(65536, ANCILLARY_BYTES)
        except ConnectionResetError:
            data, ancillary = b"", []
        now = time.perf_counter_ns()
        if not data:
            self.drop(stream)
            return
        stream.request += data
        head, found, body = stream.request.partition(b"\r\n\r\n")
        lowered = head.lower()
        if not found or len(body) < length(lowered):
            return
        stream.request = b""
        if head.startswith(b"GET"):
            self.report_times(stream)
            return
        at = lowered.find(b"x-request-id: ")
        stream.request_id = head[at + 14 :].split(b"\r\n", 1)[0].decode() if at >= 0 else ""
        stream.read_ns, stream.sent = now, 0
        stream.arrived_ns = self.stamps.to_arrival_ns(ancillary, now)
        if self.pace.gap_s:
            heapq.heappush(self.due, (now + int(self.pace.first_s * 1e9), stream.sock.fileno(), stream))
        else:
            stream.backlog = memoryview(self.flood)
            self.epoll.modify(stream.sock, select.EPOLLIN | select.EPOLLOUT)

    def write_due(self) -> None:
        now = time.perf_counter_ns()
        gap = int(self.pace.gap_s * 1e9)
        while self.due and self.due[0][0] <= now:
            at, fd, stream = self.due[0]
            if fd not in self.streams:
                heapq.heappop(self.due)
                continue
            stream.sent += 1
            if stream.sent == 1:
                self.times[stream.request_id] = [stream.read_ns, time.perf_counter_ns(), stream.arrived_ns]
                stream.sock.send(HEAD + TOKEN)
            elif stream.sent <= self.pace.tokens:
                stream.sock.send(TOKEN)
            else:
                stream.sock.send(self.final)
                heapq.heappop(self.due)
                continue
            heapq.heapreplace(self.due, (at + gap, fd, stream))

    def push(self, stream: Stream) -> None:
        try:
            stream.backlog = stream.backlog[stream.sock.send(stream.backlog[:262144]) :]
        except BlockingIOError:
            return
        except OSError:
            self.drop(stream)
            return
        if not stream.backlog:
            self.epoll.modify(stream.sock, select.EPOLLIN)

    def report_times(self, stream: Stream) -> None:
        body = json.dumps({"times": self.times, "cpu_s": time.process_time()}).encode()
        self.times = {}
        stream.sock.setblocking(True)
        stream.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        stream.sock.setblocking(False)

    def drop(self, stream: Stream) -> None:
        self.epoll.unregister(stream.sock)
        del self.streams[stream.sock.fileno()]
        stream.sock.close()


def length(lowered: bytes) -> int:
    at = lowered.find(b"content-length: ")
    return int(lowered[at + 16 :].split(b"\r\n", 1)[0]) if at >= 0 else 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--gap", type=float, required=True)
    parser.add_argument("--first", type=float, default=0.03)
    parser.add_argument("--core", type=int, default=-1)
    given = parser.parse_args()
    if given.core >= 0:
        os.sched_setaffinity(0, {given.core})
    gc.disable()
    server = Server(Pace(given.tokens, given.gap, given.first))
    print(server.port, flush=True)
    server.run()


if __name__ == "__main__":
    main()
