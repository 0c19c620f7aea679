"""A folder to run pytest in with other plugins, and the server it measures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_runs import Run
from pytest_runs import start_fast_simulator

from pytest_ollama_perf.simulator.process import RunningSimulator


@pytest.fixture(scope="session")
def sim() -> Iterator[RunningSimulator]:
    """A simulator that answers without delay."""
    with start_fast_simulator() as running:
        yield running


@pytest.fixture
def run(tmp_path: Path, sim: RunningSimulator) -> Run:
    return Run(tmp_path, sim.url)
