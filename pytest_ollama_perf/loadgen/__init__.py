"""Firing a workload."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec

from pytest_ollama_perf.core.sample import Phase, Sample
from pytest_ollama_perf.core.workload import Balance, Endpoint, Timeouts


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request, ready to send. ``body`` is encoded JSON, made before the clock started.

    ``target`` is the index into the backend's servers; ``scheduled_ns`` is set by an open loop only.
    """

    index: int
    client: int
    target: int
    request_id: str
    stage: Phase
    endpoint: Endpoint
    stream: bool
    body: bytes
    timeouts: Timeouts
    scheduled_ns: int | None = None
    turn: int = 1
    reuse_connection: bool = True
    answer_parts: list[str] | None = None
    """Receives the text of the answer, piece by piece; ``None`` if it is not needed."""


class Backend(Protocol):
    """Answers requests. A failure of the server or network is the sample's outcome; ``send`` does not raise for it."""

    def now_ns(self) -> int:
        """The clock of every ``*_ns`` in a sample."""

    async def connect(self, connections: int) -> None:
        """Open that many connections, spread over the targets, before the clock starts; failures show at ``send``."""

    async def send(self, request: Request, record: Callable[[Sample], None]) -> None:
        """Send ``request`` and call ``record`` exactly once, also when cancelled (``Outcome.CANCELLED``)."""

    async def aclose(self) -> None:
        """Close every connection."""


class StreamProgress(NamedTuple):
    """The progress of a response: text chunks so far, and how long the first one took."""

    chunks: int
    ttft_ns: int | None


@runtime_checkable
class StreamingBackend(Protocol):
    """A backend that can report the progress of its responses. Called from another thread."""

    def get_stream_progress(self) -> list[StreamProgress]:
        """Return the progress of each request in flight."""


class Balancer:
    """Distributes requests over servers of the given ``weights``, each above 0; ``seed`` makes it repeatable.

    Call ``choose`` once for each request, right before it is sent, and ``release`` when it has ended.
    """

    def __init__(self, balance: Balance, weights: Sequence[float], seed: int = 1) -> None:
        self._weights = tuple(weights)
        self._credit = [0.0] * len(self._weights)
        self._in_flight = [0] * len(self._weights)
        self._chance = random.Random(f"balance:{seed}")
        self._pick = {
            Balance.ROUND_ROBIN: self._pick_round_robin,
            Balance.RANDOM: self._pick_random,
            Balance.LEAST_IN_FLIGHT: self._pick_least_loaded,
        }[balance]

    def choose(self) -> int:
        """Return the server for the next request, which now counts as in flight."""
        target = self._pick()
        self._in_flight[target] += 1
        return target

    def release(self, target: int) -> None:
        """Count a request to ``target`` as ended."""
        self._in_flight[target] -= 1

    def _pick_round_robin(self) -> int:
        """Smooth weighted round robin, as in nginx: the server with the most credit pays the sum of all weights."""
        return self._pick_highest_credit(range(len(self._weights)))

    def _pick_highest_credit(self, among: Sequence[int]) -> int:
        for target in among:
            self._credit[target] += self._weights[target]
        chosen = max(among, key=lambda target: (self._credit[target], -target))
        self._credit[chosen] -= sum(self._weights[target] for target in among)
        return chosen

    def _pick_random(self) -> int:
        return self._chance.choices(range(len(self._weights)), self._weights)[0]

    def _pick_least_loaded(self) -> int:
        """The server with the fewest in flight for its weight; equal ones alternate."""
        loads = [count / weight for count, weight in zip(self._in_flight, self._weights, strict=True)]
        return self._pick_highest_credit([target for target, load in enumerate(loads) if load == min(loads)])


class BalancedBackend:
    """A backend that notifies its balancer when a request has ended."""

    def __init__(self, backend: Backend, balancer: Balancer) -> None:
        self._backend = backend
        self._balancer = balancer

    def now_ns(self) -> int:
        """The clock of the backend."""
        return self._backend.now_ns()

    async def connect(self, connections: int) -> None:
        """Open connections as the backend does."""
        await self._backend.connect(connections)

    async def send(self, request: Request, record: Callable[[Sample], None]) -> None:
        """Send as the backend does, then release the server."""
        try:
            await self._backend.send(request, record)
        finally:
            self._balancer.release(request.target)

    def get_stream_progress(self) -> list[StreamProgress]:
        """Return the progress of the requests in flight; empty if the backend does not report it."""
        return self._backend.get_stream_progress() if isinstance(self._backend, StreamingBackend) else []

    async def aclose(self) -> None:
        """Close the backend."""
        await self._backend.aclose()
