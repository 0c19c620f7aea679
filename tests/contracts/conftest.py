"""Contract files run by pytest inside the tests, against one simulator for a whole module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from contract_runs import Contracts
from pytest_runs import start_fast_simulator

from pytest_ollama_perf.simulator.process import RunningSimulator


@pytest.fixture(scope="session")
def sim() -> Iterator[RunningSimulator]:
    """A simulator that answers without delay."""
    with start_fast_simulator() as running:
        yield running


@pytest.fixture
def contracts(isolated_pytester: pytest.Pytester, sim: RunningSimulator) -> Contracts:
    return Contracts(isolated_pytester, sim.url)
