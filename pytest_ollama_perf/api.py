"""What a test holds in its hands: the result of a load, and the object that fires loads from code."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.marks import LoadSpec, load_spec, read_limits
from pytest_ollama_perf.metric import METRICS, Shape
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.sample import Sample
from pytest_ollama_perf.summary import MetricSummary, Summary
from pytest_ollama_perf.trial import Trial, judge
from pytest_ollama_perf.verdict.words import Verdict
from pytest_ollama_perf.words import did_you_mean

if TYPE_CHECKING:
    from pytest_ollama_perf.room import Room
    from pytest_ollama_perf.simulator.process import RunningSimulator


class Result:
    """One measured load.

    Every metric is an attribute: those with one value for the run are floats (``tps``, ``throughput``, ``qps``,
    ``error_rate``), the others have statistics (``ttft.p95``, ``latency.mean``), seconds throughout. ``metric("tps")``
    gives the summary of any metric, statistics and intervals included. A metric that does not exist for this load (TTFT
    of embeddings) raises ``AttributeError``.
    """

    def __init__(self, room: Room, test: str, trial: Trial) -> None:
        self._room, self._test = room, test
        self.verdict: Verdict = trial.verdict
        self.run: Run = trial.loads[-1].run
        self.summary: Summary = trial.loads[-1].summary

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The measured samples; ``run.samples`` has the warm-up, too."""
        return self.run.measured

    def metric(self, name: str) -> MetricSummary:
        """Return the summary of one metric."""
        if name not in METRICS:
            raise ConfigError(f"no metric '{name}'{did_you_mean(name, METRICS)} (valid: {', '.join(METRICS)})")
        if name not in self.summary.metrics:
            raise AttributeError(f"this load has no {name}: {METRICS[name].help}")
        return self.summary.metrics[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in METRICS:
            raise AttributeError(f"a load's result has no '{name}'{did_you_mean(name, METRICS)}")
        found = self.metric(name)
        return found if METRICS[name].shape is Shape.PER_REQUEST else found.value

    def check(self, **limits: Any) -> Verdict:
        """Hold this load against more limits (words as on the marker) and fail the test where one is broken."""
        trial = judge(self.run, read_limits(limits), strict=self._room.settings.strict)
        self._room.keep(self._test, Trial(trial.verdict))
        self._room.fail_if_bad(self._test, trial)
        return trial.verdict

    def __repr__(self) -> str:
        return f"<Result {self.verdict.word.value}: {self.verdict.reason}>"


class MarkedLoad:
    """The load of one test's marker. Measured once, before the test's body or at the first question, whichever is first;
    then it answers as its ``Result``."""

    def __init__(self, room: Room, test: str, spec: LoadSpec) -> None:
        self._room, self._test, self._spec = room, test, spec
        self._trial: Trial | None = None

    def measure(self) -> Trial:
        """Fire the load, unless that has been done."""
        if self._trial is None:
            self._trial = self._room.conduct(self._spec, self._test)
        return self._trial

    def forget(self) -> None:
        """Let the next ``measure`` fire again: the test is being run another time."""
        self._trial = None

    @property
    def spec(self) -> LoadSpec:
        """What the marker asks for."""
        return self._spec

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(Result(self._room, self._test, self.measure()), name)


class Ollama:
    """Fires loads from code."""

    def __init__(self, room: Room, test: str) -> None:
        self._room, self._test = room, test

    @property
    def url(self) -> str:
        """The URL of the (first) server."""
        return self._room.url()

    def load(self, *, check: bool = True, **words: Any) -> Result:
        """Fire one load and return its result; the words are those of the marker.

        With ``check`` (the default) a verdict that fails - a broken limit, an error where ``max_error_rate`` is not
        raised, numbers that cannot be trusted - fails the test at once; without, it only stands in the result.

        Raises:
            ConfigError: a word or value is wrong.
        """
        spec = load_spec(words, default_model=self._room.settings.model)
        trial = self._room.conduct(spec, self._test, check=check)
        if check:
            self._room.fail_if_bad(self._test, trial)
        return Result(self._room, self._test, trial)

    async def aload(self, *, check: bool = True, **words: Any) -> Result:
        """``load`` for async tests on any event loop; the load runs in a thread of its own, so this loop stays free."""
        return await anyio.to_thread.run_sync(lambda: self.load(check=check, **words))


class Simulators(contextlib.AbstractContextManager["Simulators"]):
    """Starts simulated servers and stops them all at the end."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __call__(self, **settings: Any) -> RunningSimulator:
        """Start one; the words are the keys of a ``sim:`` URL, for example ``slots=4, tps=80``."""
        from pytest_ollama_perf.simulator.process import start
        from pytest_ollama_perf.simulator.url import read_settings

        return self._stack.enter_context(start(read_settings(settings)))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)
