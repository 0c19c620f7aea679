"""A server that is lost in the middle of an experiment: the loads before it are reported, and the test fails."""

from __future__ import annotations

import json
from pathlib import Path

import httpcore  # noqa: F401
import pytest
from pytest_runs import ARGUMENTS, start_fast_simulator

from pytest_ollama_perf.core import ServerError
from pytest_ollama_perf.harness import Harness

# What an inner run in this process imports must be here before it: pytester forgets modules that came with the run.
from pytest_ollama_perf.report import document, exports, terminal  # noqa: F401

LOAD = "requests=4, num_predict=4, warmup=0"
EXPERIMENTS = {
    "sweep": f"@pytest.mark.ollama_sweep(concurrency=[1, 2], {LOAD}{{limits}})",
    "ab": f"@pytest.mark.ollama_ab(baseline={{{{}}}}, candidate={{{{'num_predict': 5}}}}, {LOAD}{{limits}})",
    "search": f"@pytest.mark.ollama_max_concurrency(max_p95_ttft=9, maximum=2, {LOAD}{{limits}})",
    "cold": "@pytest.mark.ollama_cold_start(repeats=2, requests=2, num_predict=4, max_ratio=1000{limits})",
}


@pytest.fixture
def lost_after_one_load(monkeypatch: pytest.MonkeyPatch) -> None:
    measured, measure = [], Harness.measure

    def fail_later(self, *arguments, **options):
        if measured:
            raise ServerError("the server is gone")
        measured.append(measure(self, *arguments, **options))
        return measured[0]

    monkeypatch.setattr(Harness, "measure", fail_later)


def run_marker(pytester: pytest.Pytester, marker: str) -> dict:
    pytester.makepyfile(test_it=f"import pytest\n\n{marker}\ndef test_it():\n    pass\n")
    with start_fast_simulator(models="tiny") as simulator:
        result = pytester.runpytest_inprocess(*ARGUMENTS, f"--ollama-url={simulator.url}")
    result.assert_outcomes(failed=1)
    (test,) = json.loads(Path(pytester.path / "report.json").read_bytes())["tests"]
    return test


@pytest.mark.usefixtures("lost_after_one_load")
@pytest.mark.parametrize("marker", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_the_loads_before_are_reported(isolated_pytester, marker) -> None:
    test = run_marker(isolated_pytester, marker.format(limits=""))
    assert test["verdict"] == "invalid"
    assert test["reason"] == "stopped after 1 load: the server is gone"
    assert [load["ok"] > 0 for load in test["loads"]] == [True]


@pytest.mark.usefixtures("lost_after_one_load")
def test_a_broken_limit_is_not_hidden(isolated_pytester) -> None:
    test = run_marker(isolated_pytester, EXPERIMENTS["sweep"].format(limits=", max_p50_latency=1e-6"))
    assert test["verdict"] == "broken"
    assert test["reason"].endswith("stopped after 1 load: the server is gone")
