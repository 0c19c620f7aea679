"""Sweep, search and cold start from the command line to text and report: on a simulator, and on the real server."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_runs import read_tests

from pytest_ollama_perf.simulator.process import start_simulator
from pytest_ollama_perf.simulator.url import read_settings

UNHURRIED = {"slots": 2, "tps": 100, "prefill_tps": 400, "load_time": "500ms", "models": "tiny,mid"}
"""Slow enough that a busy machine's client is none of the trouble: 0.1 s to the first token."""


@pytest.fixture(scope="module")
def url():
    with start_simulator(read_settings(UNHURRIED)) as running:
        yield running.url


def report():
    return {test["test"].rpartition("::")[2]: test for test in read_tests(Path())}


EXPERIMENTS = """
    LOAD = dict(num_predict=6, warmup=2)

    @pytest.fixture(scope="session", autouse=True)
    def warm(ollama_warm_up):
        took = ollama_warm_up("tiny", "mid", num_ctx=2048)
        assert list(took) == ["tiny", "mid"]

    @pytest.mark.ollama_sweep(concurrency=[1, 2, 4], requests=8, max_error_rate=0, **LOAD)
    def test_sweep(ollama_sweep):
        assert [level.concurrency for level in ollama_sweep.levels] == [1, 2, 4]
        assert ollama_sweep.level(concurrency=2).error_rate == 0
        assert ollama_sweep.knee.concurrency in (1, 2, 4)
        assert ollama_sweep.slots == 2

    @pytest.mark.anyio
    async def test_from_async_code(ollama):
        sweep = await ollama.asweep(num_predict=[4, 8], requests=4, warmup=1, check=False)
        assert [level.num_predict for level in sweep.levels] == [4, 8]

    @pytest.mark.ollama_max_concurrency(max_ttft=0.22, maximum=4, requests=10, min_concurrency=4, repeats=1, **LOAD)
    def test_search(ollama_max_concurrency):
        assert 1 <= ollama_max_concurrency.concurrency < 4

    def test_cold(ollama):
        found = ollama.cold_start(repeats=2, requests=3, num_predict=6, max_load_time=30, max_ratio=1000)
        assert 0.25 <= found.load_time < found.cold_ttft
        assert found.warm_ttft < found.cold_ttft
        assert found.cold[0].samples[0].counters.load_duration_ns > 200_000_000

    @pytest.mark.ollama_cold_start(repeats=1, requests=2, num_predict=6, max_load_time="1ms")
    def test_cold_limit():
        pass

    @pytest.fixture
    def anyio_backend():
        return "asyncio"
"""


def test_experiments_run_from_markers_and_from_code(run_source, url):
    result = run_source(EXPERIMENTS, "-p", "anyio", f"--ollama-url={url}", "--ollama-model=tiny")
    out = result.stdout.str()
    assert result.parseoutcomes() == {"passed": 3, "failed": 2}, out
    found = report()
    assert {name.partition("[")[0]: test["verdict"] for name, test in found.items()} == {
        "test_sweep": "ok",
        "test_from_async_code": "ok",
        "test_search": "broken",
        "test_cold": "ok",
        "test_cold_limit": "broken",
    }
    (sweep,) = found["test_sweep"]["findings"]
    assert [level["ok"] for level in sweep["curves"][0]["levels"]] == [8, 8, 8]
    assert len(found["test_sweep"]["loads"]) == 3
    (search,) = found["test_search"]["findings"]
    assert (search["kind"], search["breach"]["metric"]) == ("max_concurrency", "ttft")
    assert found["test_cold_limit"]["reason"].endswith("limit <= 1 ms")
    cold = [load for load in found["test_cold"]["loads"] if load["workload"]["cold"]]
    assert [(len(load["samples"]), load["warmup"]) for load in cold] == [(1, 0), (1, 0)]
    assert not any(state.get("loaded", False) for load in cold for state in load["before"].values())
    assert all(load["fingerprint"]["context_length"] == 4096 for load in cold)
    section = [line for line in out[out.rindex("= ollama =") :].splitlines() if "--basetemp=" not in line]
    assert max(map(len, section)) <= 80


def test_words_are_read_before_the_first_test(run_source):
    result = run_source(
        """
        @pytest.mark.ollama_sweep(concurrency=4)
        def test_a():
            pass

        @pytest.mark.ollama_max_concurrency(min_concurrency=100)
        def test_b():
            pass

        def test_c(ollama_cold_start):
            pass
        """,
        "--ollama-url=http://127.0.0.1:9",
    )
    told = result.stderr.str()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "test_it.py::test_a: a sweep needs a list: concurrency=[1, 2, 4, 8]" in told
    assert "test_it.py::test_b: min_concurrency=100: it is above maximum=64; raise maximum" in told
    assert "test_it.py::test_c: uses the fixture ollama_cold_start without the marker" in told


def test_the_markers_explain_themselves(run_source):
    out = run_source("", "--markers").stdout.str()
    for marker in (
        "ollama_sweep(concurrency=[1, 2, 4, 8], min_knee=4)",
        "ollama_max_concurrency(",
        "ollama_cold_start(",
    ):
        assert f"@pytest.mark.{marker}" in out


REAL = """
    LOAD = dict(model="tiny", num_ctx=1024)

    @pytest.mark.ollama_sweep(concurrency=[1, 2], requests=10, num_predict=32, **LOAD)
    def test_sweep(ollama_sweep):
        assert [level.success_rate for level in ollama_sweep.levels] == [1.0, 1.0]
        assert ollama_sweep.best.throughput > 10

    @pytest.mark.ollama_sweep(num_predict=[8, 32], requests=5, single=False, **LOAD)
    def test_lengths(ollama_sweep):
        short, long = ollama_sweep.levels
        assert (short.row.output_tokens, long.row.output_tokens) == (40, 160)

    @pytest.mark.ollama_max_concurrency(max_latency=60, maximum=2, requests=8, min_concurrency=2, **LOAD)
    def test_search(ollama_max_concurrency):
        assert ollama_max_concurrency.concurrency == 2
        assert ollama_max_concurrency.breach is None

    @pytest.mark.ollama_cold_start(repeats=2, requests=3, num_predict=16, max_load_time=60, **LOAD)
    def test_cold(ollama_cold_start):
        assert ollama_cold_start.cold_ttft > ollama_cold_start.warm_ttft
        assert ollama_cold_start.load_time >= 0.2
"""


@pytest.mark.real_server
def test_every_experiment_runs_on_the_real_server(run_source, real_server):
    result = run_source(REAL, "-p", "anyio", f"--ollama-url={real_server}")
    assert result.parseoutcomes() == {"passed": 4}, result.stdout.str()
    found = report()
    assert {test["verdict"] for test in found.values()} == {"ok"}
    cold = [load for load in found["test_cold"]["loads"] if load["workload"]["cold"]]
    assert all(not state.get("loaded", False) for load in cold for state in load["before"].values())
    assert all(state["loaded"] for load in cold for state in load["after"].values())
