"""Against the real Ollama that OLLAMA_HOST names; its first completion model serves."""

import json

import anyio
import pytest

from pytest_ollama_perf.client.address import parse_address
from pytest_ollama_perf.client.backend import HttpBackend
from pytest_ollama_perf.client.control import ControlClient
from pytest_ollama_perf.client.preflight import run_preflight
from pytest_ollama_perf.core.sample import Outcome, Phase
from pytest_ollama_perf.core.workload import Endpoint, Timeouts, Workload
from pytest_ollama_perf.loadgen import Request

pytestmark = pytest.mark.real_server


@pytest.fixture(scope="module")
def control(real_server):
    with ControlClient(parse_address(real_server)) as server:
        yield server


@pytest.fixture(scope="module")
def model(control):
    names = sorted((entry.size, entry.name) for entry in control.list_models())
    for _, name in names:
        if "completion" in control.get_model_info(name).capabilities:
            return name
    return pytest.fail("the server has no completion model")


def send(control, endpoint, stream, **body):
    samples = []

    async def main():
        backend = HttpBackend([control.address])
        await backend.connect(1)
        request = Request(
            index=0,
            client=0,
            target=0,
            request_id="real-0",
            stage=Phase.MEASURED,
            endpoint=endpoint,
            stream=stream,
            body=json.dumps({"stream": stream, **body}).encode(),
            timeouts=Timeouts(),
        )
        await backend.send(request, samples.append)
        await backend.aclose()

    anyio.run(main)
    return samples[0]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("endpoint", [Endpoint.GENERATE, Endpoint.CHAT])
def test_a_generation_is_measured(control, model, endpoint, stream):
    prompt = (
        {"prompt": " cat"} if endpoint is Endpoint.GENERATE else {"messages": [{"role": "user", "content": " cat"}]}
    )
    options = {"num_predict": 6, "num_ctx": 1024, "temperature": 0, "seed": 1}
    sample = send(control, endpoint, stream, model=model, options=options, **prompt)
    assert sample.ok, sample.error
    assert 0 < sample.counters.eval_count <= 6
    assert sample.counters.total_duration_ns <= sample.done_ns - sample.sent_ns
    if stream:
        assert sample.sent_ns < sample.first_token_ns <= sample.done_ns
        assert len(sample.chunk_ns) >= 2
    else:
        assert (sample.first_token_ns, sample.chunk_ns) == (None, ())


def test_a_missing_model_is_an_http_error(control):
    sample = send(control, Endpoint.GENERATE, True, model="no-such-model", prompt="x")
    assert (sample.outcome, sample.error) == (Outcome.HTTP_ERROR, "HTTP 404: model 'no-such-model' not found")


def test_a_model_is_loaded_seen_and_unloaded(control, model):
    control.unload(model)
    assert control.load(model, num_ctx=1024) > 0
    fingerprint, state = run_preflight(control, Workload(model=model))
    assert (state.loaded, state.context_length, fingerprint.model) == (True, 1024, model)
    assert fingerprint.model_digest == control.get_installed(model).digest
    control.unload(model)
    assert control.find_running(model) is None
