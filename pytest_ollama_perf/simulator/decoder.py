"""A loaded model: its slots, their queue, and the loop that decodes batch after batch.

A batch holds one token of every decoding slot and up to ``prefill_batch`` prompt tokens; its duration is the sum of
both, so a long prompt stalls the other streams. The schedule is absolute: a batch starts when the previous one was due.
"""

from __future__ import annotations

import bisect
import math
import random
from collections import deque
from collections.abc import Iterable, Sequence

import anyio

from pytest_ollama_perf.simulator.faults import FaultKind
from pytest_ollama_perf.simulator.job import (
    RUNNER_DIED_MESSAGE,
    VOCABULARY,
    DroppedConnectionError,
    InferenceJob,
    JobState,
    PromptCache,
    ResponseError,
    SimulatorClock,
    TruncatedResponseError,
    decode_token,
    pick_first_token,
)
from pytest_ollama_perf.simulator.settings import SimulatedModel, SimulatorSettings


def emit_token(job: InferenceJob, at_ns: int, tokens_per_line: int) -> None:
    """Send the token that ``job`` has just sampled, and end the job if it was the last one."""
    count = len(job.output)
    if _apply_fault(job, count - 1, at_ns):
        return
    if job.ends_at is not None and count >= job.ends_at:
        _end_job(job, at_ns, "stop")
        return
    text = decode_token(job.output[-1])
    if _check_stop_sequence(job, text):
        _end_job(job, at_ns, "stop")
        return
    _send_text(job, text, at_ns, tokens_per_line)
    if count >= job.limit:
        _end_job(job, at_ns, "length")


def _apply_fault(job: InferenceJob, sent: int, at_ns: int) -> bool:
    if job.get_due_fault(FaultKind.GARBAGE, sent):
        job.sink.write_garbage(at_ns)
    error: Exception | None = None
    if job.get_due_fault(FaultKind.DROP, sent):
        error = DroppedConnectionError()
    elif job.get_due_fault(FaultKind.TRUNCATE, sent):
        error = TruncatedResponseError()
    elif job.get_due_fault(FaultKind.ERROR, sent):
        error = ResponseError(500, RUNNER_DIED_MESSAGE, engine=True)
    if error is None:
        return False
    job.output.pop()
    _flush_text(job, at_ns)
    job.finish(at_ns, error=error)
    return True


def _check_stop_sequence(job: InferenceJob, text: str) -> bool:
    if not job.request.stop:
        return False
    job.text += text
    return any(stop in job.text for stop in job.request.stop)


def _send_text(job: InferenceJob, text: str, at_ns: int, tokens_per_line: int) -> None:
    job.buffered_texts.append(text)
    count = len(job.output)
    if len(job.buffered_texts) >= tokens_per_line or count == job.think_until:
        _flush_text(job, at_ns)


def _flush_text(job: InferenceJob, at_ns: int) -> None:
    if job.buffered_texts:
        job.sink.write_text("".join(job.buffered_texts), len(job.output) <= job.think_until, at_ns)
        job.buffered_texts.clear()


def _end_job(job: InferenceJob, at_ns: int, reason: str) -> None:
    _flush_text(job, at_ns)
    job.finish(at_ns, reason=reason)


_MAX_LAG_NS = 50_000_000
"""How far real time may be ahead of the schedule before the schedule is moved. Only a stalled host causes this."""


