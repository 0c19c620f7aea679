"""One address with several servers behind it: a real nginx before simulators and before the real server."""

from __future__ import annotations

import pytest
from nginx import nginx

LOAD = """
    @pytest.mark.ollama_load(concurrency=6, requests=36, num_predict=24)
    def test_entry():
        pass
"""


def test_each_server_behind_the_address_is_counted(run, three, tmp_path):
    with nginx(tmp_path, three) as entry:
        result = run(LOAD, [entry])
    result.assert_outcomes(passed=1)
    (found,) = result.test["findings"]
    assert found["behind"] is True
    assert sorted(one["name"] for one in found["servers"]) == sorted(url.removeprefix("http://") for url in three)
    assert sum(one["requests"] for one in found["servers"]) == 36
    assert all(one["requests"] >= 6 and one["tps"] > 300 for one in found["servers"])
    assert result.test["loads"][0]["fingerprint"]["servers"] == "3 behind one address"
    result.stdout.re_match_lines(
        [
            r"  3 servers behind one address:",
            r" +sent +share +errors +tps +tokens/s +ttft p50 +p95$",
            r"    127.0.0.1:\d+ .* ms$",
        ]
    )


def test_an_address_that_names_nobody_is_one_server(run, three, tmp_path):
    with nginx(tmp_path, three, named=False) as entry:
        result = run(LOAD, [entry])
    result.assert_outcomes(passed=1)
    assert result.test["findings"] == []


def test_every_server_behind_the_address_has_the_model_before_the_load(run, slow_to_load, tmp_path):
    with nginx(tmp_path, slow_to_load) as entry:
        result = run(LOAD, [entry])
    result.assert_outcomes(passed=1)
    waits = [sample["load_duration_ns"] or 0 for sample in result.test["loads"][0]["samples"]]
    assert max(waits) < 200e6
    assert not [problem for problem in result.test["problems"] if problem["invalidates"]]


STREAM = """
    @pytest.mark.ollama_load(concurrency=2, requests=8, num_predict=48)
    def test_stream():
        pass
"""


def test_a_buffering_proxy_makes_the_measurement_invalid(run, three, tmp_path):
    with nginx(tmp_path, three, buffering=True) as entry:
        result = run(STREAM, [entry])
    result.assert_outcomes(failed=1)
    assert result.test["verdict"] == "invalid"
    assert result.test["reason"].startswith("not a valid measurement: the stream was buffered on its way")


def test_a_proxy_that_does_not_buffer_is_no_trouble(run, three, tmp_path):
    with nginx(tmp_path, three) as entry:
        result = run(STREAM, [entry])
    result.assert_outcomes(passed=1)
    assert "buffered stream" not in {problem["name"] for problem in result.test["problems"]}


REAL = """
    @pytest.mark.ollama_load(model="mid", concurrency=1, requests=10, num_predict=32)
    def test_real():
        pass
"""


@pytest.mark.real_server
@pytest.mark.parametrize("buffering", [False, True])
def test_the_real_server_behind_a_proxy(run, real_server, tmp_path, buffering):
    url = real_server if "//" in real_server else f"http://{real_server}"
    with nginx(tmp_path, [url], buffering=buffering) as entry:
        result = run(REAL, [entry])
    held = [problem["text"] for problem in result.test["problems"] if problem["name"] == "buffered stream"]
    # On a busy machine a response or two may come in a burst by itself.
    assert any("10 of 10 responses" in text for text in held) is buffering
    assert result.test["loads"][0]["ok"] == 10
