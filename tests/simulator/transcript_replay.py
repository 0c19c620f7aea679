"""Sends the requests of a recorded transcript to a server, at the recorded times, and tells what came back."""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TRANSCRIPTS = Path(__file__).parent.parent / "transcripts"
HUNG_UP = "the client hung up here"


@dataclass
class Reply:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    lines: list[bytes] = field(default_factory=list)

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "")

    @property
    def chunked(self) -> bool:
        return self.headers.get("transfer-encoding") == "chunked"

    @property
    def objects(self) -> list[Any]:
        """Everything that is JSON, events of server-sent streams included."""
        texts = [line.removeprefix(b"data: ").strip() for line in self.lines]
        return [json.loads(text) for text in texts if text[:1] in (b"{", b"[") and text != b"[DONE]"]

    @property
    def final(self) -> dict[str, Any]:
        return next((each for each in reversed(self.objects) if isinstance(each, dict)), {})


@dataclass
class Exchange:
    method: str
    path: str
    body: str | None
    headers: dict[str, str]
    sent_s: float
    ended_s: float
    recorded: Reply
    hang_up_after: int | None

    @property
    def title(self) -> str:
        return f"{self.method} {self.path} {(self.body or '')[:100]}"


def load(case: str) -> tuple[dict[str, Any], list[Exchange]]:
    """Return the server's settings and the exchanges of a case."""
    document = json.loads((TRANSCRIPTS / f"{case}.json").read_text())
    return document["server"], [_exchange(each) for each in document["exchanges"]]


def _exchange(row: dict[str, Any]) -> Exchange:
    asked, answered = row["request"], row["response"]
    data = "".join(text for _, text in answered["chunks"]).encode()
    recorded = Reply(answered["status"], answered["headers"], data.splitlines(keepends=True))
    return Exchange(
        method=asked["method"],
        path=asked["path"],
        body=asked["body"],
        headers=asked["headers"],
        sent_s=asked["sent_s"],
        ended_s=answered["ended_s"],
        recorded=recorded,
        hang_up_after=len(recorded.lines) if answered["error"] == HUNG_UP else None,
    )


def replay(url: str, exchanges: list[Exchange]) -> list[Reply]:
    """Send every request when it was sent, or once those that had ended before it have ended."""
    replies = [Reply() for _ in exchanges]
    threads: list[threading.Thread] = []
    began = time.perf_counter() - exchanges[0].sent_s
    for index, exchange in enumerate(exchanges):
        for earlier, thread in zip(exchanges, threads, strict=False):
            if earlier.ended_s <= exchange.sent_s and thread.is_alive():
                thread.join()
                began = time.perf_counter() - exchange.sent_s
        time.sleep(max(0.0, min(exchange.sent_s - (time.perf_counter() - began), 0.3)))
        sent = threading.Event()
        threads.append(threading.Thread(target=_send, args=(url, exchange, replies[index], sent)))
        threads[-1].start()
        sent.wait(10)  # a busy machine must not change the order
    for thread in threads:
        thread.join()
    return replies


def _send(url: str, exchange: Exchange, reply: Reply, sent: threading.Event) -> None:
    host = urlsplit(url).netloc
    connection = http.client.HTTPConnection(host, timeout=60)
    body = None if exchange.body is None else exchange.body.encode()
    connection.request(exchange.method, exchange.path, body=body, headers=exchange.headers)
    sent.set()
    answer = connection.getresponse()
    reply.status = answer.status
    reply.headers = {name.lower(): value for name, value in answer.getheaders()}
    while line := answer.readline():
        reply.lines.append(line)
        if len(reply.lines) == exchange.hang_up_after:
            break
    answer.close()
    connection.close()