class SpeedModel:
    """The duration of a batch in nanoseconds: decode time by streams, prefill time by tokens, and seeded noise."""

    def __init__(self, settings: SimulatorSettings, model: SimulatedModel, chance: random.Random) -> None:
        self._points = settings.aggregate if model.tps is None else ()
        self._tps = model.tps or settings.tps
        self._scaling = settings.scaling
        self._prefill_tps = model.prefill_tps or settings.prefill_tps
        self._token_jitter = settings.token_jitter
        self._chance = chance
        self._run_factor = _draw_lognormal(chance, settings.run_jitter)

    def compute_aggregate_tps(self, streams: int) -> float:
        """Return the tokens/s of all ``streams`` together."""
        if not self._points:
            return float(self._tps * streams**self._scaling)
        index = bisect.bisect_right([count for count, _ in self._points], streams)
        if index == len(self._points):
            return self._points[-1][1]
        (low, low_tps), (high, high_tps) = self._points[index - 1] if index else (0, 0.0), self._points[index]
        return low_tps + (high_tps - low_tps) * (streams - low) / (high - low)

    def compute_decode_ns(self, streams: int) -> float:
        """Return the nanoseconds per token of each of ``streams`` streams."""
        return streams / self.compute_aggregate_tps(streams) * 1e9 if streams else 0.0

    def compute_prefill_ns(self, tokens: int) -> float:
        """Return the nanoseconds that a prompt of ``tokens`` tokens takes."""
        return tokens / self._prefill_tps * 1e9

    def draw_noise(self) -> float:
        """Return the random factor for the duration of this batch."""
        return self._run_factor * _draw_lognormal(self._chance, self._token_jitter)


def _draw_lognormal(chance: random.Random, sigma: float) -> float:
    return math.exp(chance.gauss(-sigma * sigma / 2, sigma)) if sigma else 1.0


