"""The simulator as a load backend: samples with exact times, timeouts and cancellation."""

from __future__ import annotations

import json

import anyio
import pytest
from simkit import MS, PLAIN, virtual

from pytest_ollama_perf.core.sample import Outcome, Phase
from pytest_ollama_perf.core.workload import Endpoint, Timeouts
from pytest_ollama_perf.loadgen import Backend, Request
from pytest_ollama_perf.simulator.faults import parse_fault
from pytest_ollama_perf.simulator.process import open_simulated_backend
from pytest_ollama_perf.simulator.settings import SimulatorSettings


def request(prompt="a b c", *, model="llama3.2:3b", endpoint=Endpoint.GENERATE, stream=True, limit=5, **words):
    body = {"model": model, "stream": stream, "raw": True, "options": {"num_predict": limit}, **words.pop("body", {})}
    text = {"input": prompt} if endpoint is Endpoint.EMBED else {"prompt": prompt}
    if endpoint is Endpoint.CHAT:
        text = {"messages": [{"role": "user", "content": prompt}]}
    fields = {"index": 0, "client": 0, "target": 0, "request_id": "id-1", "stage": Phase.MEASURED}
    raw = json.dumps(body | text).encode()
    return Request(**fields, endpoint=endpoint, stream=stream, body=raw, timeouts=words.pop("timeouts", Timeouts()))


async def sample_of(asked, *, read_delay_s=0.0, leave_after_s=None, **words):
    settings = SimulatorSettings(**{**PLAIN, **words})
    seen = []
    async with open_simulated_backend(settings, read_delay_s=read_delay_s) as backend:
        with anyio.move_on_after(leave_after_s):
            await backend.send(asked, seen.append)
        (truth,) = backend.requests or [None]
    (sample,) = seen
    return sample, truth


@virtual
async def test_it_is_a_backend():
    async with open_simulated_backend() as backend:
        checked: Backend = backend
        await checked.connect(4)
        assert checked.now_ns() == 0
        await checked.aclose()


@virtual
async def test_a_sample_holds_the_exact_times_of_the_server():
    sample, truth = await sample_of(request())
    assert (sample.outcome, sample.status, sample.done_reason) == (Outcome.OK, 200, "length")
    assert (sample.sent_ns, sample.done_ns) == (0, 7 * MS)
    assert sample.chunk_ns == tuple(each * MS for each in (3, 4, 5, 6, 7))
    assert sample.first_token_ns == sample.header_ns == truth.first_token_ns == 3 * MS
    assert (sample.line_count, sample.read_count, sample.request_id) == (6, 5, "id-1")
    assert (sample.counters.eval_count, sample.counters.queue_ns) == (5, 0)


@virtual
async def test_a_read_delay_moves_what_the_client_sees_and_not_the_truth():
    sample, truth = await sample_of(request(), read_delay_s=0.5)
    assert (sample.first_token_ns, sample.done_ns) == (503 * MS, 507 * MS)
    assert (truth.first_token_ns, truth.done_ns) == (3 * MS, 7 * MS)


@virtual
async def test_a_thinking_model_has_a_first_answer_of_its_own():
    sample, _ = await sample_of(request(model="qwen3:4b", limit=8, body={"think": True}), thinking_tokens=3)
    assert (sample.first_token_ns, sample.first_answer_ns) == (3 * MS, 6 * MS)


@virtual
async def test_a_model_told_not_to_think_answers_at_once():
    sample, _ = await sample_of(request(model="qwen3:4b", body={"think": False}), thinking_tokens=3)
    assert sample.first_token_ns == sample.first_answer_ns


@virtual
async def test_an_answer_in_one_piece_has_no_first_token():
    sample, _ = await sample_of(request(stream=False))
    assert (sample.first_token_ns, sample.chunk_ns, sample.header_ns) == (None, (), 7 * MS)
    assert sample.counters.eval_count == 5


@virtual
async def test_chat_and_embed_are_answered():
    chat, _ = await sample_of(request(endpoint=Endpoint.CHAT))
    assert chat.counters.prompt_eval_count == 3 + 19
    embed, _ = await sample_of(request(model="nomic-embed-text", endpoint=Endpoint.EMBED, stream=False))
    assert (embed.outcome, embed.done_ns - embed.sent_ns) == (Outcome.OK, 3 * MS)
    assert embed.counters.prompt_eval_count == 3
    assert embed.counters.eval_count is None


@pytest.mark.parametrize(
    ("timeouts", "fault", "outcome", "at_ms", "chunks"),
    [
        (Timeouts(first_token_s=1), "stall:9", Outcome.FIRST_TOKEN_TIMEOUT, 1000, 0),
        (Timeouts(idle_s=1), "stall:9:2", Outcome.IDLE_TIMEOUT, 1004, 2),
        (Timeouts(total_s=2, idle_s=60), "stall:9:2", Outcome.TOTAL_TIMEOUT, 2000, 2),
    ],
)
def test_a_timeout_ends_the_request_on_time(timeouts, fault, outcome, at_ms, chunks):
    @virtual
    async def run():
        sample, truth = await sample_of(request(timeouts=timeouts), faults=(parse_fault(fault),))
        assert (sample.outcome, sample.done_ns, len(sample.chunk_ns)) == (outcome, at_ms * MS, chunks)
        assert truth.outcome == "cancelled"

    run()


@pytest.mark.parametrize(
    ("fault", "outcome", "status", "chunks"),
    [
        ("http_500", Outcome.HTTP_ERROR, 500, 0),
        ("busy", Outcome.BUSY, 503, 0),
        ("drop", Outcome.CUT_OFF, None, 0),
        ("drop:2", Outcome.CUT_OFF, 200, 2),
        ("error:2", Outcome.SERVER_ERROR, 200, 2),
        ("truncate:2", Outcome.TRUNCATED, 200, 2),
        ("garbage:2", Outcome.MALFORMED, 200, 5),
        ("crash:2", Outcome.SERVER_ERROR, 200, 2),
    ],
)
def test_every_fault_is_the_outcome_it_should_be(fault, outcome, status, chunks):
    @virtual
    async def run():
        sample, _ = await sample_of(request(), faults=(parse_fault(fault),))
        assert (sample.outcome, sample.status, len(sample.chunk_ns)) == (outcome, status, chunks)
        assert sample.error

    run()


@virtual
async def test_a_cancelled_request_is_still_a_sample():
    sample, truth = await sample_of(request(limit=500), leave_after_s=0.1)
    assert (sample.outcome, sample.done_ns, truth.outcome) == (Outcome.CANCELLED, 100 * MS, "cancelled")


@virtual
async def test_what_the_server_refuses_is_an_outcome():
    missing, _ = await sample_of(request(model="nope"))
    assert (missing.outcome, missing.status, missing.error) == (Outcome.HTTP_ERROR, 404, "model 'nope' not found")
    embedding, _ = await sample_of(request(model="nomic-embed-text"))
    assert embedding.error == '"nomic-embed-text" does not support generate'
