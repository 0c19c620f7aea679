"""Contract files run by pytest inside the tests, against one simulator for a whole module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from contract_runs import Contracts

# What an inner run in this process imports must be here before it: pytester forgets modules that came with the run.
from pytest_ollama_perf.simulator.process import RunningSimulator, start_simulator
from pytest_ollama_perf.simulator.url import read_settings


@pytest.fixture(scope="session")
def sim() -> Iterator[RunningSimulator]:
    """A simulator that answers at once."""
    words = {"slots": 4, "tps": 4000, "prefill_tps": 100_000, "load_time": 0, "overhead": 0, "models": "tiny"}
    with start_simulator(read_settings(words)) as running:
        yield running


@pytest.fixture
def contracts(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, sim: RunningSimulator) -> Contracts:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("COLUMNS", "80")
    return Contracts(pytester, sim.url)
