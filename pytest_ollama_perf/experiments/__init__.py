"""The experiments: what a marker or a call runs, each in an ``ExperimentContext``.

``EXPERIMENT_MODULES`` names, for each marker of ``config.markers``, the module that parses its arguments.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pytest_ollama_perf.config import Settings
    from pytest_ollama_perf.experiments.results import EvaluationRecorder, Measure
    from pytest_ollama_perf.harness.evaluation import Evaluation, ExperimentContext


EXPERIMENT_MODULES: Mapping[str, str] = {
    "ollama_load": "pytest_ollama_perf.experiments.load",
    "ollama_ab": "pytest_ollama_perf.experiments.ab",
    "ollama_sweep": "pytest_ollama_perf.experiments.sweep",
    "ollama_max_concurrency": "pytest_ollama_perf.experiments.capacity",
    "ollama_cold_start": "pytest_ollama_perf.experiments.cold_start",
}
"""Marker name -> module with ``parse_options(options, settings)`` and ``list_option_names()``."""


class Experiment(Protocol):
    """What one marker runs."""

    @property
    def models(self) -> tuple[str, ...]:
        """The models that the experiment needs."""

    @property
    def gating(self) -> int:
        """The number of pairs (test, metric) that history can gate."""

    def run(self, context: ExperimentContext, test: str) -> Evaluation:
        """Measure and judge.

        Raises:
            OllamaPerfError: nothing could be measured.
        """

    def result(self, recorder: EvaluationRecorder, test: str, measure: Measure) -> Any:
        """Return what the fixture of the marker's name gives to the test."""


def load_reader(marker: str) -> tuple[Callable[[Mapping[str, Any], Settings], Experiment], tuple[str, ...]]:
    """Return the function that parses the marker's arguments, and the names of the arguments."""
    module = importlib.import_module(EXPERIMENT_MODULES[marker])
    return module.parse_options, module.list_option_names()


def list_other_urls(experiment: Experiment) -> tuple[str, ...]:
    """Return the servers of an experiment in addition to those under test (its ``urls``); most have none."""
    return tuple(getattr(experiment, "urls", ()))
