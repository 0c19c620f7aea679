"""A folder to run pytest in beside other plugins, and the server it measures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_runs import Run

from pytest_ollama_perf.simulator.process import RunningSimulator, start_simulator
from pytest_ollama_perf.simulator.url import read_settings


@pytest.fixture(scope="session")
def sim() -> Iterator[RunningSimulator]:
    """A simulator that answers at once."""
    words = {"slots": 4, "tps": 4000, "prefill_tps": 100_000, "load_time": 0, "overhead": 0, "models": "tiny"}
    with start_simulator(read_settings(words)) as running:
        yield running


@pytest.fixture
def run(tmp_path: Path, sim: RunningSimulator) -> Run:
    return Run(tmp_path, sim.url)
