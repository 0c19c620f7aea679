"""The result of a load as tests use it. It reads its numbers from an evaluation, which is measured on first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from pytest_ollama_perf.analysis.load_profile import Servers, ServerSummary
from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.config.load_spec import parse_limits
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.sample import Sample
from pytest_ollama_perf.core.text import suggest_match
from pytest_ollama_perf.core.verdict import Verdict
from pytest_ollama_perf.harness.evaluation import Evaluation, evaluate_run
from pytest_ollama_perf.metrics import METRICS, Shape
from pytest_ollama_perf.metrics.summary import MetricSummary, Summary

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pytest_ollama_perf.config.option_types import LimitOptions


Measure = Callable[[], Evaluation]
"""Returns the evaluation of an experiment, and measures it on the first call."""


class EvaluationRecorder(Protocol):
    """Keeps the evaluations of tests and fails the running test if a verdict demands it."""

    @property
    def settings(self) -> Settings:
        """The settings of the session."""

    def record(self, test: str, evaluation: Evaluation) -> None:
        """Keep an evaluation of ``test`` for the reports."""

    def raise_if_failed(self, test: str, evaluation: Evaluation) -> None:
        """Fail the running test if the verdict demands it."""


class LoadMetrics:
    """The metrics of one load as attributes.

    Metrics with one value for the run are floats; the others are summaries with statistics, such as ``ttft.p95``.
    Times are in seconds, rates per second, shares from 0 to 1. A metric that the load does not have, such as the TTFT
    of embeddings, raises ``AttributeError``.
    """

    @property
    def summary(self) -> Summary:
        """All numbers of the load."""
        raise NotImplementedError

    @property
    def metrics(self) -> dict[str, MetricSummary]:
        """Every metric that this load has, by name."""
        return self.summary.metrics

    def metric(self, name: str) -> MetricSummary:
        """Return the summary of one metric, including statistics and confidence intervals."""
        if name in self.summary.metrics:
            return self.summary.metrics[name]
        if name not in METRICS:
            raise ConfigError(f"no metric '{name}'{suggest_match(name, METRICS)} (valid: {', '.join(METRICS)})")
        raise AttributeError(f"this load has no {name}: {METRICS[name].help}")

    def _get_value(self, name: str) -> float:
        value = self.metric(name).value
        if value is None:
            raise AttributeError(f"this load has no value of {name}: {METRICS[name].help}")
        return value

    @property
    def tps(self) -> float:
        """Tokens/s of a request while it decodes, by the server's counters."""
        return self._get_value("tps")

    @property
    def prefill_tps(self) -> float:
        """Prompt tokens/s, without cached tokens."""
        return self._get_value("prefill_tps")

    @property
    def throughput(self) -> float:
        """Tokens/s of all clients together while all of them are busy."""
        return self._get_value("throughput")

    @property
    def throughput_whole(self) -> float:
        """Tokens/s of all clients together over the whole run."""
        return self._get_value("throughput_whole")

    @property
    def qps(self) -> float:
        """Completed requests/s."""
        return self._get_value("qps")

    @property
    def goodput(self) -> float:
        """Requests/s that met every limit on a time."""
        return self._get_value("goodput")

    @property
    def error_rate(self) -> float:
        """Failed requests over all requests."""
        return self._get_value("error_rate")

    @property
    def gpu_memory(self) -> float:
        """Highest GPU memory in use, in bytes."""
        return self._get_value("gpu_memory")

    @property
    def gpu_temperature(self) -> float:
        """Highest temperature of a GPU, in degrees Celsius."""
        return self._get_value("gpu_temperature")

    @property
    def joules_per_token(self) -> float:
        """Energy of all GPUs over generated tokens."""
        return self._get_value("joules_per_token")

    @property
    def ttft(self) -> MetricSummary:
        """Time to first token."""
        return self.metric("ttft")

    @property
    def ttfa(self) -> MetricSummary:
        """Time to the first token of the answer of a thinking model."""
        return self.metric("ttfa")

    @property
    def tpot(self) -> MetricSummary:
        """Time per output token, by the server's counters."""
        return self.metric("tpot")

    @property
    def itl(self) -> MetricSummary:
        """Time between two chunks."""
        return self.metric("itl")

    @property
    def latency(self) -> MetricSummary:
        """Time from sending a request, or its scheduled time, to its end."""
        return self.metric("latency")

    @property
    def queue(self) -> MetricSummary:
        """Time that requests waited on the server."""
        return self.metric("queue")

    @property
    def load_time(self) -> MetricSummary:
        """Time that loading the model took."""
        return self.metric("load_time")

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Raise the error of a property, or suggest the name that was meant."""
            member = getattr(type(self), name, None)
            if isinstance(member, property):
                return member.fget(self)
            if name in METRICS:  # added by another plugin
                found = self.metric(name)
                return found if METRICS[name].shape is Shape.PER_REQUEST else found.value
            raise AttributeError(f"a load's result has no '{name}'{suggest_match(name, METRICS)}")


class LoadResult(LoadMetrics):
    """One measured load: its verdict, its metrics as attributes, and its samples."""

    def __init__(self, recorder: EvaluationRecorder, test: str, measure: Measure) -> None:
        self._recorder, self._test, self._measure = recorder, test, measure

    @property
    def verdict(self) -> Verdict:
        """The verdict on the load."""
        return self._measure().verdict

    @property
    def run(self) -> Run:
        """The run: the last one if the verdict needed several."""
        return self._measure().loads[-1].run

    @property
    def summary(self) -> Summary:
        """All numbers of the run."""
        return self._measure().loads[-1].summary

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The measured samples; ``run.samples`` also has those of the warm-up."""
        return self.run.measured

    @property
    def servers(self) -> tuple[ServerSummary, ...]:
        """The share of each of several servers, in the order given; empty with one server."""
        found = next((found for found in self._measure().findings if isinstance(found, Servers)), None)
        return found.servers if found else ()

    def check(self, **limits: Unpack[LimitOptions]) -> Verdict:
        """Check this load against more limits, written as on the marker, and fail the test if one is broken."""
        evaluation = evaluate_run(self.run, parse_limits(limits), strict=self._recorder.settings.strict)
        self._recorder.record(self._test, Evaluation(evaluation.verdict))
        self._recorder.raise_if_failed(self._test, evaluation)
        return evaluation.verdict

    def __repr__(self) -> str:
        return f"<LoadResult {self.verdict.status.value}: {self.verdict.reason}>"


def bind_evaluation(evaluation: Evaluation) -> Measure:
    """Return a function that returns ``evaluation``, for results of what is already measured."""
    return lambda: evaluation
