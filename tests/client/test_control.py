import itertools
import json
import socket
import threading
from pathlib import Path

import httpx
import pytest

from pytest_ollama_perf.client.address import Access, Address, parse_address
from pytest_ollama_perf.client.control import MAX_ANSWER_BYTES, ControlClient
from pytest_ollama_perf.client.models import canonicalize_model, find_similar_models, is_same_model
from pytest_ollama_perf.client.preflight import read_model_state, run_preflight
from pytest_ollama_perf.core import ModelNotFoundError, ServerError, ServerUnreachableError
from pytest_ollama_perf.core.run import ModelState
from pytest_ollama_perf.core.workload import Workload

REMEDY = "start it with 'ollama serve', or name another server with --ollama-url or OLLAMA_HOST"
DISCOVERY = json.loads((Path(__file__).parent.parent / "transcripts" / "discovery.json").read_text())


def recorded(path, method="GET"):
    for pair in DISCOVERY["exchanges"]:
        if (pair["request"]["method"], pair["request"]["path"]) == (method, path):
            response = pair["response"]
            text = "".join(piece for _, piece in response["chunks"])
            return httpx.Response(response["status"], text=text)
    raise AssertionError(path)


class Server:
    """Answers from a table of paths; each value is a response, a list of them in turn, or an exception to raise."""

    def __init__(self, **table):
        self.table = {f"/api/{name}": value for name, value in table.items()}
        self.asked = []

    def __call__(self, request):
        body = json.loads(request.content) if request.content else None
        self.asked.append((request.method, request.url.path, body))
        answer = self.table.get(request.url.path)
        if answer is None:
            return recorded(request.url.path, request.method)
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, Exception):
            raise answer
        status, content, *headers = answer
        if isinstance(content, (dict, list)):
            content = json.dumps(content)
        return httpx.Response(status, content=content, headers=headers[0] if headers else {})


def control(server=None, **kwargs):
    address = kwargs.pop("address", Address("box", 11434))
    transport = httpx.MockTransport(server or Server())
    return ControlClient(address, kwargs.pop("access", None), transport=transport, sleep=lambda seconds: None, **kwargs)


def ps(*names):
    models = [{"name": name, "size": 100, "size_vram": 40, "context_length": 2048, "digest": "d"} for name in names]
    return 200, {"models": models}


def test_what_the_real_server_says_is_understood():
    with control() as server:
        assert server.get_version() == "0.32.15"
        assert [model.name for model in server.list_models()] == [
            "mid:latest",
            "embed:latest",
            "tiny:latest",
            "small:latest",
        ]
        assert server.list_running() == ()
        tiny = server.get_installed("tiny")
    assert (tiny.details.quantization_level, tiny.details.parameter_size) == ("F16", "918K")


def test_show_gives_the_context_the_model_was_made_for():
    shown = control(
        Server(show=(200, {"model_info": {"llama.context_length": 8192, "x": [1]}, "capabilities": ["completion"]}))
    )
    assert shown.get_model_info("tiny").context_length == 8192
    assert (
        control(Server(show=(200, {"model_info": {"llama.context_length": True}}))).get_model_info("t").context_length
        is None
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("tiny", "tiny:latest", True),
        ("Tiny", "tiny", True),
        ("tiny:3b", "tiny", False),
        ("host:5000/ns/tiny", "host:5000/ns/tiny:latest", True),
    ],
)
def test_a_name_without_a_tag_means_latest(one, other, same):
    assert is_same_model(one, other) is same
    assert canonicalize_model(canonicalize_model(one)) == canonicalize_model(one)


def test_the_nearest_models_come_first():
    assert find_similar_models("llama3.2:3b", ["qwen3:4b", "llama3.2:1b", "llama3:8b"])[0] == "llama3.2:1b"
    assert find_similar_models("zzz", ["a", "b", "c", "d"]) == ["a", "b", "c"]


def test_loading_sends_what_decides_a_reload_and_returns_seconds():
    server = Server(generate=(200, {"done": True, "done_reason": "load"}))
    ticks = itertools.count()
    took = control(server, clock=lambda: float(next(ticks))).load(
        "tiny", keep_alive="5m", num_ctx=2048, options={"a": 1}
    )
    body = {"model": "tiny", "stream": False, "options": {"a": 1, "num_ctx": 2048}, "keep_alive": "5m"}
    assert server.asked == [("POST", "/api/generate", body)]
    assert took > 0


