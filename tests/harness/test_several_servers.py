"""Several ``--ollama-url``: weights, a server that is down, servers that differ, from the command line to the text."""

from __future__ import annotations

import pytest

LOAD = """
    @pytest.mark.ollama_load(concurrency=4, requests=24, num_predict=8)
    def test_it(ollama_load):
        assert sum(one.requests for one in ollama_load.servers) == 24
"""
NOBODY = "http://127.0.0.1:9"


def shares(result):
    (found,) = result.test["findings"]
    return [one["requests"] for one in found["servers"]]


def test_each_server_gets_its_weight(run, three):
    result = run(LOAD, [f"{three[0]}#weight=2", *three[1:]])
    result.assert_outcomes(passed=1)
    assert shares(result) == [12, 6, 6]
    (load,) = result.test["loads"]
    assert load["fingerprint"]["servers"] == "2:1:1"
    assert {*load["before"]} == {*load["after"]} == {*load["servers"]} == {*three}
    result.stdout.re_match_lines([r"  3 servers:$", r" +sent +share .*", r"    127.0.0.1:\d+ +12 +50% +0 .*"])
    assert max(len(line) for line in result.outlines if not line.startswith("rootdir")) <= 80


def test_requests_to_a_server_that_is_down_have_failed(run, three):
    result = run(LOAD, [three[0], NOBODY])
    result.assert_outcomes(failed=1)
    assert result.test["verdict"] == "broken"
    assert result.test["reason"] == "error_rate 50 %, limit <= 0 %: 12 of 24 requests failed (12 refused)"
    assert shares(result) == [12, 12]
    (problem,) = [problem for problem in result.test["problems"] if problem["name"] == "server down"]
    assert problem["text"].startswith(f"{NOBODY} was down before the load: 12 of its 12 requests failed")


def test_a_server_that_is_down_is_left_out_where_the_user_says_so(run, three):
    result = run(LOAD, [three[0], NOBODY], "--ollama-allow-down")
    result.assert_outcomes(passed=1)
    assert shares(result) == [24, 0]
    assert result.test["loads"][0]["fingerprint"].get("servers", "") == ""
    result.stdout.fnmatch_lines([f"  - server down: {NOBODY} was down before the load: left out of the"])


def test_all_servers_down_is_one_line(run):
    result = run(LOAD, [NOBODY, "http://127.0.0.1:7"])
    result.assert_outcomes(failed=1)
    assert result.test["reason"].startswith("nothing answers at http://127.0.0.1:")


def test_servers_of_other_versions_are_no_one_server(run, three):
    result = run(LOAD, [three[0], "sim:?version=0.24.0&models=tiny&load_time=0"])
    result.assert_outcomes(failed=1)
    assert result.test["verdict"] == "invalid"
    assert "is not like" in result.test["reason"]
    assert "meaning of the counters 0.30.1-0.33.2 there, 0.10-0.29 here" in result.test["reason"]


def test_the_strategy_is_a_word_of_the_load(run, three):
    words = 'concurrency=4, requests=24, num_predict=8, balance="{}"'
    result = run(LOAD.replace("concurrency=4, requests=24, num_predict=8", words.format("least_in_flight")), three)
    result.assert_outcomes(passed=1)
    assert result.test["loads"][0]["workload"]["balance"] == "least_in_flight"
    wrong = run(LOAD.replace("concurrency=4, requests=24, num_predict=8", words.format("lest")), three)
    assert wrong.ret == pytest.ExitCode.USAGE_ERROR
    wrong.stderr.fnmatch_lines(["*balance='lest': expected one of round_robin, random, least_in_flight*"])


def test_a_wrong_weight_ends_the_session_before_the_first_test(run, three):
    result = run(LOAD, [f"{three[0]}#wait=2"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*'#wait=2' after a server's URL: expected a weight above 0*"])
