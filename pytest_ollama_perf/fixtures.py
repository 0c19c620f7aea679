"""What the fixtures give to a test: results of its marker, and the object that runs loads from code."""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import anyio.to_thread
import pytest

from pytest_ollama_perf.experiments import Experiment, load_reader
from pytest_ollama_perf.experiments.results import LoadResult, bind_evaluation

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pytest_ollama_perf.config.option_types import (
        ABOptions,
        ColdStartOptions,
        LoadOptions,
        MaxConcurrencyOptions,
        SweepOptions,
    )
    from pytest_ollama_perf.experiments.experiment_results import ABResult, ColdStartResult, MaxConcurrencyResult
    from pytest_ollama_perf.experiments.sweep_points import SweepResult
    from pytest_ollama_perf.harness.evaluation import Evaluation
    from pytest_ollama_perf.session import Session
    from pytest_ollama_perf.simulator.process import RunningSimulator


STOP_TIMEOUT_S = 3.0

__tracebackhide__ = True  # pytest leaves the frames of this module out of tracebacks


class MarkedExperiment:
    """The experiment of one test's marker. It runs once: before the body of the test, or when its result is used."""

    def __init__(self, session: Session, test: str, experiment: Experiment) -> None:
        self._session, self._test = session, test
        self._experiment = experiment
        self._evaluation: Evaluation | None = None

    @property
    def experiment(self) -> Experiment:
        """The experiment that the marker describes."""
        return self._experiment

    def measure(self) -> Evaluation:
        """Return the evaluation; the first call runs the experiment."""
        if self._evaluation is None:
            self._evaluation = self._session.run(self._experiment, self._test)
        return self._evaluation

    def reset(self) -> None:
        """Let the next ``measure`` run the experiment again, because the test is run again."""
        self._evaluation = None

    def build_result(self) -> Any:
        """Return the value of the fixture with the marker's name."""
        return self._experiment.result(self._session, self._test, self.measure)


class Ollama:
    """Runs loads and experiments from code, with the arguments of the marker of the same name.

    With ``check=True``, the default, a failing verdict fails the test. With ``check=False`` it is only part of
    the result. Wrong arguments raise ``ConfigError``.
    """

    def __init__(self, session: Session, test: str) -> None:
        self._session, self._test = session, test

    @property
    def url(self) -> str:
        """The URL of the first server."""
        return self._session.url

    def load(self, *, check: bool = True, **options: Unpack[LoadOptions]) -> LoadResult:
        """Run one load."""
        return cast("LoadResult", self._run("ollama_load", dict(options), check))

    async def aload(self, *, check: bool = True, **options: Unpack[LoadOptions]) -> LoadResult:
        """Like ``load``, for async tests: the load runs in a thread and does not block the event loop."""
        return cast("LoadResult", await self._arun("ollama_load", dict(options), check))

    def sweep(self, *, check: bool = True, **options: Unpack[SweepOptions]) -> SweepResult:
        """Run a load at every level, for example ``sweep(concurrency=[1, 2, 4, 8])``."""
        return cast("SweepResult", self._run("ollama_sweep", dict(options), check))

    async def asweep(self, *, check: bool = True, **options: Unpack[SweepOptions]) -> SweepResult:
        """Like ``sweep``, for async tests."""
        return cast("SweepResult", await self._arun("ollama_sweep", dict(options), check))

    def compare(self, *, check: bool = True, **options: Unpack[ABOptions]) -> ABResult:
        """Compare two sides, for example ``compare(baseline={"model": "a"}, candidate={"model": "b"})``."""
        return cast("ABResult", self._run("ollama_ab", dict(options), check))

    async def acompare(self, *, check: bool = True, **options: Unpack[ABOptions]) -> ABResult:
        """Like ``compare``, for async tests."""
        return cast("ABResult", await self._arun("ollama_ab", dict(options), check))

    def find_max_concurrency(
        self, *, check: bool = True, **options: Unpack[MaxConcurrencyOptions]
    ) -> MaxConcurrencyResult:
        """Find the highest concurrency that meets the limits, for example ``find_max_concurrency(max_latency=5)``."""
        return cast("MaxConcurrencyResult", self._run("ollama_max_concurrency", dict(options), check))

    async def afind_max_concurrency(
        self, *, check: bool = True, **options: Unpack[MaxConcurrencyOptions]
    ) -> MaxConcurrencyResult:
        """Like ``find_max_concurrency``, for async tests."""
        return cast("MaxConcurrencyResult", await self._arun("ollama_max_concurrency", dict(options), check))

    def cold_start(self, *, check: bool = True, **options: Unpack[ColdStartOptions]) -> ColdStartResult:
        """Unload the model and measure its first response, then warm ones, for example ``cold_start(repeats=3)``."""
        return cast("ColdStartResult", self._run("ollama_cold_start", dict(options), check))

    async def acold_start(self, *, check: bool = True, **options: Unpack[ColdStartOptions]) -> ColdStartResult:
        """Like ``cold_start``, for async tests."""
        return cast("ColdStartResult", await self._arun("ollama_cold_start", dict(options), check))

    def warm_up(
        self,
        *models: str,
        num_ctx: int | None = None,
        keep_alive: float | str = "1h",
        timeout_s: float | None = None,
    ) -> dict[str, float]:
        """Load models, or the only model of the server, and return the seconds that each took.

        Raises:
            ServerError: a model cannot be loaded, or does not stay loaded.
        """
        return self._session.warm_up(models, num_ctx=num_ctx, keep_alive=keep_alive, timeout_s=timeout_s)

    def _run(self, marker: str, options: dict[str, Any], check: bool, stop: threading.Event | None = None) -> object:
        read, _ = load_reader(marker)
        experiment = read(options, self._session.settings)
        evaluation = self._session.run(experiment, self._test, check=check, stop=stop)
        if check:
            self._session.raise_if_failed(self._test, evaluation)
        return experiment.result(self._session, self._test, bind_evaluation(evaluation))

    async def _arun(self, marker: str, options: dict[str, Any], check: bool) -> object:
        stop, done = threading.Event(), threading.Event()

        def run() -> object:
            try:
                return self._run(marker, options, check, stop)
            finally:
                done.set()

        try:
            return await anyio.to_thread.run_sync(run, abandon_on_cancel=True)
        except BaseException:
            # a cancelled task may not wait, but what was measured must be recorded before the task continues
            stop.set()
            done.wait(STOP_TIMEOUT_S)
            raise


