"""What the load engine needs of whatever answers requests: a real server, or a simulator in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec

from pytest_ollama_perf.sample import Sample, Stage
from pytest_ollama_perf.workload import Endpoint, Timeouts


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request, ready to send. ``body`` is encoded JSON, made before the clock started.

    ``target`` is the index into the backend's servers; ``scheduled_ns`` is set by an open loop only.
    """

    index: int
    client: int
    target: int
    request_id: str
    stage: Stage
    endpoint: Endpoint
    stream: bool
    body: bytes
    timeouts: Timeouts
    scheduled_ns: int | None = None
    turn: int = 1
    reuse_connection: bool = True
    heard: list[str] | None = None
    """Where the text of the answer goes, piece by piece; ``None`` where nobody wants to know."""


class Backend(Protocol):
    """Answers requests. ``send`` never raises for what a server or network does: that is the sample's outcome."""

    def now_ns(self) -> int:
        """The clock of every ``*_ns`` in a sample."""

    async def connect(self, connections: int) -> None:
        """Open that many connections, spread over the targets, before the clock starts; failures show at ``send``."""

    async def send(self, request: Request, record: Callable[[Sample], None]) -> None:
        """Send ``request`` and call ``record`` exactly once, also when cancelled (``Outcome.CANCELLED``)."""

    async def aclose(self) -> None:
        """Close every connection."""


class Stream(NamedTuple):
    """An answer that is still coming: chunks of text so far, and how long the first of them took."""

    chunks: int
    ttft_ns: int | None


@runtime_checkable
class Streaming(Protocol):
    """A backend that can say how the answers under way come along. It is asked from another thread."""

    def under_way(self) -> list[Stream]:
        """Return one value for each request that is not done."""
