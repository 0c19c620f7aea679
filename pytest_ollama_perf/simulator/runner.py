"""A loaded model: its slots, their queue and the loop that decodes one batch after another.

A batch holds one token of every decoding slot and up to ``prefill_batch`` prompt tokens; it takes the time of both, so
that a long prompt stalls the other streams. The schedule is absolute: a batch starts when the one before was due.
"""

from __future__ import annotations

import bisect
import math
import random
from collections import deque
from collections.abc import Iterable, Sequence

import anyio

from pytest_ollama_perf.simulator.cache import PromptCache
from pytest_ollama_perf.simulator.clock import Clock
from pytest_ollama_perf.simulator.emission import emit
from pytest_ollama_perf.simulator.faults import Kind
from pytest_ollama_perf.simulator.job import DIED, Failure, Job, Phase
from pytest_ollama_perf.simulator.settings import Model, SimulatorSettings
from pytest_ollama_perf.simulator.tokens import WORDS, first_output

_SLIP_NS = 50_000_000
"""How far real time may run ahead of the schedule before the schedule gives in: a stalled host, never virtual time."""


class Speed:
    """How long a batch takes, in ns: ``decode(streams)`` and ``prefill(tokens)``; the noise is drawn from a seed."""

    def __init__(self, settings: SimulatorSettings, model: Model, chance: random.Random) -> None:
        self._points = settings.aggregate if model.tps is None else ()
        self._tps = model.tps or settings.tps
        self._scaling = settings.scaling
        self._prefill_tps = model.prefill_tps or settings.prefill_tps
        self._token_jitter = settings.token_jitter
        self._chance = chance
        self._run = _lognormal(chance, settings.run_jitter)

    def aggregate(self, streams: int) -> float:
        """Return the tokens/s of all ``streams`` together."""
        if not self._points:
            return float(self._tps * streams**self._scaling)
        index = bisect.bisect_right([count for count, _ in self._points], streams)
        if index == len(self._points):
            return self._points[-1][1]
        (low, low_tps), (high, high_tps) = self._points[index - 1] if index else (0, 0.0), self._points[index]
        return low_tps + (high_tps - low_tps) * (streams - low) / (high - low)

    def decode(self, streams: int) -> float:
        return streams / self.aggregate(streams) * 1e9 if streams else 0.0

    def prefill(self, tokens: int) -> float:
        return tokens / self._prefill_tps * 1e9

    def noise(self) -> float:
        """Return the factor of this batch."""
        return self._run * _lognormal(self._chance, self._token_jitter)


def _lognormal(chance: random.Random, sigma: float) -> float:
    return math.exp(chance.gauss(-sigma * sigma / 2, sigma)) if sigma else 1.0


