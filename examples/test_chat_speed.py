"""What a team writes: the load, what it must reach, and anything else that must hold.

    pytest examples --ollama-url=sim:                              the built-in simulator
    pytest examples --ollama-url=http://gpu-box:11434 --ollama-model=llama3.2:3b
"""

import pytest


@pytest.mark.ollama_load(concurrency=4, min_tps=20, max_p95_latency="30s")
def test_chat_speed(ollama_load):
    assert ollama_load.error_rate == 0


@pytest.mark.parametrize("concurrency", [1, 2, 4])
@pytest.mark.ollama_load(num_predict=32, min_tps=10, limits={"ttft.p50": "<= 20s"})
def test_speed_at(concurrency):
    """The marker alone is enough: it runs and judges; the parameter is a word of the load."""


@pytest.mark.ollama_load(endpoint="chat", rate=5, requests=20, max_mean_latency="30s")
def test_steady_arrivals(ollama_load):
    """An open loop: five requests a second, whether or not the server keeps up; latency counts from when each was due."""
    assert ollama_load.ttft.p50 <= ollama_load.latency.p50


def test_two_lengths(ollama):
    """Loads from code: a longer prompt must not slow decoding down by half."""
    short = ollama.load(prompt_words=32)
    long = ollama.load(prompt_words=512)
    assert long.tps > 0.5 * short.tps