class ModelRunner:
    """One model in memory with the options it was loaded with. Requests are answered only while ``run`` runs."""

    def __init__(
        self,
        settings: SimulatorSettings,
        model: SimulatedModel,
        num_ctx: int,
        clock: SimulatorClock,
        chance: random.Random,
    ) -> None:
        self.model = model
        self.num_ctx = num_ctx
        self._settings = settings
        self._clock = clock
        self._speed = SpeedModel(settings, model, chance)
        self._cache = PromptCache(settings.cache_tokens if settings.cache else 0)
        self._slots: list[InferenceJob | None] = [None] * settings.slot_count
        self._queue: deque[InferenceJob] = deque()
        self._now = clock.now_ns()
        self._wake = anyio.Event()
        self.dead = False
        self.scope = anyio.CancelScope()

    async def answer(self, job: InferenceJob) -> None:
        """Queue ``job`` and return when it has ended; cancelling the caller frees the slot."""
        job.truth.queued_ns = self._clock.now_ns()
        self._enqueue(job)
        self._wake.set()
        try:
            await job.finished.wait()
        finally:
            if job.phase is not JobState.OVER:
                self._forget(job)
        if job.error is not None:
            raise job.error

    async def run(self) -> None:
        """Decode until cancelled."""
        with self.scope:
            while True:
                await self._wait_for_work()
                self._fill_slots()
                await self._run_batch()

    def die(self) -> None:
        """Fail all requests in flight, as a killed engine does."""
        self.dead = True
        for job in [*self._list_running_jobs(), *self._queue]:
            job.finish(self._clock.now_ns(), error=ResponseError(500, RUNNER_DIED_MESSAGE, engine=True))
        self._queue.clear()
        self._slots = [None] * len(self._slots)

    def _enqueue(self, job: InferenceJob) -> None:
        """Queue in order of arrival, and of number among requests that arrive in the same nanosecond."""
        bisect.insort(self._queue, job, key=lambda each: (each.truth.queued_ns, each.truth.number))

    def _list_running_jobs(self) -> list[InferenceJob]:
        return [job for job in self._slots if job is not None]

    def _forget(self, job: InferenceJob) -> None:
        job.finish(self._clock.now_ns(), reason="cancelled")
        if job in self._queue:
            self._queue.remove(job)
        self._release(job)

    def _release(self, job: InferenceJob) -> None:
        for index, held in enumerate(self._slots):
            if held is job:
                self._slots[index] = None
                self._cache.add(job.evaluated_tokens)
                self._wake.set()

    async def _wait_for_work(self) -> None:
        while not self._list_running_jobs():
            while not self._queue:
                self._wake = anyio.Event()
                await self._wake.wait()
            await self._clock.settle()
            if self._queue:
                self._now = max(self._now, self._queue[0].truth.queued_ns or 0)
                break
        present = self._clock.now_ns()
        if present - self._now > _MAX_LAG_NS:
            self._now = present

    def _fill_slots(self) -> None:
        """Assign free slots to waiting requests in order of arrival; a batch that has started takes no new ones."""
        for index, held in enumerate(self._slots):
            if held is None and self._queue and (self._queue[0].truth.queued_ns or 0) <= self._now:
                job = self._slots[index] = self._queue.popleft()
                self._start(job, index)

    def _start(self, job: InferenceJob, slot: int) -> None:
        truth = job.truth
        truth.slot, truth.slot_ns, truth.prompt_tokens = slot, self._now, len(job.prompt)
        truth.cached_tokens = self._cache.count_reusable(job.prompt)
        job.unread = len(job.prompt) - truth.cached_tokens
        job.phase = JobState.PREFILL
        self._apply_stall(job)

    def _apply_stall(self, job: InferenceJob) -> None:
        fault = job.get_due_fault(FaultKind.STALL, len(job.output))
        if fault is not None:
            job.resume_ns = self._now + round(fault.seconds * 1e9)

    async def _run_batch(self) -> None:
        """Run one batch: sleep for its duration, then send its tokens."""
        awake = [job for job in self._list_running_jobs() if job.resume_ns <= self._now]
        if not awake:
            await self._wait_for_stall()
            return
        decoding = [job for job in awake if job.phase is JobState.DECODE]
        reading = self._share_prefill_budget(job for job in awake if job.phase is JobState.PREFILL)
        self._now += self._compute_duration(decoding, reading)
        await self._clock.sleep_until(self._now)
        for job, tokens in reading:
            job.unread -= tokens
        read = [job for job, _ in reading if job.unread <= 0]
        for job in [*decoding, *read]:
            self._sample(job)
        await self._clock.settle()  # a request that arrives at this instant is part of the next batch

    async def _wait_for_stall(self) -> None:
        """All slots are stalled; wait until the first one continues, or a request arrives or is cancelled."""
        resume = min(job.resume_ns for job in self._list_running_jobs())
        self._wake = anyio.Event()
        with anyio.move_on_after((resume - self._clock.now_ns()) / 1e9):
            await self._wake.wait()
            resume = self._clock.now_ns()
            await self._clock.settle()
        self._now = max(self._now, resume)

    def _share_prefill_budget(self, jobs: Iterable[InferenceJob]) -> list[tuple[InferenceJob, int]]:
        budget, shares = self._settings.prefill_batch, list[tuple[InferenceJob, int]]()
        for job in jobs:
            tokens = min(budget, job.unread)
            budget -= tokens
            if tokens:
                shares.append((job, tokens))
        return shares

    def _compute_duration(self, decoding: Sequence[InferenceJob], reading: Sequence[tuple[InferenceJob, int]]) -> int:
        decode = self._speed.compute_decode_ns(len(decoding)) * max(
            (job.get_slowdown(FaultKind.SLOW_DECODE) for job in decoding), default=1.0
        )
        prefill = sum(
            self._speed.compute_prefill_ns(tokens) * job.get_slowdown(FaultKind.SLOW_PREFILL) for job, tokens in reading
        )
        return round((decode + prefill) * self._speed.draw_noise())

    def _sample(self, job: InferenceJob) -> None:
        if job.phase is JobState.OVER:
            return
        if job.request.endpoint == "embed":
            job.truth.first_token_ns = self._now
            job.finish(self._now, "embed")
            self._release(job)
            return
        job.output.append((job.output[-1] + 1) % len(VOCABULARY) if job.output else pick_first_token(job.prompt))
        if job.phase is JobState.PREFILL:
            job.phase, job.truth.first_token_ns = JobState.DECODE, self._now
        if job.get_due_fault(FaultKind.CRASH, len(job.output) - 1):
            job.output.pop()
            self.die()
            return
        emit_token(job, self._now, self._settings.tokens_per_line)
        self._apply_stall(job)
        if job.phase is JobState.OVER:
            self._release(job)