class WarmUp:
    """Loads models before the first test measures; the value of the fixture ``ollama_warm_up``."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(
        self,
        *models: str,
        num_ctx: int | None = None,
        keep_alive: float | str = "1h",
        timeout_s: float | None = None,
    ) -> dict[str, float]:
        """Load models, or the only model of the server, and return the seconds that each took."""
        return self._session.warm_up(models, num_ctx=num_ctx, keep_alive=keep_alive, timeout_s=timeout_s)


class Simulators(contextlib.AbstractContextManager["Simulators"]):
    """Starts simulated servers and stops them all at the end."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __call__(self, **settings: object) -> RunningSimulator:
        """Start one server; the arguments are the keys of a ``sim:`` URL, for example ``slots=4, tps=80``."""
        from pytest_ollama_perf.simulator.process import start_simulator
        from pytest_ollama_perf.simulator.url import read_settings

        return self._stack.enter_context(start_simulator(read_settings(settings)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def load(**options: Unpack[LoadOptions]) -> pytest.MarkDecorator:
    """Return the marker ``ollama_load``: run a load before the test and check its limits."""
    return pytest.mark.ollama_load.with_args(**options)


def sweep(**options: Unpack[SweepOptions]) -> pytest.MarkDecorator:
    """Return the marker ``ollama_sweep``: run a load at every level."""
    return pytest.mark.ollama_sweep.with_args(**options)


def ab(**options: Unpack[ABOptions]) -> pytest.MarkDecorator:
    """Return the marker ``ollama_ab``: compare two sides."""
    return pytest.mark.ollama_ab.with_args(**options)


def max_concurrency(**options: Unpack[MaxConcurrencyOptions]) -> pytest.MarkDecorator:
    """Return the marker ``ollama_max_concurrency``: find the highest concurrency that meets the limits."""
    return pytest.mark.ollama_max_concurrency.with_args(**options)


def cold_start(**options: Unpack[ColdStartOptions]) -> pytest.MarkDecorator:
    """Return the marker ``ollama_cold_start``: measure the first response after the model was unloaded."""
    return pytest.mark.ollama_cold_start.with_args(**options)
