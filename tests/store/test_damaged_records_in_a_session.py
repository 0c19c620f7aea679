"""What a pytest run says about a history that it can read only in part."""

from __future__ import annotations

from pathlib import Path

import pytest

SUITE = """
import pytest

@pytest.mark.ollama_load(requests=5, num_predict=8)
def test_speed():
    pass
"""
OPTIONS = (
    "--ollama-url=sim:?tps=800&load_time=0",
    "--ollama-max-runs=1",
    "--ollama-margin=tps=900%",  # a busy machine slows the simulator down
    "--ollama-margin=ttft=900%",
)


@pytest.fixture
def history(pytester: pytest.Pytester) -> Path:
    """The folder of a test with two saved runs."""
    pytester.makepyfile(test_perf=SUITE)
    for _ in range(2):
        pytester.runpytest_subprocess("-q", "--ollama-save", *OPTIONS).assert_outcomes(passed=1)
    return next(pytester.path.glob(".ollama-perf/test_speed-*"))


def test_a_damaged_run_is_named_in_quiet_runs_and_in_junit(pytester: pytest.Pytester, history: Path) -> None:
    victim = sorted(history.glob("2*.json"))[0]
    victim.write_text("{}")
    result = pytester.runpytest_subprocess("-q", "--junitxml=junit.xml", *OPTIONS)
    assert result.ret == 0
    assert victim.name in result.stdout.str()
    junit = (pytester.path / "junit.xml").read_text()
    assert "ollama.damaged_history" in junit
    assert victim.name in junit


@pytest.mark.parametrize("content", ["{}", '{"schema": 9}'])
def test_an_unreadable_acceptance_fails_the_test(pytester: pytest.Pytester, history: Path, content: str) -> None:
    (history / "epochs").mkdir()
    acceptance = history / "epochs" / "20261120T205836.123456Z-0123456789abcdef.json"
    acceptance.write_text(content)
    result = pytester.runpytest_subprocess("-q", "--junitxml=junit.xml", *OPTIONS)
    assert result.ret == 1
    assert acceptance.name in result.stdout.str()
    assert acceptance.name in (pytester.path / "junit.xml").read_text()
