"""Example performance tests: each test describes a load, its targets and optional assertions.

pytest examples --ollama-url='sim:?slots=4&tps=400'            the built-in simulator
pytest examples --ollama-url=http://gpu-box:11434 --ollama-model=llama3.2:3b
"""

import pytest


@pytest.mark.ollama_load(concurrency=4, min_tps=100, max_p50_ttft="300ms")
def test_chat_speed():
    """The marker is sufficient: the plugin generates the load and checks the limits."""


@pytest.mark.parametrize("num_predict", [16, 64])
@pytest.mark.ollama_load(endpoint="chat", rate=5, requests=20, max_mean_latency="5s")
def test_steady_arrivals(num_predict, ollama_load):
    """Open loop: five requests per second, however slow the server is. Latency counts from each scheduled time.
    Parametrized values with the name of a marker argument set that argument."""
    assert ollama_load.ttft.p50 <= ollama_load.latency.p50


def test_prompt_length(ollama):
    """Loads from code: with a prompt eight times as long, the decode rate stays above 20 % of the original."""
    short = ollama.load(prompt_words=32)
    long = ollama.load(prompt_words=256)
    assert long.tps > 0.2 * short.tps
