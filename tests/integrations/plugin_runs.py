"""Runs of pytest beside other plugins, each in a process of its own with exactly the plugins that a test names."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from child_process import ChildProcess

LOAD = "model='tiny', requests=8, warmup=0, num_predict=4"
SIM = "sim:?tps=4000&prefill_tps=100000&load_time=0&overhead=0&models=tiny"
PLUGINS = {
    "xdist": ("xdist", "xdist.looponfail"),
    "rerunfailures": ("pytest_rerunfailures",),
    "timeout": ("pytest_timeout",),
    "randomly": ("pytest_randomly",),
    "html": ("pytest_metadata.plugin", "pytest_html.plugin"),
    "cov": ("pytest_cov.plugin",),
    "asyncio": ("pytest_asyncio.plugin",),
    "anyio": ("anyio.pytest_plugin",),
    "freezegun": (),
    "reportlog": ("pytest_reportlog.plugin",),
    "allure": ("allure_pytest.plugin",),
    "repeat": ("pytest_repeat",),
    "flaky": ("flaky.flaky_pytest_plugin",),
    "benchmark": ("pytest_benchmark.plugin",),
}
MODULES = {"benchmark": "pytest_benchmark", "allure": "allure_pytest"}


def needs(*neighbours: str) -> pytest.MarkDecorator:
    """Skip a test where a neighbour is not installed."""
    missing = [name for name in neighbours if not _is_there(name)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def _is_there(neighbour: str) -> bool:
    modules = [MODULES.get(neighbour, ""), *PLUGINS[neighbour]] if PLUGINS[neighbour] else [neighbour]
    return all(importlib.util.find_spec(module.partition(".")[0]) for module in modules if module)


class Ran:
    """What one run left behind."""

    def __init__(self, folder: Path, status: int, out: str) -> None:
        self.folder, self.status, self.out = folder, status, out

    @property
    def tests(self) -> list[dict[str, Any]]:
        """The tests of the JSON report, in its order."""
        written = self.folder / "report.json"
        assert written.exists(), self.out
        return json.loads(written.read_bytes())["tests"]  # type: ignore[no-any-return]

    @property
    def verdicts(self) -> dict[str, str]:
        return {test["test"].removeprefix("test_it.py::"): test["verdict"] for test in self.tests}

    @property
    def windows(self) -> list[tuple[int, int]]:
        """When each load sent its first request and had its last answer, by time."""
        loads = [load["samples"] for test in self.tests for load in test["loads"]]
        return sorted((min(one["sent_ns"] for one in load), max(one["done_ns"] for one in load)) for load in loads)


def apart(windows: list[tuple[int, int]]) -> bool:
    """Whether no load began before the one before it had ended."""
    return all(one[1] <= other[0] for one, other in pairwise(windows))


class Run:
    """Runs pytest on ``test_it.py`` with this plugin and those that are named."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url

    def write(self, source: str, **files: str) -> None:
        head = f"import pytest\nload = pytest.mark.ollama_load({LOAD})\n"
        (self.folder / "test_it.py").write_text(head + textwrap.dedent(source), encoding="utf-8")
        for name, text in files.items():
            (self.folder / f"{name}.py").write_text(textwrap.dedent(text), encoding="utf-8")

    def __call__(self, *arguments: str, beside: tuple[str, ...] = (), url: str | None = None) -> Ran:
        with self.start(*arguments, beside=beside, url=url) as process:
            out, _ = process.communicate(timeout=60)
        return Ran(self.folder, process.returncode, out)

    def start(self, *arguments: str, beside: tuple[str, ...] = (), url: str | None = None) -> ChildProcess:
        plugins = ["pytest_ollama_perf.plugin", *(module for name in beside for module in PLUGINS[name])]
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
        command += [word for module in plugins for word in ("-p", module)]
        command += [f"--ollama-url={url or self.url}", "--ollama-report=json:report.json", "-c", "pytest.ini"]
        (self.folder / "pytest.ini").touch()
        # pytest-benchmark is off in a worker of pytest-xdist, which the inner run is not.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
        environment = {**inherited, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        return ChildProcess([*command, *arguments], cwd=self.folder, env=environment)
