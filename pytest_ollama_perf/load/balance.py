"""Which of several servers gets the next request: in turn, by chance, or the one with the fewest in flight."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from pytest_ollama_perf.load.backend import Backend, Request, Stream, Streaming
from pytest_ollama_perf.sample import Sample
from pytest_ollama_perf.workload import Balance


class Balancer:
    """Deals requests out to servers of given ``weights``, each above 0; ``seed`` makes chance repeatable.

    ``choose`` is asked once for each request, right before it is sent; ``done`` is told of its end.
    """

    def __init__(self, balance: Balance, weights: Sequence[float], seed: int = 1) -> None:
        self._weights = tuple(weights)
        self._credit = [0.0] * len(self._weights)
        self._in_flight = [0] * len(self._weights)
        self._chance = random.Random(f"balance:{seed}")
        self._pick = {
            Balance.ROUND_ROBIN: self._in_turn,
            Balance.RANDOM: self._by_chance,
            Balance.LEAST_IN_FLIGHT: self._least,
        }[balance]

    def choose(self, index: int) -> int:
        """Return the server for the request ``index``, which now counts as in flight."""
        target = self._pick()
        self._in_flight[target] += 1
        return target

    def done(self, target: int) -> None:
        """Count a request to ``target`` as ended."""
        self._in_flight[target] -= 1

    def _in_turn(self) -> int:
        """Smooth weighted round robin, as nginx does it: each gains its weight, the richest pays for all."""
        return self._richest(range(len(self._weights)))

    def _richest(self, among: Sequence[int]) -> int:
        for target in among:
            self._credit[target] += self._weights[target]
        chosen = max(among, key=lambda target: (self._credit[target], -target))
        self._credit[chosen] -= sum(self._weights[target] for target in among)
        return chosen

    def _by_chance(self) -> int:
        return self._chance.choices(range(len(self._weights)), self._weights)[0]

    def _least(self) -> int:
        """The server with the fewest in flight for its weight; those that are level take turns."""
        loads = [count / weight for count, weight in zip(self._in_flight, self._weights, strict=True)]
        return self._richest([target for target, load in enumerate(loads) if load == min(loads)])


class Balanced:
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
            self._balancer.done(request.target)

    def under_way(self) -> list[Stream]:
        """What the backend says of requests that are not done; nothing where it does not tell."""
        return self._backend.under_way() if isinstance(self._backend, Streaming) else []

    async def aclose(self) -> None:
        """Close the backend."""
        await self._backend.aclose()
