"""The main job on a real Ollama: a contract it keeps, one it cannot keep, and a model it does not have."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.real_server


@pytest.fixture
def perf(make_perf, real_server: str):
    return make_perf(real_server)


def test_a_contract_is_kept_and_one_is_broken(perf) -> None:
    perf.write("""
        LOAD = dict(model="tiny", concurrency=2, requests=20, num_predict=16, num_ctx=1024)

        @pytest.mark.ollama_load(**LOAD, min_tps=10, max_p50_latency=60)
        def test_kept(ollama_load):
            assert ollama_load.error_rate == 0

        @pytest.mark.ollama_load(**LOAD, min_tps=1e7)
        def test_broken():
            pass
    """)
    found = perf.run()
    assert (found.status, found.counts) == (1, {"passed": 1, "failed": 1}), found.out
    kept, broken = found.report["tests"]
    assert (kept["verdict"], broken["verdict"]) == ("ok", "broken")
    for test in (kept, broken):
        (load,) = test["loads"]
        samples = [sample for sample in load["samples"] if sample["stage"] == "measured"]
        assert [sample["outcome"] for sample in samples] == ["ok"] * 20
        assert [sample["eval_count"] for sample in samples] == [16] * 20
        tokens, nanoseconds = (sum(sample[name] for sample in samples) for name in ("eval_count", "eval_duration_ns"))
        assert load["metrics"]["tps"]["value"] == pytest.approx(tokens / nanoseconds * 1e9, rel=1e-9)
        assert all(sample["sent_ns"] < sample["first_token_ns"] <= sample["done_ns"] for sample in samples)
        assert load["fingerprint"]["server_version"]
        assert load["fingerprint"]["context_length"] == 1024


def test_a_missing_model_names_the_pull_to_type(perf) -> None:
    perf.write("@pytest.mark.ollama_load(model='surely-not-there:1b')\ndef test_it():\n    pass")
    found = perf.run()
    assert found.counts == {"failed": 1}
    assert "ollama pull surely-not-there:1b" in " ".join(found.failure("test_it"))


def test_a_stream_of_chat_and_an_embedding_are_measured(perf) -> None:
    perf.write("""
        @pytest.mark.ollama_load(model="tiny", endpoint="chat", requests=20, num_predict=8)
        def test_chat(ollama_load):
            assert ollama_load.ttft.p50 > 0

        @pytest.mark.ollama_load(model="embed", endpoint="embed", requests=20)
        def test_embed(ollama_load):
            assert ollama_load.latency.p50 > 0
            with pytest.raises(AttributeError):
                ollama_load.ttft
    """)
    found = perf.run()
    assert found.counts == {"passed": 2}, found.out


def post(url: str, path: str, **body: object) -> dict[str, Any]:
    return httpx.post(url + path, json=body, timeout=60, trust_env=False).json()


def test_the_models_own_options_are_used_and_a_loaded_model_is_restored(perf, real_server: str) -> None:
    post(real_server, "/api/generate", model="tiny", stream=False, keep_alive=-1, options={"num_ctx": 1024})
    perf.write("@pytest.mark.ollama_load(model='tiny', requests=20, num_predict=8)\ndef test_it():\n    pass")
    found = perf.run()
    assert found.counts == {"passed": 1}, found.out
    default = dict(
        line.split(maxsplit=1) for line in post(real_server, "/api/show", model="tiny")["parameters"].splitlines()
    )
    fingerprint = found.report["tests"][0]["loads"][0]["fingerprint"]
    assert fingerprint["context_length"] == int(default["num_ctx"]) != 1024
    assert fingerprint["parameters"]["num_ctx"] == default["num_ctx"]
    (running,) = (
        each
        for each in httpx.get(f"{real_server}/api/ps", trust_env=False).json()["models"]
        if each["name"] == "tiny:latest"
    )
    assert running["context_length"] == 1024
    assert running["expires_at"] > "2200"
    post(real_server, "/api/generate", model="tiny", stream=False, keep_alive=0)
