"""A bench in virtual time: every load of an experiment is fired at a simulator whose clock jumps, so nothing waits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import trio
import trio.testing

from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.core.run import Fingerprint, ModelState, Run
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.harness.evaluation import Evaluation, ExperimentContext
from pytest_ollama_perf.harness.history import RunHistory
from pytest_ollama_perf.loadgen.engine import execute_load
from pytest_ollama_perf.loadgen.recorder import SampleRecorder
from pytest_ollama_perf.simulator.process import open_simulated_backend
from pytest_ollama_perf.simulator.settings import SimulatedModel, SimulatorSettings

TEST = "tests/test_it.py::test_scaling"
URL = "http://box:11434"
EXACT = {"overhead_s": 0.0, "warm_load_s": 0.0, "models": (SimulatedModel(name="m"), SimulatedModel(name="n"))}
NUMBERS = itertools.count(1)


class Listening:
    """An listener that remembers what it was told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def begin(self, model, duration_s=None, *, captions=()): ...

    def show_message(self, text, *, time=""):
        self.messages.append(f"{text} {time}".rstrip())

    def update(self, progress): ...


class Control:
    """A server that has every model but those in ``missing``."""

    def __init__(self, missing=()) -> None:
        self.missing = missing

    def get_installed(self, model):
        if model in self.missing:
            raise LookupError(model)


class Server:
    def __init__(self, missing=()) -> None:
        self.control = Control(missing)


def samples_of(workload: Workload, settings: SimulatorSettings) -> tuple:
    """Fire ``workload`` at a simulator and return its samples; seconds of it take milliseconds of ours."""
    recorder = SampleRecorder()

    async def load() -> None:
        async with open_simulated_backend(settings) as backend:
            await execute_load(workload, backend, recorder)

    trio.run(load, clock=trio.testing.MockClock(autojump_threshold=0))
    return recorder.get_samples()


@dataclass
class VirtualBench:
    """Fires each load at a simulator of ``settings`` that has the model loaded, unless the load is a cold one.

    ``at`` may give other settings for a load; ``spoil`` changes its run.
    """

    sim: SimulatorSettings
    settings: Settings
    at: Callable[[Workload, int], SimulatorSettings] | None = None
    spoil: Callable[[Run], Run] = lambda run: run
    fired: list[Workload] = field(default_factory=list)
    fresh: list[bool] = field(default_factory=list)
    servers: tuple = (Server(),)
    partial_run: Run | None = None

    def resolve_workload(self, workload, servers=()):
        return workload

    def compute_wait_s(self):
        return 0.0

    def measure(self, workload, test, *, fresh, listener, servers=(), precondition=None):
        self.fired.append(workload)
        self.fresh.append(fresh)
        sim = self.at(workload, len(self.fired)) if self.at else self.sim
        if not workload.cold:
            sim = msgspec.structs.replace(sim, load_time_s=0.0)
        sim = msgspec.structs.replace(sim, seed=len(self.fired))
        number = next(NUMBERS)
        loaded = ModelState(loaded=True, size=10, size_vram=10, context_length=workload.num_ctx, digest=workload.model)
        return self.spoil(
            Run(
                id=f"run{number}",
                test=test,
                session=f"session{number}",
                started_at=1_790_000_000.0 + 100 * number,
                workload=msgspec.structs.replace(workload, salt=f"salt{number}"),
                fingerprint=Fingerprint(server_version="0.32.15", model=workload.model, model_digest=workload.model),
                samples=samples_of(msgspec.structs.replace(workload, salt=f"salt{number}"), sim),
                before={URL: ModelState() if workload.cold else loaded},
                after={URL: loaded},
            )
        )


@dataclass
class Conducted:
    """An experiment that was conducted: its trial, the result a test would hold, and what was fired for it."""

    trial: Evaluation
    result: object
    harness: VirtualBench
    listener: Listening

    @property
    def finding(self):
        return self.trial.findings[0]


class Host:
    """Where results live outside pytest."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def record(self, test, trial): ...

    def raise_if_failed(self, test, trial): ...


def settings_of(**words) -> SimulatorSettings:
    return SimulatorSettings(**{**EXACT, **words})


def conducted(read, words, sim: SimulatorSettings, *, folder="", settings=None, **bench) -> Conducted:
    """Read ``words`` as a marker's and conduct what they ask for, in virtual time."""
    settings = settings or Settings(store=str(folder) if folder else "/nonexistent/history", model="m")
    experiment = read(words, settings)
    doubled = VirtualBench(sim, settings, **bench)
    listener = Listening()
    past = RunHistory(settings, experiment.gating)
    trial = experiment.run(ExperimentContext(doubled, past, listener), TEST)
    past.close()
    return Conducted(trial, experiment.result(Host(settings), TEST, lambda: trial), doubled, listener)
