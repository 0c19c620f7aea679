"""Every experiment against every way in which a server, a proxy or the network fails.

Whatever happens, the session ends by itself, every test has a result in the report, and no test passes without data.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from child_process import ChildProcess
from pytest_runs import PLUGIN

from pytest_ollama_perf.simulator.process import start_simulator
from pytest_ollama_perf.simulator.url import read_settings

FAST = {"slots": 4, "tps": 2000, "prefill_tps": 100_000, "load_time": 0, "models": "tiny"}
API_KEY = "sk-fault-catalogue-0123456789"
SESSION_LIMIT_S = 150
"""A session that takes longer hangs: all its timeouts together are far below."""

TESTS = """
    import pytest

    LOAD = dict(num_predict=4, warmup=1, timeout={"connect": 1, "first_token": 1, "idle": 1, "total": 2}, drain=1)

    @pytest.mark.ollama_load(concurrency=2, requests=6, **LOAD)
    def test_load():
        pass

    @pytest.mark.ollama_load(rate=20, duration="500ms", **LOAD)
    def test_rate():
        pass

    @pytest.mark.ollama_sweep(concurrency=[1, 2], requests=4, **LOAD)
    def test_sweep():
        pass

    @pytest.mark.ollama_ab(baseline={}, candidate={"num_predict": 5}, requests=2, max_regression="80%", **LOAD)
    def test_ab():
        pass

    @pytest.mark.ollama_cold_start(repeats=1, requests=2, num_predict=4, max_ratio=1000, timeout=2)
    def test_cold_start():
        pass
"""

CONTRACT = """
    schema = 1

    [model.tiny]
    requests = 6
    num_predict = 4
    timeout = 2
    tps = ">= 1"
    latency = "p50 <= 10s"
"""
RESULTS = 6
"""Five tests and the load of the contract."""

FAULTS = (
    "http_500",
    "http_500@every2",
    "busy",
    "drop:0",
    "drop:2@every2",
    "error:2",
    "truncate:2",
    "garbage:1",
    "crash:2@every3",
    "stall:30@every7",
    "stall:30:2@every7",
    "eos:1",
    "evict",
    "slow:5@every2",
    "buffer:0.3",
    "burst:5",
    "hold:0.62@p0.5",
    "counters:1000",
    "html",
    "html@every2",
    "reset:0.8@every5",
    "refuse:1@3",
    "refuse:600@4",
    "trickle:0.1@every7",
    "echo_key",
    "control_html",
    "control_html@every5",
)


class Session:
    """A session of pytest in a process of its own, with what it wrote."""

    def __init__(self, folder: Path, url: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "pytest", *PLUGIN, "-p", "no:cacheprovider", f"--ollama-url={url}"]
        command += ["--ollama-report=json:report.json", *arguments]
        with ChildProcess(command, cwd=folder) as child:
            try:
                self.out = child.communicate(timeout=SESSION_LIMIT_S)[0]
            except subprocess.TimeoutExpired:
                child.kill()
                raise AssertionError(f"the session hangs:\n{child.communicate()[0]}") from None
            self.status = child.returncode
        self._path = folder / "report.json"

    @property
    def report(self) -> list[dict[str, Any]]:
        assert self._path.exists(), self.out
        return json.loads(self._path.read_text(encoding="utf-8"))["tests"]


def run_catalogue(folder: Path, fault: str, *arguments: str) -> Session:
    (folder / "test_it.py").write_text(textwrap.dedent(TESTS))
    (folder / "it.ollama.toml").write_text(textwrap.dedent(CONTRACT))
    with start_simulator(read_settings({**FAST, "fault": fault})) as simulator:
        return Session(folder, simulator.url, *arguments)


def has_data(test: dict[str, Any]) -> bool:
    return any(load["ok"] for load in test["loads"])


@pytest.fixture(autouse=True)
def only_this_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("OLLAMA_API_KEY", API_KEY)


QUICK_FAULTS = {"html@every2", "refuse:1@3", "echo_key"}


@pytest.mark.timeout(SESSION_LIMIT_S + 60)
@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=() if fault in QUICK_FAULTS else pytest.mark.exhaustive) for fault in FAULTS]
)
def test_every_experiment_survives(tmp_path: Path, fault: str) -> None:
    found = run_catalogue(tmp_path, fault)
    assert found.status in {0, 1}, found.out
    assert "INTERNALERROR" not in found.out, found.out
    assert "Traceback" not in found.out, found.out
    assert len(found.report) == RESULTS, found.out
    passed = [test for test in found.report if test["verdict"] in {"ok", "faster", "new", "unsure"}]
    assert [test["test"] for test in passed if not has_data(test)] == [], found.out
    assert API_KEY not in found.out + json.dumps(found.report)


@pytest.mark.timeout(SESSION_LIMIT_S + 60)
@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", ["html", "busy", "refuse:600@1", "drop:0", "reset:0@1-", "counters:1000000"])
def test_no_test_passes_where_no_request_succeeds(tmp_path: Path, fault: str) -> None:
    found = run_catalogue(tmp_path, fault)
    assert found.status == 1, found.out
    assert [test["test"] for test in found.report if test["verdict"] in {"ok", "faster", "new", "unsure"}] == [], (
        found.out
    )


@pytest.mark.exhaustive
@pytest.mark.timeout(SESSION_LIMIT_S + 60)
def test_control_answers_that_trickle_end_in_an_error_of_the_tests(tmp_path: Path) -> None:
    found = run_catalogue(tmp_path, "control_trickle:0.2", "-k", "test_load")
    assert found.status == 1, found.out
    assert "INTERNALERROR" not in found.out, found.out
    assert len(found.report) == 1, found.out
