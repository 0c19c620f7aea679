"""What has to be registered in several places is registered in all of them."""

from __future__ import annotations

from pytest_ollama_perf.config.markers import MARKERS
from pytest_ollama_perf.experiments import EXPERIMENT_MODULES
from pytest_ollama_perf.integrations.payload import FINDING_TYPES
from pytest_ollama_perf.report.experiments import FINDING_RENDERERS


def test_every_finding_that_can_be_shown_can_be_sent_between_processes() -> None:
    assert set(FINDING_TYPES) == set(FINDING_RENDERERS)


def test_every_marker_has_a_module() -> None:
    assert sorted(EXPERIMENT_MODULES) == sorted(MARKERS)
