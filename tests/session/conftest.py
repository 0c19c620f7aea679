"""Pytest runs inside the tests: one simulator for a whole module, and runs whose output is all there is to see."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpcore  # noqa: F401
import pytest
from child_process import ChildProcess
from pytest_runs import ARGUMENTS, start_fast_simulator

# What an inner run in this process imports must be here before it: pytester forgets modules that came with the run.
from pytest_ollama_perf.analysis import client_checks, validity
from pytest_ollama_perf.simulator.process import RunningSimulator


@pytest.fixture(scope="module")
def sim() -> Iterator[RunningSimulator]:
    """A simulator that answers without delay; every module has a separate one."""
    with start_fast_simulator(models="tiny,mid,embed") as running:
        yield running


class Outcome:
    """What one run of pytest left behind."""

    def __init__(self, result: pytest.RunResult, report: Path) -> None:
        self.result, self._report = result, report
        self.status = int(result.ret)
        self.out = "\n".join(result.outlines)
        self.err = "\n".join(result.errlines)

    @property
    def counts(self) -> dict[str, int]:
        return {word: count for word, count in self.result.parseoutcomes().items() if word not in {"warnings"}}

    @property
    def report(self) -> dict[str, Any]:
        return json.loads(self._report.read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    @property
    def has_report(self) -> bool:
        return self._report.exists()

    @property
    def section(self) -> list[str]:
        """The lines of the section after the run."""
        lines = self.out.splitlines()
        starts = [at for at, line in enumerate(lines) if re.fullmatch(r"=+ ollama =+", line)]
        if not starts:
            return []
        after = range(starts[-1] + 1, len(lines))
        end = next(at for at in after if lines[at].startswith("===="))
        return lines[starts[-1] + 1 : end]

    def failure(self, test: str) -> list[str]:
        """The lines under a test's headline among the failures."""
        lines = self.out.splitlines()
        at = next(at for at, line in enumerate(lines) if re.fullmatch(rf"_+ {re.escape(test)} _+", line))
        end = next(end for end in range(at + 1, len(lines)) if re.match(r"(___|===)", lines[end]))
        return lines[at + 1 : end]


class Perf:
    """Runs pytest on a test file, with this plugin and those that are asked for alone."""

    def __init__(self, pytester: pytest.Pytester, url: str) -> None:
        self._pytester, self.url = pytester, url
        self.path = pytester.path

    def write(self, source: str, **files: str) -> None:
        self._pytester.makepyfile(test_it="import pytest\n" + textwrap.dedent(source))
        for name, text in files.items():
            self._pytester.makefile(".ini" if name == "pytest" else ".py", **{name: text})

    def run(self, *arguments: str, url: str | None = None) -> Outcome:
        result = self._pytester.runpytest_inprocess(*self.arguments(*arguments, url=url))
        return Outcome(result, self.path / "report.json")

    def arguments(self, *arguments: str, url: str | None = None) -> list[str]:
        where = self.url if url is None else url
        asked = [f"--ollama-url={where}"] if where else []
        return [*ARGUMENTS, *asked, *arguments]

    def start(self, *arguments: str) -> ChildProcess:
        """Start a run in a separate process, which gets signals as a terminal would send them."""
        return ChildProcess([sys.executable, "-m", "pytest", *self.arguments(*arguments)], cwd=self.path)


@pytest.fixture
def make_perf(isolated_pytester: pytest.Pytester) -> Callable[[str], Perf]:
    """Make a runner against the server at a URL."""
    return lambda url: Perf(isolated_pytester, url)


@pytest.fixture
def perf(make_perf: Callable[[str], Perf], sim: RunningSimulator, monkeypatch: pytest.MonkeyPatch) -> Perf:
    """A runner against the simulator of this module.

    Its loads of some milliseconds are rightly invalid where other processes hog the machine; here they may.
    """
    calm = tuple(check for check in validity._CHECKS if check.__module__ != client_checks.__name__)
    monkeypatch.setattr(validity, "_CHECKS", calm)
    return make_perf(sim.url)
