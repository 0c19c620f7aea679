"""The simulator over HTTP: what the transcripts do not show."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator

import httpx
import pytest

from pytest_ollama_perf.simulator.faults import parse_fault
from pytest_ollama_perf.simulator.process import RunningSimulator, start_simulator
from pytest_ollama_perf.simulator.server import serve
from pytest_ollama_perf.simulator.settings import SimulatorSettings
from pytest_ollama_perf.simulator.url import read_settings

FAST = {"tps": 5000, "prefill_tps": 100_000, "load_time": 0, "warm_load": 0, "overhead": 0, "slots": 2}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningSimulator]:
    with start_simulator(read_settings(FAST)) as running:
        yield running


@pytest.fixture
def client(server: RunningSimulator) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        yield client


def generate(client, prompt=" cat", model="llama3.2:3b", path="/api/generate", **more):
    words = {"messages": [{"role": "user", "content": prompt}]} if "chat" in path else {"prompt": prompt}
    return client.post(path, json={"model": model, **words, "options": {"num_predict": 4}, **more})


def lines(answer):
    return [json.loads(line) for line in answer.content.splitlines()]


def test_the_ground_truth_is_read_by_request_id_and_forgotten_on_demand(server, client):
    server.reset()
    body = {"model": "tiny", "prompt": " a", "options": {"num_predict": 3}}
    client.post("/api/generate", json=body, headers={"X-Request-Id": "r-7"})
    (truth,) = server.requests()
    assert (truth.request_id, truth.number, truth.outcome) == ("r-7", 1, "ok")
    times = (truth.arrived_ns, truth.loaded_ns, truth.queued_ns, truth.slot_ns, truth.first_token_ns, truth.done_ns)
    assert list(times) == sorted(times)
    assert truth.first_token_ns <= truth.first_write_ns <= truth.last_write_ns
    server.reset()
    assert server.requests() == []


def test_the_settings_are_told(server, client):
    assert client.get("/sim/settings").json()["slots"] == 2


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_a_thinking_model_thinks_first_in_a_field_of_its_own(client, path):
    objects = lines(generate(client, model="qwen3:4b", path=path, think=True, options={"num_predict": 20}))
    texts = [each.get("message", each) for each in objects[:-1]]
    assert [bool(each.get("thinking")) for each in texts] == [True] * 16 + [False] * 4
    assert objects[-1]["eval_count"] == 20


def test_names_match_with_and_without_latest(client):
    assert generate(client, model="tiny").status_code == 200
    assert generate(client, model="tiny:latest").status_code == 200


def test_context_carries_on_a_conversation(client):
    first = lines(generate(client, " one"))[-1]
    second = lines(generate(client, " two", context=first["context"]))[-1]
    assert second["prompt_eval_count"] == len(first["context"]) + 1 + 19


def test_an_empty_list_of_texts_loads_an_embedding_model(client):
    answer = client.post("/api/embed", json={"model": "nomic-embed-text", "input": []})
    assert answer.json() == {"model": "nomic-embed-text", "embeddings": []}
    assert client.get("/api/ps").json()["models"][0]["name"] == "nomic-embed-text:latest"


def test_a_vector_depends_on_its_text_alone_and_has_length_one(client):
    body = {"model": "nomic-embed-text", "input": ["a b", "c", "a b"]}
    one, other, again = client.post("/api/embed", json=body).json()["embeddings"]
    assert one == again != other
    assert sum(value * value for value in one) == pytest.approx(1)
    assert len(one) == 768


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ('{"model": 3}', 400, "cannot unmarshal number into Go struct field GenerateRequest.model of type string"),
        ('{"model": "tiny", "stream": "yes"}', 400, "GenerateRequest.stream of type bool"),
        ('{"model": "tiny", "prompt": "a"', 400, "unexpected EOF"),
        ("[]", 400, "json: cannot unmarshal array into Go value of type api.GenerateRequest"),
        ('{"model": "tiny", "prompt": "a", "keep_alive": "5"}', 400, 'time: missing unit in duration "5"'),
        ('{"model": "tiny", "prompt": "a", "options": {"top_p": "x"}}', 500, 'option "top_p" must be of type float32'),
        ('{"model": "tiny", "prompt": "a", "options": {"stop": "x"}}', 500, 'option "stop" must be of type array'),
        ('{"model": "tiny", "prompt": "a", "think": true}', 400, '"tiny" does not support thinking'),
    ],
)
def test_wrong_requests_are_refused_in_the_words_of_the_server(client, body, status, words):
    answer = client.post("/api/generate", content=body)
    assert answer.status_code == status
    assert words in answer.json()["error"]


def test_two_requests_on_one_connection_are_answered_in_order(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET /api/version HTTP/1.1\r\nHost: x\r\n\r\n".replace(b"x", host.encode()))
        connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        seen = b""
        while part := connection.recv(65536):
            seen += part
    assert seen.index(b'{"version"') < seen.index(b"Ollama is running")
    assert seen.count(b"HTTP/1.1 200 OK") == 2


def test_what_is_not_http_is_answered_400_and_hung_up(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"\x16\x03\x01nonsense\r\n\r\n")
        seen = connection.recv(65536)
    assert seen.startswith(b"HTTP/1.1 400 Bad Request")


@pytest.mark.parametrize(
    ("host", "status"), [("localhost:1", 200), ("[::1]:2", 200), ("10.1.2.3", 200), ("evil.example", 403)]
)
def test_a_foreign_host_header_is_refused_on_loopback(client, host, status):
    assert client.get("/api/version", headers={"Host": host}).status_code == status


def test_openai_streams_carry_usage_only_when_asked(client):
    answer = generate(client, path="/v1/chat/completions", stream=True, max_tokens=3)
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    assert len(events) == 3 + 1 + 1
    assert "usage" not in events[-2]


def over_http(faults, **body):
    """Return what one request to a server with these faults shows: the answer, or the exception."""
    settings = read_settings(FAST | {"fault": faults})

    async def run():
        async with serve(settings) as (url, running), httpx.AsyncClient(base_url=url, trust_env=False) as client:
            request = {"model": "tiny", "prompt": " a", "raw": True, "options": {"num_predict": 6}, **body}
            try:
                return await client.post("/api/generate", json=request), list(running.ground_truths)
            except httpx.HTTPError as error:
                return error, list(running.ground_truths)

    return asyncio.run(run())


def test_a_drop_breaks_the_connection_before_or_in_the_stream():
    assert isinstance(over_http(["drop"])[0], httpx.RemoteProtocolError)
    assert isinstance(over_http(["drop:3"])[0], httpx.RemoteProtocolError)


def test_a_truncated_stream_ends_properly_without_done():
    answer, (truth,) = over_http(["truncate:3"])
    assert [each["done"] for each in lines(answer)] == [False] * 3
    assert truth.outcome == "truncate"


def test_an_error_comes_as_a_last_line_under_200():
    answer, _ = over_http(["error:3"])
    assert answer.status_code == 200
    assert lines(answer)[-1] == {"error": "an error was encountered while running the model: unexpected EOF"}
    assert len(lines(answer)) == 4


def test_garbage_is_no_json():
    answer, _ = over_http(["garbage:1"])
    with pytest.raises(json.JSONDecodeError):
        lines(answer)


def test_busy_is_a_503():
    answer, _ = over_http(["busy"])
    assert answer.status_code == 503
    assert answer.json() == {"error": "server busy, please try again.  maximum pending requests exceeded"}


@pytest.mark.parametrize(
    ("faults", "status"), [(["http_500"], 500), (["error:2"], 500), (["busy"], 503)], ids=lambda each: str(each)
)
def test_an_answer_in_one_piece_fails_with_a_status(faults, status):
    answer, _ = over_http(faults, stream=False)
    assert answer.status_code == status


def test_a_hang_up_frees_the_slot():
    settings = SimulatorSettings(slots=1, tps=200.0, load_time_s=0, faults=(parse_fault("stall:60@1"),))

    async def run():
        async with serve(settings) as (url, running), httpx.AsyncClient(base_url=url, trust_env=False) as client:
            body = {"model": "llama3.2:3b", "prompt": " a", "options": {"num_predict": 2}}
            with pytest.raises(httpx.ReadTimeout):
                await client.post("/api/generate", json=body, timeout=0.05)
            answer = await client.post("/api/generate", json=body, timeout=20)
            return answer.status_code, [truth.outcome for truth in running.ground_truths]

    assert asyncio.run(run()) == (200, ["cancelled", "ok"])
