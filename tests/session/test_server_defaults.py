"""A load sends only the options that the test sets: the server's own context, sampling and thinking are measured."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from pytest_ollama_perf.simulator.process import RunningSimulator, start_simulator
from pytest_ollama_perf.simulator.url import parse_sim_url

LOAD = "model='tiny', requests=20, warmup=1, num_predict=4"
CALM = "--ollama-margin=ttft=1000%"


def list_running(simulator: RunningSimulator) -> list[dict[str, Any]]:
    with urllib.request.urlopen(simulator.url + "/api/ps") as answer:
        return json.load(answer)["models"]


def get_context_length(simulator: RunningSimulator) -> list[int]:
    return [model["context_length"] for model in list_running(simulator)]


def load_by_hand(simulator: RunningSimulator, **fields: object) -> None:
    body = json.dumps({"model": "tiny", **fields}).encode()
    urllib.request.urlopen(urllib.request.Request(simulator.url + "/api/generate", data=body)).read()


@pytest.fixture
def server_8192():
    with start_simulator(parse_sim_url("sim:?num_ctx=8192")) as simulator:
        yield simulator


def write_load(perf, words: str = "") -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD}{words})
        def test_it():
            pass
    """)


def test_the_servers_default_context_is_measured_recorded_and_left_as_it_is(perf, server_8192) -> None:
    load_by_hand(server_8192)
    write_load(perf)
    found = perf.run(url=server_8192.url)
    load = found.report["tests"][0]["loads"][0]
    assert found.counts == {"passed": 1}
    assert load["fingerprint"]["context_length"] == 8192
    assert load.get("load_time_s") is None, "the model that was loaded has been loaded again"
    assert get_context_length(server_8192) == [8192]


def test_a_context_that_the_test_sets_is_sent(perf, server_8192) -> None:
    write_load(perf, ", num_ctx=1024")
    load = perf.run(url=server_8192.url).report["tests"][0]["loads"][0]
    assert (load["workload"]["num_ctx"], load["fingerprint"]["context_length"]) == (1024, 1024)
    assert get_context_length(server_8192) == [1024]


def test_none_leaves_the_context_to_the_server_again(perf, server_8192) -> None:
    perf.write(f"""
        pytestmark = pytest.mark.ollama_load({LOAD}, num_ctx=1024)

        @pytest.mark.ollama_load(num_ctx=None, temperature=None, seed=None, think=None)
        def test_it():
            pass
    """)
    found = perf.run(url=server_8192.url)
    assert found.counts == {"passed": 1}
    assert get_context_length(server_8192) == [8192]


def test_warming_up_loads_with_the_options_of_the_loads(perf, server_8192) -> None:
    perf.write(f"""
        def test_it(ollama_warm_up, ollama):
            ollama_warm_up("tiny")
            ollama.load({LOAD})
    """)
    load = perf.run(url=server_8192.url).report["tests"][0]["loads"][0]
    assert load.get("load_time_s") is None, "the load has loaded the model again"


def is_kept_forever(simulator: RunningSimulator) -> bool:
    return all(model["expires_at"] > "2200" for model in list_running(simulator))


def test_a_model_that_was_loaded_before_is_restored_with_its_context_and_keep_alive(perf, server_8192) -> None:
    load_by_hand(server_8192, keep_alive=-1, options={"num_ctx": 2048})
    write_load(perf, ", num_ctx=1024, keep_alive='1m'")
    assert perf.run(url=server_8192.url).counts == {"passed": 1}
    assert get_context_length(server_8192) == [2048]
    assert is_kept_forever(server_8192)


def test_a_keep_alive_that_was_longer_is_restored_without_loading_the_model(perf, server_8192) -> None:
    load_by_hand(server_8192, keep_alive=-1)
    write_load(perf)
    load = perf.run(url=server_8192.url).report["tests"][0]["loads"][0]
    assert load.get("load_time_s") is None
    assert is_kept_forever(server_8192)


def test_a_model_that_the_test_pinned_is_unloaded_at_the_end(perf, server_8192) -> None:
    write_load(perf, ", keep_alive=-1")
    assert perf.run(url=server_8192.url).counts == {"passed": 1}
    assert list_running(server_8192) == []


def test_a_model_that_was_not_loaded_expires_as_after_any_request(perf, server_8192) -> None:
    load_by_hand(server_8192, model="small", keep_alive=-1)
    write_load(perf)
    assert perf.run(url=server_8192.url).counts == {"passed": 1}
    assert {model["name"] for model in list_running(server_8192)} == {"tiny:latest", "small:latest"}
    assert not is_kept_forever(server_8192)


def test_a_larger_default_context_that_slows_the_server_regresses_and_is_named(perf) -> None:
    """The default changed under the test: that is a reason for a slower server, not another load."""
    small, large = (
        f"sim:?load_time=0&models=one&{more}" for more in ("num_ctx=4096&tps=4000", "num_ctx=32768&tps=800")
    )
    perf.write("""
        @pytest.mark.ollama_load(requests=20, warmup=1, num_predict=8, max_regression="20%")
        def test_it():
            pass
    """)
    for _ in range(3):
        assert perf.run("--ollama-save", CALM, url=small).counts == {"passed": 1}
    found = perf.run(CALM, url=large)
    assert found.counts == {"failed": 1}
    assert found.report["tests"][0]["verdict"] == "regressed"
    assert "num_ctx 4096 -> 32768" in found.out


def test_a_model_that_thinks_by_default_does_so_and_the_report_says_it(perf) -> None:
    perf.write("""
        @pytest.mark.ollama_load(model="qwen3:4b", endpoint="chat", requests=4, warmup=0, num_predict=40)
        def test_default():
            pass

        @pytest.mark.ollama_load(model="qwen3:4b", endpoint="chat", requests=4, warmup=0, num_predict=40, think=False)
        def test_off():
            pass
    """)
    found = perf.run(url="sim:?tps=800")
    default, off = (test["loads"][0] for test in found.report["tests"])
    assert "thinking" in default["fingerprint"]["capabilities"]
    assert "ttfa" in default["metrics"]
    assert "ttfa" not in off["metrics"]
    assert found.out.count("thinking (model default)") == 1
