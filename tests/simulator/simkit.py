"""A simulator in virtual time: every number is exact and no test waits."""

from __future__ import annotations

import functools
import inspect
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import trio
import trio.testing

from pytest_ollama_perf.simulator.engine import Engine, InferenceResult, run_engine
from pytest_ollama_perf.simulator.job import GroundTruth, InferenceRequest, LoopClock
from pytest_ollama_perf.simulator.settings import SimulatedModel, SimulatorSettings

MS = 1_000_000


def virtual(function):
    """Run an async test under trio with a clock that jumps to the next event."""

    @functools.wraps(function)
    def run(*arguments, **words):
        async def call():
            await function(*arguments, **words)

        trio.run(call, clock=trio.testing.MockClock(autojump_threshold=0))

    run.__signature__ = inspect.signature(function)
    return run


@dataclass
class Heard:
    """What one request gave its sink."""

    texts: list[str] = field(default_factory=list)
    at_ms: list[float] = field(default_factory=list)
    thoughts: int = 0
    garbled: bool = False

    def write_text(self, text, thinking, at_ns):
        self.texts.append(text)
        self.at_ms.append(at_ns / MS)
        self.thoughts += thinking

    def write_garbage(self, at_ns):
        self.garbled = True


@dataclass
class Told:
    answer: InferenceResult
    truth: GroundTruth
    heard: Heard

    @property
    def counters(self):
        return self.answer.counters

    @property
    def queue_ms(self):
        return self.counters.queue_ns / MS

    @property
    def done_ms(self):
        return self.truth.done_ns / MS


class World:
    """An engine and requests to it; times are milliseconds from the start."""

    def __init__(self, running: Engine) -> None:
        self.engine = running

    def ask(self, prompt="one", *, model="m", limit=10, **more) -> InferenceRequest:
        tokens = tuple(self.engine.tokenizer.encode(prompt))
        return InferenceRequest(model=model, prompt=tokens, limit=limit, **more)

    async def tell(self, prompt="one", *, at=0.0, heard=None, **more) -> Told:
        await anyio.sleep_until(at / 1000)
        heard = Heard() if heard is None else heard
        answer, truth = await self.engine.answer(self.ask(prompt, **more), heard)
        return Told(answer, truth, heard)

    async def together(self, *words) -> list[Told]:
        """Send requests, each at its time; in this order where the server takes time before it queues them."""
        ordered = self.engine.settings.overhead_s > 0
        told: dict[int, Told] = {}

        async def one(index, each):
            told[index] = await self.tell(**each)

        async with anyio.create_task_group() as tasks:
            for index, each in enumerate(words):
                tasks.start_soon(one, index, each)
                if ordered:
                    await trio.testing.wait_all_tasks_blocked()
        return [told[index] for index in range(len(words))]

    @property
    def now_ms(self):
        return self.engine.clock.now_ns() / MS


PLAIN = {
    "tps": 1000.0,
    "prefill_tps": 1000.0,
    "load_time_s": 0.0,
    "warm_load_s": 0.0,
    "overhead_s": 0.0,
    "scaling": 0.0,
}
"""A millisecond for everything: each token read, each step of the batch per stream; nothing else takes time."""


@asynccontextmanager
async def world(**words):
    models = tuple(SimulatedModel(name=name) for name in words.pop("names", ("m",)))
    settings = SimulatorSettings(**{**PLAIN, "models": models, **words})
    async with run_engine(settings, LoopClock()) as running:
        yield World(running)
