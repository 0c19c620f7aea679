"""The models in memory: loading, reloading, eviction, keep-alive, and the queue of requests that wait for a load.

A request for a model that is loaded with matching options does not wait, even while others wait for a load. All others
wait in one bounded queue. Models are loaded one at a time, in order.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import TaskGroup

from pytest_ollama_perf.simulator.decoder import ModelRunner
from pytest_ollama_perf.simulator.job import BUSY_MESSAGE, ResponseError, SimulatorClock
from pytest_ollama_perf.simulator.settings import SimulatedModel, SimulatorSettings

RELOAD_OPTIONS = ("num_ctx", "num_batch", "num_thread", "use_mmap", "main_gpu", "draft_num_predict", "num_gpu", "shift")
"""The options that cannot change without reloading the model."""

_POLL_S = 0.25
"""How often the server polls whether a load is complete; a load takes a multiple of it."""


class ResidentModel:
    """A model in memory and the number of its users. ``expires_ns`` is ``None`` if it is kept for ever."""

    def __init__(self, runner: ModelRunner, options: Mapping[str, Any]) -> None:
        self.runner = runner
        self.options = options
        self.users = 0
        self.keep_s = 0.0
        self.used_ns = 0
        self.serial = 0

    @property
    def model(self) -> SimulatedModel:
        """The loaded model."""
        return self.runner.model

    @property
    def expires_ns(self) -> int | None:
        """When the model is unloaded, in nanoseconds; None for never."""
        if self.keep_s < 0:
            return None
        return self.used_ns + round(self.keep_s * 1e9)


class _LoadTicket:
    def __init__(self, model: SimulatedModel, options: Mapping[str, Any]) -> None:
        self.model = model
        self.options = options
        self.granted = anyio.Event()
        self.abandoned = False
        self.resident: ResidentModel | None = None


class Scheduler:
    """Holds the loaded models. Models are loaded only while ``run`` runs."""

    def __init__(self, settings: SimulatorSettings, clock: SimulatorClock, tasks: TaskGroup) -> None:
        self._settings = settings
        self._clock = clock
        self._tasks = tasks
        self._loaded: dict[str, ResidentModel] = {}
        self._pending: deque[_LoadTicket] = deque()
        self._changed = anyio.Event()
        self._chance = random.Random(f"runs {settings.seed}")

    @asynccontextmanager
    async def use(
        self, model: SimulatedModel, options: Mapping[str, Any], keep_alive_s: float | None
    ) -> AsyncIterator[ResidentModel]:
        """Keep ``model`` in memory while the block runs; ``ResponseError`` 503 if too many requests wait for a load."""
        held = await self._acquire(model, options)
        held.keep_s = self._settings.keep_alive_s if keep_alive_s is None else keep_alive_s
        try:
            yield held
        finally:
            self._release(held)

    def list_loaded(self) -> list[ResidentModel]:
        """Return the models in memory, the newest first."""
        self._expire()
        return sorted(self._loaded.values(), key=lambda held: -held.serial)

    def unload(self, name: str) -> None:
        """Unload the model with that full name once no request uses it."""
        held = self._loaded.get(name)
        if held is not None:
            held.keep_s = 0.0
            self._expire()

    async def run(self) -> None:
        """Load the models that requests wait for, one at a time and in order."""
        while True:
            while not self._pending:
                await self._wait_for_change()
            ticket = self._pending.popleft()
            if not ticket.abandoned:
                await self._grant(ticket)

    async def _acquire(self, model: SimulatedModel, options: Mapping[str, Any]) -> ResidentModel:
        self._expire()
        held = self._loaded.get(model.full_name)
        if held is not None and not _needs_reload(held, options):
            held.users += 1
            return held
        if len(self._pending) >= self._settings.max_queue:
            raise ResponseError(503, BUSY_MESSAGE)
        ticket = _LoadTicket(model, options)
        self._pending.append(ticket)
        self._notify()
        return await self._wait(ticket)

    async def _wait(self, ticket: _LoadTicket) -> ResidentModel:
        try:
            await ticket.granted.wait()
        except BaseException:
            ticket.abandoned = True
            if ticket in self._pending:
                self._pending.remove(ticket)
            if ticket.resident is not None:
                self._release(ticket.resident)
            raise
        assert ticket.resident is not None
        return ticket.resident

    async def _grant(self, ticket: _LoadTicket) -> None:
        while not ticket.abandoned:
            self._expire()
            held = self._loaded.get(ticket.model.full_name)
            if held is not None and not _needs_reload(held, ticket.options):
                break
            victim = held or self._pick_eviction()
            if victim is None:
                await self._load(ticket)
                break
            victim.keep_s = 0.0
            if victim.users:
                await self._wait_for_change()
        self._hand_over(ticket)

    def _hand_over(self, ticket: _LoadTicket) -> None:
        held = self._loaded.get(ticket.model.full_name)
        if held is None or ticket.abandoned:
            return
        held.users += 1
        ticket.resident = held
        ticket.granted.set()

    def _pick_eviction(self) -> ResidentModel | None:
        """Return the model to evict: an idle one before a busy one, the longest unused first."""
        if len(self._loaded) < self._settings.max_loaded:
            return None
        return min(self._loaded.values(), key=lambda held: (held.users > 0, held.used_ns, held.serial))

    async def _load(self, ticket: _LoadTicket) -> None:
        model = ticket.model
        seconds = self._settings.load_time_s if model.load_time_s is None else model.load_time_s
        polls = math.ceil(round(seconds / _POLL_S, 6))
        await self._clock.sleep_until(self._clock.now_ns() + round(polls * _POLL_S * 1e9))
        num_ctx = min(int(ticket.options["num_ctx"]), model.context_length)
        runner = ModelRunner(self._settings, model, num_ctx, self._clock, random.Random(self._chance.random()))
        held = ResidentModel(runner, ticket.options)
        held.keep_s = self._settings.keep_alive_s
        held.used_ns = held.serial = self._clock.now_ns()
        self._loaded[model.full_name] = held
        self._tasks.start_soon(runner.run)

    def _release(self, held: ResidentModel) -> None:
        held.users -= 1
        held.used_ns = self._clock.now_ns()
        self._expire()
        self._notify()

    def _expire(self) -> None:
        """Unload models that are unused and expired, and models whose engine has died."""
        now = self._clock.now_ns()
        for name, held in list(self._loaded.items()):
            expired = not held.users and held.expires_ns is not None and held.expires_ns <= now
            if expired or held.runner.dead:
                del self._loaded[name]
                held.runner.scope.cancel()

    def _notify(self) -> None:
        self._changed.set()

    async def _wait_for_change(self) -> None:
        self._changed = anyio.Event()
        await self._changed.wait()


def _needs_reload(held: ResidentModel, options: Mapping[str, Any]) -> bool:
    return held.runner.dead or any(held.options.get(name) != options.get(name) for name in RELOAD_OPTIONS)