def test_a_model_that_only_embeds_is_loaded_by_embedding():
    refusal = (400, {"error": '"embed" does not support generate'})
    server = Server(generate=refusal, embed=(200, {"embeddings": []}))
    control(server).load("embed", num_ctx=512)
    assert server.asked[-1] == (
        "POST",
        "/api/embed",
        {"model": "embed", "stream": False, "options": {"num_ctx": 512}, "input": []},
    )


def test_unloading_waits_until_the_server_lists_the_model_no_more():
    server = Server(ps=[ps("tiny:latest"), ps("tiny:latest"), ps("other:latest")], generate=(200, {"done": True}))
    control(server).unload("tiny")
    assert [path for _, path, _ in server.asked] == ["/api/ps", "/api/generate", "/api/ps", "/api/ps"]
    assert server.asked[1][2] == {"model": "tiny", "stream": False, "keep_alive": 0}


def test_unloading_what_is_not_loaded_asks_nothing_of_the_server():
    server = Server(ps=ps())
    control(server).unload("tiny")
    assert [path for _, path, _ in server.asked] == ["/api/ps"]


def test_a_model_that_stays_loaded_is_an_error_in_the_end():
    ticks = itertools.count(step=0.5)
    stuck = control(Server(ps=ps("tiny:latest"), generate=(200, {})), clock=lambda: next(ticks))
    with pytest.raises(ServerError) as caught:
        stuck.unload("tiny", timeout_s=30)
    assert str(caught.value) == (
        "model 'tiny' is still loaded 30 s after it was unloaded on http://box:11434; is something else using it?"
    )


MISSING = (404, {"error": "model 'tiy' not found"})


@pytest.mark.parametrize("ask", ["get_model_info", "load", "get_installed"])
def test_a_missing_model_names_what_to_type_and_what_is_near(ask):
    with pytest.raises(ModelNotFoundError) as caught:
        getattr(control(Server(show=MISSING, generate=MISSING)), ask)("tiy")
    assert str(caught.value).startswith(
        "model 'tiy' is not on http://box:11434; type: ollama pull tiy; it has tiny:latest"
    )


def test_a_server_without_models_says_so():
    with pytest.raises(ModelNotFoundError, match="type: ollama pull x; it has no models at all"):
        control(Server(tags=(200, {"models": []}))).get_installed("x")


HTML = {"content-type": "text/html"}


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (
            httpx.ConnectError("[Errno 111] Connection refused"),
            ServerUnreachableError,
            f"nothing answers at http://box:11434 ([Errno 111] Connection refused); {REMEDY}",
        ),
        (
            httpx.ConnectTimeout("x"),
            ServerUnreachableError,
            f"nothing answers at http://box:11434 within 10 s; {REMEDY}",
        ),
        (httpx.ReadTimeout("x"), ServerError, "http://box:11434/api/version gave no complete answer within 10 s"),
        (httpx.ReadError(""), ServerUnreachableError, "the connection to http://box:11434 broke: ReadError"),
        (
            httpx.RemoteProtocolError("illegal status line"),
            ServerUnreachableError,
            "what answers at http://box:11434 is not Ollama: illegal status line",
        ),
        (
            (200, "<html>", HTML),
            ServerUnreachableError,
            f"what answers at http://box:11434/api/version is not Ollama: an HTML page; {REMEDY}",
        ),
        (
            (200, {"ver": 1}),
            ServerUnreachableError,
            "what answers at http://box:11434/api/version is not Ollama: Object missing required field `version`; "
            + REMEDY,
        ),
        (
            (404, "404 page not found"),
            ServerUnreachableError,
            f"what answers at http://box:11434 is not Ollama: HTTP 404 for /api/version; {REMEDY}",
        ),
        (
            (302, ""),
            ServerUnreachableError,
            f"what answers at http://box:11434 is not Ollama: HTTP 302 for /api/version; {REMEDY}",
        ),
        (
            (401, {"error": "unauthorized"}),
            ServerError,
            "http://box:11434 asks for credentials (HTTP 401); set OLLAMA_API_KEY for a bearer token or give "
            "--ollama-header 'Authorization: ...'",
        ),
        (
            (403, ""),
            ServerError,
            "http://box:11434 refuses this Host header (HTTP 403); name the server by IP address or localhost, or "
            "start it with OLLAMA_HOST=0.0.0.0",
        ),
        (
            (500, {"error": "bad\x1b[2J\nthing"}),
            ServerError,
            "http://box:11434 answers HTTP 500 for /api/version: bad[2J thing",
        ),
        (
            (200, "x" * (MAX_ANSWER_BYTES + 1)),
            ServerError,
            f"http://box:11434 answers with more than {MAX_ANSWER_BYTES} bytes; is this Ollama?",
        ),
    ],
)
def test_each_failure_is_one_line_that_says_what_to_do(answer, kind, message):
    with pytest.raises(ServerError) as caught:
        control(Server(version=answer)).get_version()
    assert type(caught.value) is kind
    assert str(caught.value) == message


