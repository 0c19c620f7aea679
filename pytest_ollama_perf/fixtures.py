"""What a test holds in its hands: the answer of its marker, and the object that fires loads from code."""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from pytest_ollama_perf.experiments import Experiment, load_reader
from pytest_ollama_perf.experiments.load import LoadResult

if TYPE_CHECKING:
    from pytest_ollama_perf.experiments.ab import ABResult
    from pytest_ollama_perf.experiments.capacity import MaxConcurrencyResult
    from pytest_ollama_perf.experiments.cold_start import ColdStartResult
    from pytest_ollama_perf.experiments.sweep_points import SweepResult
    from pytest_ollama_perf.harness.evaluation import Evaluation
    from pytest_ollama_perf.session import Session
    from pytest_ollama_perf.simulator.process import RunningSimulator


STOP_TIMEOUT_S = 3.0

__tracebackhide__ = True  # pytest leaves the frames of this module out of tracebacks


class MarkedExperiment:
    """What one test's marker asks for. Conducted once, before the test's body or at the first question, whichever is
    first; then it answers as the result of its experiment."""

    def __init__(self, room: Session, test: str, experiment: Experiment) -> None:
        self._session, self._test = room, test
        self._experiment = experiment
        self._trial: Evaluation | None = None

    @property
    def experiment(self) -> Experiment:
        """What the marker asks for."""
        return self._experiment

    def measure(self) -> Evaluation:
        """Conduct the experiment, unless that has been done."""
        if self._trial is None:
            self._trial = self._session.run(self._experiment, self._test)
        return self._trial

    def reset(self) -> None:
        """Let the next ``measure`` start anew: the test is being run another time."""
        self._trial = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._experiment.result(self._session, self._test, self.measure()), name)


class Ollama:
    """Fires loads and experiments from code. Words are those of the marker of the same name.

    With ``check`` (the default) a verdict that fails - a broken limit, an error where ``max_error_rate`` is not raised,
    numbers that cannot be trusted - fails the test at once; without, it only stands in the result. Wrong words raise
    ``ConfigError``.
    """

    def __init__(self, room: Session, test: str) -> None:
        self._session, self._test = room, test

    @property
    def url(self) -> str:
        """The URL of the (first) server."""
        return self._session.url

    def load(self, *, check: bool = True, **words: Any) -> LoadResult:
        """Fire one load and return its result."""
        return self._run("ollama_load", words, check)  # type: ignore[no-any-return]

    async def aload(self, *, check: bool = True, **words: Any) -> LoadResult:
        """``load`` for async tests on any event loop; the load runs in a thread of its own, so this loop stays free."""
        return await self._arun("ollama_load", words, check)  # type: ignore[no-any-return]

    def sweep(self, *, check: bool = True, **words: Any) -> SweepResult:
        """Fire one load at every level, for example ``sweep(concurrency=[1, 2, 4, 8])``, and return what that shows."""
        return self._run("ollama_sweep", words, check)  # type: ignore[no-any-return]

    async def asweep(self, *, check: bool = True, **words: Any) -> SweepResult:
        """``sweep`` for async tests, as ``aload`` is for ``load``."""
        return await self._arun("ollama_sweep", words, check)  # type: ignore[no-any-return]

    def compare(self, *, check: bool = True, **words: Any) -> ABResult:
        """Measure two sides in turn, for example ``compare(baseline={"model": "a"}, candidate={"model": "b"})``."""
        return self._run("ollama_ab", words, check)  # type: ignore[no-any-return]

    async def acompare(self, *, check: bool = True, **words: Any) -> ABResult:
        """``compare`` for async tests, as ``aload`` is for ``load``."""
        return await self._arun("ollama_ab", words, check)  # type: ignore[no-any-return]

    def find_max_concurrency(self, *, check: bool = True, **words: Any) -> MaxConcurrencyResult:
        """Find the largest concurrency that is borne, for example ``find_max_concurrency(max_latency=5)``."""
        return self._run("ollama_max_concurrency", words, check)  # type: ignore[no-any-return]

    async def afind_max_concurrency(self, *, check: bool = True, **words: Any) -> MaxConcurrencyResult:
        """``find_max_concurrency`` for async tests, as ``aload`` is for ``load``."""
        return await self._arun("ollama_max_concurrency", words, check)  # type: ignore[no-any-return]

    def cold_start(self, *, check: bool = True, **words: Any) -> ColdStartResult:
        """Unload the model, time its first answer and then warm ones, for example ``cold_start(repeats=3)``."""
        return self._run("ollama_cold_start", words, check)  # type: ignore[no-any-return]

    async def acold_start(self, *, check: bool = True, **words: Any) -> ColdStartResult:
        """``cold_start`` for async tests, as ``aload`` is for ``load``."""
        return await self._arun("ollama_cold_start", words, check)  # type: ignore[no-any-return]

    def warm_up(self, *models: str, **words: Any) -> dict[str, float]:
        """Load models before anything is measured and return the seconds each took; without names, the only one.

        Words: ``num_ctx``, ``keep_alive`` (1h), ``timeout_s``. ``ServerError`` where one cannot be loaded or kept.
        """
        return self._session.warm_up(models, **words)

    def _run(self, marker: str, words: dict[str, Any], check: bool, stop: threading.Event | None = None) -> Any:
        read, _ = load_reader(marker)
        experiment = read(words, self._session.settings)
        trial = self._session.run(experiment, self._test, check=check, stop=stop)
        if check:
            self._session.raise_if_failed(self._test, trial)
        return experiment.result(self._session, self._test, trial)

    async def _arun(self, marker: str, words: dict[str, Any], check: bool) -> Any:
        stop, done = threading.Event(), threading.Event()

        def conduct() -> Any:
            try:
                return self._run(marker, words, check, stop)
            finally:
                done.set()

        try:
            return await anyio.to_thread.run_sync(conduct, abandon_on_cancel=True)
        except BaseException:
            # A cancelled task cannot be relied on to wait, and what was measured must be kept before it goes on.
            stop.set()
            done.wait(STOP_TIMEOUT_S)
            raise


class Simulators(contextlib.AbstractContextManager["Simulators"]):
    """Starts simulated servers and stops them all at the end."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __call__(self, **settings: Any) -> RunningSimulator:
        """Start one; the words are the keys of a ``sim:`` URL, for example ``slots=4, tps=80``."""
        from pytest_ollama_perf.simulator.process import start_simulator
        from pytest_ollama_perf.simulator.url import read_settings

        return self._stack.enter_context(start_simulator(read_settings(settings)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
