"""The plain load: the marker ``ollama_load``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_ollama_perf.client.waiting import call_with_ticks
from pytest_ollama_perf.config.load_spec import LoadSpec, build_load_spec, list_option_names
from pytest_ollama_perf.config.settings import Settings
from pytest_ollama_perf.core.errors import ServerError
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.workload import Timeouts, Workload
from pytest_ollama_perf.experiments.results import EvaluationRecorder, LoadResult, Measure
from pytest_ollama_perf.harness.evaluation import Evaluation, ExperimentContext, run_load
from pytest_ollama_perf.harness.harness import Harness, ProgressListener
from pytest_ollama_perf.harness.history import count_gating_pairs
from pytest_ollama_perf.harness.servers import TargetServer

__all__ = ["LoadTest", "list_option_names", "parse_options"]


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
        """Run the load, again if the verdict needs it."""
        return run_load(context, self.spec, test)

    def result(self, recorder: EvaluationRecorder, test: str, measure: Measure) -> LoadResult:
        """Return the value of the fixture ``ollama_load``."""
        return LoadResult(recorder, test, measure)


def parse_options(options: Mapping[str, Any], settings: Settings) -> LoadTest:
    """Parse the marker's arguments; ``ConfigError`` explains what is wrong with them."""
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
                "server keeps fewer loaded (OLLAMA_MAX_LOADED_MODELS, memory): warm up fewer, or one before each test"
            )