def test_an_answer_that_never_ends_is_given_up():
    def drip():
        while True:
            yield b" "

    ticks = itertools.count()
    endless = ControlClient(
        Address("box", 11434),
        transport=httpx.MockTransport(lambda request: httpx.Response(200, content=drip())),
        clock=lambda: next(ticks),
    )
    with pytest.raises(ServerError, match="gave no complete answer within 10 s"):
        endless.get_version()


@pytest.mark.parametrize("size", [True, -1, 1.5, "7", 2**63])
def test_sizes_that_are_no_sizes_are_refused(size):
    answer = (200, {"models": [{"name": "tiny:latest", "size": size}]})
    with pytest.raises(ServerUnreachableError):
        control(Server(ps=answer)).list_running()


def test_credentials_are_sent_and_never_shown():
    seen = []

    def answer(request):
        seen.append(request.headers["authorization"])
        return httpx.Response(401, json={"error": "no"})

    for address, access in (("http://u:s3cret@box", None), ("box", Access(bearer="s3cret"))):
        guarded = control(answer, address=parse_address(address), access=access)
        with pytest.raises(ServerError) as caught:
            guarded.get_version()
        assert "s3cret" not in str(caught.value)
    assert seen == ["Basic dTpzM2NyZXQ=", "Bearer s3cret"]


def test_a_path_prefix_stands_before_every_request():
    server = Server()
    server.table["/ollama/api/version"] = (200, {"version": "1"})
    assert control(server, address=Address("box", 1, path="/ollama")).get_version() == "1"


def test_proxies_of_the_environment_are_off_unless_asked(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with (
        ControlClient(Address("127.0.0.1", port)) as direct,
        ControlClient(Address("127.0.0.1", port), trust_env=True) as asked,
    ):
        assert not any(direct._http._mounts.values())
        assert any(asked._http._mounts.values())
        with pytest.raises(ServerUnreachableError):
            direct.get_version()


def test_the_state_of_a_model_is_what_ps_says():
    assert read_model_state(control(Server(ps=ps())), "tiny") == ModelState()
    state = read_model_state(control(Server(ps=ps("tiny:latest"))), "tiny")
    assert state == ModelState(loaded=True, size=100, size_vram=40, context_length=2048, digest="d")
    assert state.vram_share == 0.4


def test_the_fingerprint_says_what_must_be_the_same():
    fingerprint, state = run_preflight(
        control(Server(ps=ps("tiny:latest"))),
        Workload(model="tiny"),
        gpu="H100",
        server_env={"OLLAMA_NUM_PARALLEL": "4"},
    )
    assert state.loaded
    assert (fingerprint.server_version, fingerprint.model, fingerprint.quantization) == (
        "0.32.15",
        "tiny:latest",
        "F16",
    )
    assert (fingerprint.context_length, fingerprint.vram_share, fingerprint.gpu) == (2048, 0.4, "H100")
    assert fingerprint.model_digest == "d"
    assert fingerprint.server_env == {"OLLAMA_NUM_PARALLEL": "4"}
    assert fingerprint.capabilities == ("completion",)
    assert fingerprint.parameters == {
        "num_ctx": "2048",
        "num_thread": "1",
        "seed": "1",
        "stop": '"<|im_start|>", "<|im_end|>"',
        "temperature": "0",
    }
    assert set(fingerprint.client) == {"pytest-ollama-perf", "python", "machine", "clock"}


def test_a_server_that_does_not_answer_show_has_no_known_parameters():
    refuses = Server(ps=ps("tiny:latest"), show=(404, "404 page not found"))
    fingerprint, _ = run_preflight(control(refuses), Workload(model="tiny"))
    assert (fingerprint.parameters, fingerprint.capabilities) == ({}, ())


def test_preflight_of_a_missing_model_says_so():
    with pytest.raises(ModelNotFoundError, match="ollama pull nope"):
        run_preflight(control(), Workload(model="nope"))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, "<html>", HTML), "is not Ollama: an HTML page"),
        ((200, {"error": "out of memory"}), "could not load the model: out of memory"),
        ((200, {"hello": 1}), "is not Ollama: no done: true"),
    ],
)
def test_a_status_of_200_alone_is_no_loaded_model(answer, message):
    with pytest.raises(ServerError, match=message):
        control(Server(generate=answer)).load("tiny")
    refusal = (400, {"error": '"embed" does not support generate'})
    with pytest.raises(ServerError, match=message):
        control(Server(generate=refusal, embed=answer)).load("embed")