class Runner:
    """One model in memory with the options it was loaded with. ``run`` must be running for anything to be answered."""

    def __init__(
        self, settings: SimulatorSettings, model: Model, num_ctx: int, clock: Clock, chance: random.Random
    ) -> None:
        self.model = model
        self.num_ctx = num_ctx
        self._settings = settings
        self._clock = clock
        self._speed = Speed(settings, model, chance)
        self._cache = PromptCache(settings.cache_tokens if settings.cache else 0)
        self._slots: list[Job | None] = [None] * settings.slot_count
        self._queue: deque[Job] = deque()
        self._now = clock.now_ns()
        self._wake = anyio.Event()
        self.dead = False
        self.scope = anyio.CancelScope()

    async def answer(self, job: Job) -> None:
        """Queue ``job`` and return when it is over; a cancelled caller frees the slot."""
        job.truth.queued_ns = self._clock.now_ns()
        self._enqueue(job)
        self._wake.set()
        try:
            await job.finished.wait()
        finally:
            if job.phase is not Phase.OVER:
                self._forget(job)
        if job.error is not None:
            raise job.error

    async def run(self) -> None:
        """Decode until cancelled."""
        with self.scope:
            while True:
                await self._until_work()
                self._admit()
                await self._batch()

    def die(self) -> None:
        """End everything in flight, as a killed engine does."""
        self.dead = True
        for job in [*self._busy(), *self._queue]:
            job.over(self._clock.now_ns(), error=Failure(500, DIED, engine=True))
        self._queue.clear()
        self._slots = [None] * len(self._slots)

    def _enqueue(self, job: Job) -> None:
        """Queue by arrival at the slots; of those that come in the same nanosecond the earlier request goes first."""
        bisect.insort(self._queue, job, key=lambda each: (each.truth.queued_ns, each.truth.number))

    def _busy(self) -> list[Job]:
        return [job for job in self._slots if job is not None]

    def _forget(self, job: Job) -> None:
        job.over(self._clock.now_ns(), reason="cancelled")
        if job in self._queue:
            self._queue.remove(job)
        self._release(job)

    def _release(self, job: Job) -> None:
        for index, held in enumerate(self._slots):
            if held is job:
                self._slots[index] = None
                self._cache.keep(job.prompt + job.output)
                self._wake.set()

    async def _until_work(self) -> None:
        while not self._busy():
            while not self._queue:
                self._wake = anyio.Event()
                await self._wake.wait()
            await self._clock.settle()
            if self._queue:
                self._now = max(self._now, self._queue[0].truth.queued_ns or 0)
                break
        present = self._clock.now_ns()
        if present - self._now > _SLIP_NS:
            self._now = present

    def _admit(self) -> None:
        """Give free slots to those who wait, first come first served; a batch under way takes nobody in."""
        for index, held in enumerate(self._slots):
            if held is None and self._queue and (self._queue[0].truth.queued_ns or 0) <= self._now:
                job = self._slots[index] = self._queue.popleft()
                self._start(job, index)

    def _start(self, job: Job, slot: int) -> None:
        truth = job.truth
        truth.slot, truth.slot_ns, truth.prompt_tokens = slot, self._now, len(job.prompt)
        truth.cached_tokens = self._cache.reusable(job.prompt)
        job.unread = len(job.prompt) - truth.cached_tokens
        job.phase = Phase.PREFILL
        self._stall(job)

    def _stall(self, job: Job) -> None:
        fault = job.struck(Kind.STALL, len(job.output))
        if fault is not None:
            job.resume_ns = self._now + round(fault.seconds * 1e9)

    async def _batch(self) -> None:
        """Run one batch: sleep for as long as it takes, then hand out its tokens."""
        awake = [job for job in self._busy() if job.resume_ns <= self._now]
        if not awake:
            await self._rest()
            return
        decoding = [job for job in awake if job.phase is Phase.DECODE]
        reading = self._share(job for job in awake if job.phase is Phase.PREFILL)
        self._now += self._duration(decoding, reading)
        await self._clock.sleep_until(self._now)
        for job, tokens in reading:
            job.unread -= tokens
        read = [job for job, _ in reading if job.unread <= 0]
        for job in [*decoding, *read]:
            self._sample(job)
        await self._clock.settle()  # whoever arrives in this very instant gets into the next batch

    async def _rest(self) -> None:
        """Every slot stands still; wait for the first that goes on, or for somebody who comes or goes."""
        resume = min(job.resume_ns for job in self._busy())
        self._wake = anyio.Event()
        with anyio.move_on_after((resume - self._clock.now_ns()) / 1e9):
            await self._wake.wait()
            resume = self._clock.now_ns()
            await self._clock.settle()
        self._now = max(self._now, resume)

    def _share(self, jobs: Iterable[Job]) -> list[tuple[Job, int]]:
        budget, shares = self._settings.prefill_batch, list[tuple[Job, int]]()
        for job in jobs:
            tokens = min(budget, job.unread)
            budget -= tokens
            if tokens:
                shares.append((job, tokens))
        return shares

    def _duration(self, decoding: Sequence[Job], reading: Sequence[tuple[Job, int]]) -> int:
        decode = self._speed.decode(len(decoding)) * max(
            (job.factor(Kind.SLOW_DECODE) for job in decoding), default=1.0
        )
        prefill = sum(self._speed.prefill(tokens) * job.factor(Kind.SLOW_PREFILL) for job, tokens in reading)
        return round((decode + prefill) * self._speed.noise())

    def _sample(self, job: Job) -> None:
        if job.phase is Phase.OVER:
            return
        if job.ask.endpoint == "embed":
            job.truth.first_token_ns = self._now
            job.over(self._now, "embed")
            self._release(job)
            return
        job.output.append((job.output[-1] + 1) % len(WORDS) if job.output else first_output(job.prompt))
        if job.phase is Phase.PREFILL:
            job.phase, job.truth.first_token_ns = Phase.DECODE, self._now
        if job.struck(Kind.CRASH, len(job.output) - 1):
            job.output.pop()
            self.die()
            return
        emit(job, self._now, self._settings.tokens_per_line)
        self._stall(job)
        if job.phase is Phase.OVER:
            self._release(job)
