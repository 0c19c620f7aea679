"""Servers for cluster tests: three simulators for a whole module, and pytest runs that see nothing but them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from pytest_runs import RunSource

from pytest_ollama_perf.simulator.process import start_simulator
from pytest_ollama_perf.simulator.url import read_settings

QUICK = {"load_time": 0, "overhead": 0, "prefill_tps": 20_000, "run_jitter": 0, "token_jitter": 0, "models": "tiny"}


@pytest.fixture(scope="module")
def three() -> Iterator[list[str]]:
    """The URLs of three servers alike, with two slots of 500 tokens/s each."""
    with ExitStack() as stack:
        settings = read_settings({**QUICK, "tps": 500, "scaling": 1, "slots": 2})
        yield [stack.enter_context(start_simulator(settings)).url for _ in range(3)]


@pytest.fixture
def slow_to_load() -> Iterator[list[str]]:
    """The URLs of three servers that need a quarter of a second to load a model."""
    with ExitStack() as stack:
        settings = read_settings({**QUICK, "tps": 500, "scaling": 1, "slots": 2, "load_time": 0.25})
        yield [stack.enter_context(start_simulator(settings)).url for _ in range(3)]


@pytest.fixture
def run(run_source: RunSource) -> Callable[..., Any]:
    """Run pytest on a source against servers; the outcome has the report's one test as ``test``."""

    def run(source: str, urls: list[str], *arguments: str) -> Any:
        result = run_source(source, *(f"--ollama-url={url}" for url in urls), *arguments)
        result.test = result.tests[0] if result.tests else None
        return result

    return run
