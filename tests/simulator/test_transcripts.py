"""The simulator, and the real server where there is one, answer as the real server was recorded to answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from transcript_replay import TRANSCRIPTS, Exchange, Reply, load, replay

from pytest_ollama_perf.simulator.faults import parse_fault
from pytest_ollama_perf.simulator.process import start_simulator
from pytest_ollama_perf.simulator.settings import TRANSCRIPT_MODELS, SimulatorSettings

CASES = sorted(path.stem for path in TRANSCRIPTS.glob("*.json"))
FAULTS = {
    "engine-dies-before-first-token": (parse_fault("crash:0@2"),),
    "engine-dies-mid-stream": (parse_fault("crash:20@2"),),
}
ANY_SERVER = ("chat", "discovery", "embed", "errors", "generate", "load-and-unload", "openai-routes", "prompt-cache")
"""The cases that need no settings of the server of their own."""

COUNTERS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
OPAQUE = ("model_info", "tensors", "context", "embeddings")
"""What is inside these depends on the weights."""

MODELS = tuple(msgspec.structs.replace(model, num_ctx=2048) for model in TRANSCRIPT_MODELS)
"""The recorded models set ``num_ctx`` in their model files."""

UNKNOWN_WORDS = (" cat", " warm", " hang", " die", " after", " one", " two", " three", "cat dog")
"""Prompts with words that the recorded models spell in several tokens, so that their counts differ."""


def settings_of(server: dict[str, Any], case: str) -> SimulatorSettings:
    return SimulatorSettings(
        models=MODELS,
        slots=server["OLLAMA_NUM_PARALLEL"],
        max_queue=server.get("max_queue", 512),
        max_loaded=1 if "OLLAMA_MAX_LOADED_MODELS=1" in server.get("env", ()) else 3,
        prefill_tps=10_000.0,
        scaling=0.0,
        faults=FAULTS.get(case, ()),
    )


@pytest.fixture(scope="module", params=CASES)
def simulated(request: pytest.FixtureRequest) -> Iterator[list[tuple[Exchange, Reply]]]:
    """Every exchange of a case with what the simulator answered to it."""
    server, exchanges = load(request.param)
    with start_simulator(settings_of(server, request.param)) as simulator:
        yield list(zip(exchanges, replay(simulator.url, exchanges), strict=True))


@pytest.fixture(scope="module", params=ANY_SERVER)
def real(request: pytest.FixtureRequest, real_server: str) -> list[tuple[Exchange, Reply]]:
    """The same with what a real server answered, if it has the models."""
    _, exchanges = load(request.param)
    with httpx.Client(base_url=real_server, trust_env=False, timeout=60) as client:
        names = {row["name"] for row in client.get("/api/tags").json()["models"]}
        if not {model.full_name for model in TRANSCRIPT_MODELS} <= names:
            pytest.skip("the real server does not have the models of the transcripts")
        for model in TRANSCRIPT_MODELS:
            client.post("/api/generate", json={"model": model.name, "keep_alive": 0})
    return list(zip(exchanges, replay(real_server, exchanges), strict=True))


def shape(value: Any) -> Any:
    """Return what a value is made of: keys in order and types; a list by its first element."""
    if isinstance(value, dict):
        return [(name, "opaque" if name in OPAQUE else shape(each)) for name, each in value.items()]
    if isinstance(value, list):
        return [shape(each) for each in value[:1]]
    return type(value).__name__


def is_error(reply: Reply) -> bool:
    return reply.status >= 400 or "error" in reply.final


def check_answer(exchange: Exchange, reply: Reply) -> None:
    """Status, content type, framing of what is streamed, the number of lines, each one's shape; errors verbatim."""
    recorded = exchange.recorded
    assert (reply.status, reply.content_type) == (recorded.status, recorded.content_type), exchange.title
    if is_error(recorded) or "ndjson" in recorded.content_type:
        assert reply.chunked == recorded.chunked, exchange.title
    assert len(reply.lines) == len(recorded.lines), exchange.title
    for got, wanted in zip(reply.objects, recorded.objects, strict=True):
        assert shape(got) == shape(wanted), exchange.title
    if is_error(recorded):
        assert reply.lines[-1:] == recorded.lines[-1:], exchange.title


def check_identities(exchange: Exchange, reply: Reply) -> None:
    """What OLLAMA.md says of the counters holds, and the model was loaded where it was loaded in the transcript."""
    final, recorded = reply.final, exchange.recorded.final
    if "total_duration" not in recorded:
        return
    spent = sum(final.get(name, 0) for name in COUNTERS[1:])
    assert final["total_duration"] >= spent - 1000, exchange.title
    assert 0 not in final.values(), exchange.title
    assert (final["load_duration"] > 200_000_000) == (recorded["load_duration"] > 200_000_000), exchange.title
    if "eval_count" in recorded:
        assert final["eval_count"] == recorded["eval_count"], exchange.title
    if not any(words in (exchange.body or "") for words in UNKNOWN_WORDS) and "/chat" not in exchange.path:
        assert final["prompt_eval_count"] == recorded["prompt_eval_count"], exchange.title


def test_the_simulator_answers_as_recorded(simulated):
    for exchange, reply in simulated:
        check_answer(exchange, reply)


def test_the_simulator_keeps_the_identities(simulated):
    for exchange, reply in simulated:
        check_identities(exchange, reply)


def test_the_simulator_says_the_recorded_words_where_the_prompt_decides_them(simulated):
    for exchange, reply in simulated:
        body = exchange.body or ""
        raw = '"raw": true' in body and not any(words in body for words in UNKNOWN_WORDS)
        if raw and exchange.recorded.status == 200 and "warm up" not in body:
            texts = [each.get("response") for each in reply.objects]
            assert texts == [each.get("response") for each in exchange.recorded.objects], exchange.title


@pytest.mark.real_server
def test_the_real_server_answers_as_recorded(real):
    for exchange, reply in real:
        check_answer(exchange, reply)


@pytest.mark.real_server
def test_the_real_server_keeps_the_identities(real):
    for exchange, reply in real:
        check_identities(exchange, reply)


def queue_s(final: dict[str, Any]) -> float:
    return (final["total_duration"] - sum(final.get(name, 0) for name in COUNTERS[1:])) / 1e9


@pytest.mark.parametrize("simulated", ["queue-one-slot", "four-slots"], indirect=True)
def test_requests_wait_for_a_slot_where_they_were_recorded_to(simulated):
    for exchange, reply in simulated:
        recorded, got = queue_s(exchange.recorded.final), queue_s(reply.final)
        assert (got > 0.05) == (recorded > 0.05), exchange.title


@pytest.mark.parametrize("simulated", ["prompt-cache"], indirect=True)
def test_a_cached_prompt_costs_next_to_nothing(simulated):
    cold, again, other, longer = [reply.final["prompt_eval_duration"] for _, reply in simulated]
    assert again < cold / 20
    assert other > cold / 2
    assert longer < cold / 20


@pytest.mark.parametrize("simulated", ["load-and-unload"], indirect=True)
def test_what_is_loaded_is_what_was_recorded(simulated):
    listings = [(exchange, reply) for exchange, reply in simulated if exchange.path == "/api/ps"]
    for exchange, reply in listings:
        assert loaded(reply) == loaded(exchange.recorded), exchange.title


def loaded(reply: Reply) -> list[tuple[str, str, int, int]]:
    return [
        (row["name"], row["digest"], row["size_vram"], row["context_length"])
        for row in json.loads(b"".join(reply.lines))["models"]
    ]
