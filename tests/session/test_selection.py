"""Tests that use a server carry one marker; they can be skipped, selected, or skipped when no server answers."""

from __future__ import annotations

import socket

import pytest

from pytest_ollama_perf.analysis import validity
from pytest_ollama_perf.core.verdict import Problem, ProblemCode

SUITE = """
LOAD = dict(model="tiny", requests=2, warmup=0, num_predict=2)

@pytest.fixture
def client(request):
    return request.getfixturevalue("ollama")

@pytest.fixture(scope="session")
def warm(ollama_warm_up):
    return ollama_warm_up("tiny")

@pytest.mark.ollama_load(**LOAD)
def test_marker():
    pass

@pytest.mark.ollama_sweep(concurrency=[1, 2], model="tiny", requests=2, warmup=0, num_predict=2)
def test_sweep():
    pass

def test_code(ollama):
    ollama.load(**LOAD)

@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.ollama_load(**LOAD))])
def test_parameter(n):
    pass

def test_url(ollama_url):
    import urllib.request
    urllib.request.urlopen(ollama_url)

def test_warm(warm):
    pass

def test_hidden(client):
    client.load(**LOAD)

def test_plain():
    pass
"""
CONTRACT = """
schema = 1
[model.tiny]
concurrency = 1
requests = 2
warmup = 0
num_predict = 2
"""


@pytest.fixture
def suite(perf):
    perf.write(SUITE)
    (perf.path / "c.ollama.toml").write_text(CONTRACT, encoding="utf-8")
    return perf


def find_free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_skip_leaves_no_test_that_uses_a_server(suite, sim) -> None:
    sim.reset()
    outcome = suite.run("--ollama-skip", "test_it.py", "c.ollama.toml")
    assert outcome.counts == {"passed": 1, "skipped": 8}, outcome.out
    assert sim.requests() == []


def test_the_umbrella_marker_selects_every_test_that_names_a_load(suite) -> None:
    outcome = suite.run("-m", "not ollama", "--collect-only", "-q", "test_it.py", "c.ollama.toml")
    assert [line for line in outcome.out.splitlines() if "::" in line] == [
        "test_it.py::test_hidden",
        "test_it.py::test_plain",
    ]


def test_only_deselects_the_others(suite) -> None:
    outcome = suite.run("--ollama-only", "--collect-only", "-q", "test_it.py")
    assert "test_it.py::test_plain" not in outcome.out
    assert "test_it.py::test_marker" in outcome.out


def test_skip_and_only_contradict_each_other(suite) -> None:
    assert suite.run("--ollama-only", "--ollama-skip").status == pytest.ExitCode.USAGE_ERROR


@pytest.mark.parametrize("how", ["option", "ini"])
def test_without_a_server_load_tests_are_skipped_when_asked(suite, how: str) -> None:
    given = ["--ollama-unreachable=skip"] if how == "option" else ["-o", "ollama_unreachable=skip"]
    outcome = suite.run(*given, "test_it.py", "c.ollama.toml", url=f"127.0.0.1:{find_free_port()}")
    assert outcome.counts == {"passed": 1, "skipped": 8}, outcome.out
    assert outcome.status == 0


def test_without_a_server_load_tests_fail_by_default(perf) -> None:
    perf.write("""
        def test_code(ollama):
            ollama.load(model="tiny")
    """)
    assert perf.run(url=f"127.0.0.1:{find_free_port()}").counts == {"failed": 1}


@pytest.mark.parametrize(("action", "counts"), [("skip", {"skipped": 2}), ("fail", {"failed": 2})])
def test_an_invalid_measurement_is_skipped_when_asked(perf, monkeypatch, action: str, counts: dict[str, int]) -> None:
    problem = Problem(code=ProblemCode.PARTIAL_OFFLOAD, text="for the test", invalidates=True)
    monkeypatch.setattr(validity, "_CHECKS", (lambda run, summary: [problem],))
    perf.write("""
        WORDS = dict(model="tiny", requests=4, warmup=1, num_predict=2)

        @pytest.mark.ollama_load(**WORDS, min_tps=0.001)
        def test_marker():
            raise AssertionError("the body fails too")

        def test_code(ollama):
            ollama.load(**WORDS)
    """)
    outcome = perf.run(f"--ollama-invalid={action}", "--ollama-max-runs=1")
    assert outcome.counts == counts, outcome.out
    assert {test["verdict"] for test in outcome.report["tests"]} == {"invalid"}