def test_headers_that_trickle_do_not_outlast_the_timeout(fault_server):
    stop = threading.Event()

    def trickle(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while not stop.wait(0.02):
            connection.sendall(b"X-More: 1\r\n")

    server = fault_server(trickle, b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"done":true}')
    with ControlClient(server.address, timeout_s=0.1) as slow:
        with pytest.raises(ServerError, match="/api/generate gave no complete answer"):
            slow.load("tiny", timeout_s=0.1)
        stop.set()
        assert slow.load("tiny", timeout_s=5) > 0


def test_an_error_keeps_its_status_when_its_body_does_not_end(fault_server):
    server = fault_server(b"HTTP/1.1 500 Oops\r\nContent-Length: 900\r\n\r\nno memory")
    with ControlClient(server.address, timeout_s=0.1) as slow, pytest.raises(ServerError, match="answers HTTP 500"):
        slow.load("tiny", timeout_s=0.1)


def test_a_credential_that_the_server_echoes_is_masked():
    echo = (500, {"error": "wrong key s3cret-key-1"})
    guarded = control(Server(version=echo), access=Access(bearer="s3cret-key-1"))
    with pytest.raises(ServerError) as caught:
        guarded.get_version()
    assert str(caught.value).endswith("wrong key ***")
    assert (
        control(
            Server(version=(200, {"version": "1-s3cret-key-1"})), access=Access(bearer="s3cret-key-1")
        ).get_version()
        == "1-***"
    )


def test_an_untrusted_certificate_names_the_option(fault_server, certificate):
    context, _ = certificate
    server = fault_server(b"", wrap=lambda sock: context.wrap_socket(sock, server_side=True))
    with ControlClient(server.address) as untrusting, pytest.raises(ServerUnreachableError, match="--ollama-ca-file"):
        untrusting.get_version()


def test_a_credential_is_masked_wherever_the_server_echoes_it():
    key = "sk-7f3a-echo"
    installed = {"name": f"tiny-{key}", "digest": key, "details": {"family": key, "quantization_level": f"Q4-{key}"}}
    shown = {"parameters": f"stop {key}", "model_info": {"general.name": [key]}, "capabilities": [key]}
    server = Server(
        version=(200, {"version": f"{'1' * 35}{key}"}),
        tags=(200, {"models": [installed]}),
        ps=ps(key),
        show=(200, shown),
    )
    guarded = control(server, access=Access(bearer=key))
    found = repr([guarded.get_version(), guarded.list_models(), guarded.list_running(), guarded.get_model_info("tiny")])
    assert found.count("***") >= 7
    assert "sk-7" not in found


def test_a_header_that_is_also_the_name_of_a_model_hides_no_model():
    guarded = control(
        Server(tags=(200, {"models": [{"name": "tiny:latest"}]})), access=Access(headers=(("X", "tiny"),))
    )
    assert guarded.get_installed("tiny").name == "tiny:latest"
