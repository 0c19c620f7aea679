"""The plain load: the marker ``ollama_load``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pytest_ollama_perf.analysis.load_profile import Servers, ServerSummary
from pytest_ollama_perf.client.waiting import call_with_ticks
from pytest_ollama_perf.config.load_spec import LoadSpec, build_load_spec, list_option_names, parse_limits
from pytest_ollama_perf.config.settings import Settings
from pytest_ollama_perf.core.errors import ConfigError, ServerError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.sample import Sample
from pytest_ollama_perf.core.text import sanitize, suggest_match
from pytest_ollama_perf.core.verdict import Verdict
from pytest_ollama_perf.core.workload import Timeouts, Workload
from pytest_ollama_perf.harness.evaluation import Evaluation, ExperimentContext, evaluate_run, run_load
from pytest_ollama_perf.harness.harness import Harness, ProgressListener
from pytest_ollama_perf.harness.history import count_gating_pairs
from pytest_ollama_perf.harness.servers import TargetServer
from pytest_ollama_perf.metrics.definitions import METRICS, Shape
from pytest_ollama_perf.metrics.summary import MetricSummary, Summary

__all__ = ["LoadResult", "LoadTest", "list_option_names", "parse_options"]


class EvaluationRecorder(Protocol):
    """Where results live: whoever runs the tests keeps trials and fails the running test where one is bad."""

    @property
    def settings(self) -> Settings: ...

    def record(self, test: str, evaluation: Evaluation) -> None: ...

    def raise_if_failed(self, test: str, evaluation: Evaluation) -> None: ...


class LoadResult:
    """One measured load.

    Every metric is an attribute: those with one value for the run are floats (``tps``, ``throughput``, ``qps``,
    ``error_rate``), the others have statistics (``ttft.p95``, ``latency.mean``), seconds throughout. ``metric("tps")``
    gives the summary of any metric, statistics and intervals included. A metric that does not exist for this load (TTFT
    of embeddings) raises ``AttributeError``.
    """

    def __init__(self, recorder: EvaluationRecorder, test: str, evaluation: Evaluation) -> None:
        self._host, self._test = recorder, test
        self.verdict: Verdict = evaluation.verdict
        self.run: Run = evaluation.loads[-1].run
        self.summary: Summary = evaluation.loads[-1].summary
        self._servers = next((found for found in evaluation.findings if isinstance(found, Servers)), None)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The measured samples; ``run.samples`` has the warm-up, too."""
        return self.run.measured

    @property
    def servers(self) -> tuple[ServerSummary, ...]:
        """What each of several servers did, in the order given; nothing where there was one."""
        return self._servers.servers if self._servers else ()

    @property
    def metrics(self) -> dict[str, MetricSummary]:
        """Every metric that exists for this load, by name."""
        return self.summary.metrics

    def metric(self, name: str) -> MetricSummary:
        """Return the summary of one metric."""
        if name not in METRICS:
            raise ConfigError(f"no metric '{name}'{suggest_match(name, METRICS)} (valid: {', '.join(METRICS)})")
        if name not in self.summary.metrics:
            raise AttributeError(f"this load has no {name}: {METRICS[name].help}")
        return self.summary.metrics[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in METRICS:
            raise AttributeError(f"a load's result has no '{name}'{suggest_match(name, METRICS)}")
        found = self.metric(name)
        return found if METRICS[name].shape is Shape.PER_REQUEST else found.value

    def check(self, **limits: Any) -> Verdict:
        """Hold this load against more limits (words as on the marker) and fail the test where one is broken."""
        evaluation = evaluate_run(self.run, parse_limits(limits), strict=self._host.settings.strict)
        self._host.record(self._test, Evaluation(evaluation.verdict))
        self._host.raise_if_failed(self._test, evaluation)
        return evaluation.verdict

    def __repr__(self) -> str:
        return f"<Result {self.verdict.word.value}: {self.verdict.reason}>"


@dataclass(frozen=True)
class LoadTest:
    """One load, judged by its limits and its history."""

    spec: LoadSpec

    @property
    def models(self) -> tuple[str, ...]:
        """The models that the load needs."""
        return (self.spec.workload.model,)

    @property
    def gating(self) -> int:
        """The number of pairs (test, metric) that history can gate."""
        return count_gating_pairs(self.spec.margins)

    def run(self, context: ExperimentContext, test: str) -> Evaluation:
        """Fire the load, again where the verdict asks for it."""
        return run_load(context, self.spec, test)

    def result(self, recorder: EvaluationRecorder, test: str, evaluation: Evaluation) -> LoadResult:
        """Return the result that the fixture ``ollama_load`` stands for."""
        return LoadResult(recorder, test, evaluation)


def parse_options(options: Mapping[str, Any], settings: Settings) -> LoadTest:
    """Read the marker's words; ``ConfigError`` says what is wrong with them."""
    return LoadTest(build_load_spec(options, default_model=settings.model))


def warm_up(
    harness: Harness,
    models: Sequence[str],
    listener: ProgressListener,
    *,
    num_ctx: int | None = None,
    keep_alive: str | float = "1h",
    timeout_s: float | None = None,
) -> dict[str, float]:
    """Load ``models`` on every server and return how many seconds each took there, the slowest server's.

    A model that is loaded already takes milliseconds and gets the new ``keep_alive``. Pass the same ``num_ctx`` as the
    loads do: with a different one the server reloads the model at the first request.

    Raises:
        ServerError: a model cannot be loaded, or one is gone again when the last was loaded.
    """
    names = [harness.resolve_workload(Workload(model=model)).model for model in models or ("",)]
    harness.remember_models()
    took: dict[str, float] = {}
    for model in names:
        for server in harness.servers:
            seconds = _load_model(server, model, listener, num_ctx, keep_alive, timeout_s)
            took[model] = max(seconds, took.get(model, 0.0))
    for server in harness.servers:
        _check_all_loaded(server, names)
    return took


def _load_model(
    server: TargetServer,
    model: str,
    listener: ProgressListener,
    num_ctx: int | None,
    keep_alive: str | float,
    timeout_s: float | None,
) -> float:
    server.control.get_installed(model)
    listener.show_message(f"warming up {model}")
    return call_with_ticks(
        lambda: server.control.load(
            model, keep_alive=keep_alive, num_ctx=num_ctx, timeout_s=timeout_s or Timeouts().total_s
        ),
        lambda seconds: listener.show_message(f"warming up {model} ... {seconds:.0f} s"),
    )


def _check_all_loaded(server: TargetServer, models: Sequence[str]) -> None:
    for model in models:
        if server.control.find_running(model) is None:
            others = ", ".join(sanitize(other, 60) for other in models if other != model)
            raise ServerError(
                f"warm_up: {sanitize(model, 60)} is no longer loaded on {server.name} once {others or 'it'} is; the "
                "server holds fewer at once (OLLAMA_MAX_LOADED_MODELS, memory): warm up fewer, or one before each test"
            )
