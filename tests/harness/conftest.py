"""Servers for cluster tests: three simulators for a whole module, and pytest runs that see nothing but them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

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
def run(pytester, monkeypatch):
    """Run pytest on a source; the outcome has the report's one test as ``test``."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("COLUMNS", "80")

    def run(source, urls, *arguments):
        pytester.makepyfile(test_it="import pytest\n" + textwrap.dedent(source))
        plugins = ["-p", "pytest_ollama_perf.plugin", "-p", "no:cacheprovider", "--ollama-report=json:report.json"]
        given = [f"--ollama-url={url}" for url in urls]
        result = pytester.runpytest_subprocess(*plugins, *given, *arguments)
        report = Path("report.json")
        result.test = json.loads(report.read_text(encoding="utf-8"))["tests"][0] if report.exists() else None
        return result

    return run
