"""The result of a load, as a test holds it in its hands."""

from __future__ import annotations

from typing import Any, Protocol

from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.finding.servers import ServerNumbers, Servers
from pytest_ollama_perf.marks import read_limits
from pytest_ollama_perf.metric import METRICS, Shape
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.sample import Sample
from pytest_ollama_perf.settings import Settings
from pytest_ollama_perf.summary import MetricSummary, Summary
from pytest_ollama_perf.trial import Trial, judge
from pytest_ollama_perf.verdict.words import Verdict
from pytest_ollama_perf.words import did_you_mean


class Host(Protocol):
    """Where results live: whoever runs the tests keeps trials and fails the running test where one is bad."""

    @property
    def settings(self) -> Settings: ...

    def keep(self, test: str, trial: Trial) -> None: ...

    def fail_if_bad(self, test: str, trial: Trial) -> None: ...


class Result:
    """One measured load.

    Every metric is an attribute: those with one value for the run are floats (``tps``, ``throughput``, ``qps``,
    ``error_rate``), the others have statistics (``ttft.p95``, ``latency.mean``), seconds throughout. ``metric("tps")``
    gives the summary of any metric, statistics and intervals included. A metric that does not exist for this load (TTFT
    of embeddings) raises ``AttributeError``.
    """

    def __init__(self, host: Host, test: str, trial: Trial) -> None:
        self._host, self._test = host, test
        self.verdict: Verdict = trial.verdict
        self.run: Run = trial.loads[-1].run
        self.summary: Summary = trial.loads[-1].summary
        self._servers = next((found for found in trial.findings if isinstance(found, Servers)), None)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The measured samples; ``run.samples`` has the warm-up, too."""
        return self.run.measured

    @property
    def servers(self) -> tuple[ServerNumbers, ...]:
        """What each of several servers did, in the order given; nothing where there was one."""
        return self._servers.servers if self._servers else ()

    @property
    def metrics(self) -> dict[str, MetricSummary]:
        """Every metric that exists for this load, by name."""
        return self.summary.metrics

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
        trial = judge(self.run, read_limits(limits), strict=self._host.settings.strict)
        self._host.keep(self._test, Trial(trial.verdict))
        self._host.fail_if_bad(self._test, trial)
        return trial.verdict

    def __repr__(self) -> str:
        return f"<Result {self.verdict.word.value}: {self.verdict.reason}>"
