"""Runs of pytest with this plugin inside the tests, and the simulator that most of them measure."""

from __future__ import annotations

import json
import textwrap
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from pytest_ollama_perf.simulator.process import RunningSimulator, start_simulator
from pytest_ollama_perf.simulator.url import read_settings

PLUGIN = ("-p", "pytest_ollama_perf.plugin", "-W", "ignore::pytest.PytestAssertRewriteWarning")
"""Loads this plugin; before pytest 9, a plugin that is imported already causes a warning."""
REPORT = "report.json"
ARGUMENTS = (*PLUGIN, "-p", "no:cacheprovider", f"--ollama-report=json:{REPORT}")
"""The arguments of a run that leaves nothing but its JSON report."""

_FAST = {"slots": 4, "tps": 4000, "prefill_tps": 100_000, "load_time": 0, "overhead": 0, "models": "tiny"}


def start_fast_simulator(**settings: object) -> AbstractContextManager[RunningSimulator]:
    """Start a simulator that answers without delay."""
    return start_simulator(read_settings({**_FAST, **settings}))


def read_tests(folder: Path) -> list[dict[str, Any]]:
    """Return the tests of the JSON report; none if there is no report."""
    report = folder / REPORT
    return json.loads(report.read_bytes())["tests"] if report.exists() else []


class RunSource:
    """Runs pytest on ``test_it.py`` in a child process. The outcome has the tests of the report as ``tests``."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester

    def __call__(self, source: str, *arguments: str) -> Any:
        self._pytester.makepyfile(test_it="import pytest\n" + textwrap.dedent(source))
        result: Any = self._pytester.runpytest_subprocess(*ARGUMENTS, *arguments)
        result.tests = read_tests(self._pytester.path)
        return result
