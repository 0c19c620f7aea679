"""The experiments: what a marker or a line of code can ask for, each conducted with the instruments of a ``Lab``.

``READERS`` is the one list of markers: each names the function that reads its words.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pytest_ollama_perf.experiment.result import Host
    from pytest_ollama_perf.settings import Settings
    from pytest_ollama_perf.trial import Lab, Trial

READERS: Mapping[str, str] = {
    "ollama_load": "pytest_ollama_perf.experiment.load",
    "ollama_ab": "pytest_ollama_perf.experiment.ab",
    "ollama_sweep": "pytest_ollama_perf.experiment.sweep",
    "ollama_max_concurrency": "pytest_ollama_perf.experiment.bearable",
    "ollama_cold_start": "pytest_ollama_perf.experiment.cold",
}
"""Marker name -> module with ``read(words, settings) -> Experiment`` and ``known_words() -> tuple[str, ...]``."""


class Experiment(Protocol):
    """What one marker asks for. ``models`` it needs; ``gating`` pairs (test, metric) it may be judged by history in."""

    @property
    def models(self) -> tuple[str, ...]: ...

    @property
    def gating(self) -> int: ...

    def conduct(self, lab: Lab, test: str) -> Trial:
        """Measure and judge.

        Raises:
            OllamaPerfError: nothing could be measured.
        """

    def present(self, host: Host, test: str, trial: Trial) -> Any:
        """Return what the fixture of the marker's name gives to the test."""


def reader(marker: str) -> tuple[Callable[[Mapping[str, Any], Settings], Experiment], tuple[str, ...]]:
    """Return the function that reads the marker's words, and the words it knows."""
    module = importlib.import_module(READERS[marker])
    return module.read, module.known_words()


def other_urls(experiment: Experiment) -> tuple[str, ...]:
    """Return the servers, beside those under test, that an experiment names in its ``urls``; most have none."""
    return tuple(getattr(experiment, "urls", ()))
