"""What the load engine needs of whatever answers requests: a real server, or a simulator in virtual time."""

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


class StreamProgress(NamedTuple):
    """An answer that is still coming: chunks of text so far, and how long the first of them took."""

    chunks: int
    ttft_ns: int | None


@runtime_checkable
class StreamingBackend(Protocol):
    """A backend that can say how the answers under way come along. It is asked from another thread."""

    def get_stream_progress(self) -> list[StreamProgress]:
        """Return one value for each request that is not done."""


class Balancer:
    """Deals requests out to servers of given ``weights``, each above 0; ``seed`` makes chance repeatable.

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
        """Smooth weighted round robin, as nginx does it: each gains its weight, the richest pays for all."""
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
        """The server with the fewest in flight for its weight; those that are level take turns."""
        loads = [count / weight for count, weight in zip(self._in_flight, self._weights, strict=True)]
        return self._pick_highest_credit([target for target, load in enumerate(loads) if load == min(loads)])


class BalancedBackend:
    """A backend that tells its balancer when a request has ended."""

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
        """Send as the backend does, and count."""
        try:
            await self._backend.send(request, record)
        finally:
            self._balancer.release(request.target)

    def get_stream_progress(self) -> list[StreamProgress]:
        """What the backend says of requests that are not done; nothing where it does not tell."""
        return self._backend.get_stream_progress() if isinstance(self._backend, StreamingBackend) else []

    async def aclose(self) -> None:
        """Close the backend."""
        await self._backend.aclose()
