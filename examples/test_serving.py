"""What a team writes: the load, what it must reach, and anything else that must hold.

pytest examples --ollama-url='sim:?slots=4&tps=400'            the built-in simulator
pytest examples --ollama-url=http://gpu-box:11434 --ollama-model=llama3.2:3b
"""

import pytest


@pytest.mark.ollama_load(concurrency=4, min_tps=100, max_p50_ttft="300ms")
def test_chat_speed():
    """The marker alone is enough: it fires the load, measures and judges it."""


@pytest.mark.parametrize("num_predict", [16, 64])
@pytest.mark.ollama_load(endpoint="chat", rate=5, requests=20, max_mean_latency="5s")
def test_steady_arrivals(num_predict, ollama_load):
    """An open loop: five requests a second, whether or not the server keeps up; latency counts from when each was due.
    A parameter named like a word of the load is one."""
    assert ollama_load.ttft.p50 <= ollama_load.latency.p50


def test_prompt_length(ollama):
    """Loads from code: a prompt eight times as long must not cost most of the speed of decoding."""
    short = ollama.load(prompt_words=32)
    long = ollama.load(prompt_words=256)
    assert long.tps > 0.2 * short.tps
