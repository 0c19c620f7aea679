"""Contract files run by pytest inside the tests, against one simulator for a whole module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from contract_runs import Contracts

# What an inner run in this process imports must be here before it: pytester forgets modules that came with the run.
import pytest_ollama_perf.api
import pytest_ollama_perf.collect
import pytest_ollama_perf.contract.shared
import pytest_ollama_perf.experiment.bearable
import pytest_ollama_perf.experiment.cold
import pytest_ollama_perf.experiment.sweep
import pytest_ollama_perf.report.failure
import pytest_ollama_perf.report.json_report
import pytest_ollama_perf.report.progress
import pytest_ollama_perf.report.terminal
import pytest_ollama_perf.room
import pytest_ollama_perf.store
import pytest_ollama_perf.trial  # noqa: F401
from pytest_ollama_perf.simulator.process import RunningSimulator, start
from pytest_ollama_perf.simulator.url import read_settings


@pytest.fixture(scope="session")
def sim() -> Iterator[RunningSimulator]:
    """A simulator that answers at once."""
    words = {"slots": 4, "tps": 4000, "prefill_tps": 100_000, "load_time": 0, "overhead": 0, "models": "tiny"}
    with start(read_settings(words)) as running:
        yield running


@pytest.fixture
def contracts(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, sim: RunningSimulator) -> Contracts:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("COLUMNS", "80")
    return Contracts(pytester, sim.url)
