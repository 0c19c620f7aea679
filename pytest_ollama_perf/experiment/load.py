"""The plain load: the marker ``ollama_load``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_ollama_perf.experiment.result import Host, Result
from pytest_ollama_perf.marks import LoadSpec, known_words, load_spec
from pytest_ollama_perf.past import gating_pairs
from pytest_ollama_perf.settings import Settings
from pytest_ollama_perf.trial import Lab, Trial, conduct

__all__ = ["LoadTest", "known_words", "read"]


@dataclass(frozen=True)
class LoadTest:
    """One load, judged by its limits and its history."""

    spec: LoadSpec

    @property
    def models(self) -> tuple[str, ...]:
        return (self.spec.workload.model,)

    @property
    def gating(self) -> int:
        return gating_pairs(self.spec.margins)

    def conduct(self, lab: Lab, test: str) -> Trial:
        """Fire the load, again where the verdict asks for it."""
        return conduct(lab, self.spec, test)

    def present(self, host: Host, test: str, trial: Trial) -> Result:
        """Return the result that the fixture ``ollama_load`` stands for."""
        return Result(host, test, trial)


def read(words: Mapping[str, Any], settings: Settings) -> LoadTest:
    """Read the marker's words; ``ConfigError`` says what is wrong with them."""
    return LoadTest(load_spec(words, default_model=settings.model))
