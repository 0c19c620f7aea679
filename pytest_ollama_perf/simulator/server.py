"""The simulated server on a socket: Ollama's routes, answered by the engine in real time."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import MappingProxyType

import msgspec

from pytest_ollama_perf.simulator import openai, replies, requests
from pytest_ollama_perf.simulator.engine import Engine, run_engine
from pytest_ollama_perf.simulator.faults import CONTROL_FAULTS, Fault, FaultKind, FaultScript
from pytest_ollama_perf.simulator.http import JSON_TYPE, HttpServerConnection, IncomingRequest, OutgoingResponse
from pytest_ollama_perf.simulator.job import (
    DroppedConnectionError,
    InferenceRequest,
    RealClock,
    ResponseError,
    TransportFaultError,
    TruncatedResponseError,
)
from pytest_ollama_perf.simulator.replies import EmbedReply, LineReply, Reply, WholeReply
from pytest_ollama_perf.simulator.settings import SimulatedModel, SimulatorSettings

_REQUEST_ID_HEADER = "x-request-id"
_RouteHandler = Callable[[IncomingRequest, OutgoingResponse], Awaitable[None]]
_REQUEST_TYPES = {"generate": "GenerateRequest", "chat": "ChatRequest"}


class Router:
    """Routes requests by path and method."""

    def __init__(self, running: Engine, loopback: bool, refuse: Callable[[float], None]) -> None:
        self._engine = running
        self._settings = running.settings
        self._loopback = loopback
        self._refuse = refuse
        self._control_calls = 0
        control = [fault for fault in self._settings.faults if fault.kind in CONTROL_FAULTS]
        self._control_script = FaultScript(control, self._settings.seed)
        self._routes: dict[str, dict[str, _RouteHandler]] = {
            "/": {"GET": self._handle_root, "HEAD": self._handle_root},
            "/api/version": self._make_control_route(self._handle_version, "GET", "HEAD"),
            "/api/tags": self._make_control_route(self._handle_tags, "GET", "HEAD"),
            "/api/ps": self._make_control_route(self._handle_ps, "GET"),
            "/api/show": self._make_control_route(self._handle_show, "POST"),
            "/api/generate": {"POST": partial(self._handle_text, "generate")},
            "/api/chat": {"POST": partial(self._handle_text, "chat")},
            "/api/embed": {"POST": self._handle_embed},
            "/v1/models": {"GET": self._handle_openai_models},
            "/v1/chat/completions": {"POST": partial(self._handle_openai_text, "chat")},
            "/v1/completions": {"POST": partial(self._handle_openai_text, "generate")},
            "/sim/requests": {"GET": self._handle_ground_truth},
            "/sim/settings": {"GET": self._handle_settings},
            "/sim/reset": {"POST": self._handle_reset},
        }

    async def __call__(self, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
        """Answer one request, with an error response where Ollama would send one."""
        if self._loopback and not _is_local(request.headers.get("host", "")):
            outgoing.send_whole(403, "", b"")
            return
        methods = self._routes.get(request.path)
        route = methods.get(request.method) if methods else None
        if route is None:
            status, text = (405, b"405 method not allowed") if methods else (404, b"404 page not found")
            outgoing.send_whole(status, "text/plain", text)
            return
        try:
            await route(request, outgoing)
        except ResponseError as failure:
            outgoing.send_whole(failure.status, JSON_TYPE, replies.encode_error(failure.message))

    def _make_control_route(self, handle: _RouteHandler, *methods: str) -> dict[str, _RouteHandler]:
        async def handle_unless_faulty(request: IncomingRequest, outgoing: OutgoingResponse) -> None:
            if not await self._apply_control_fault(request, outgoing):
                await handle(request, outgoing)

        return dict.fromkeys(methods, handle_unless_faulty)

    async def _apply_control_fault(self, request: IncomingRequest, outgoing: OutgoingResponse) -> bool:
        """Write the fault that the script has for this control call; return whether there was one."""
        self._control_calls += 1
        faults = self._control_script.draw_faults(self._control_calls)
        for fault in faults.values():
            await _respond_with_fault(fault, request, outgoing)
        return bool(faults)

    async def _handle_root(self, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
        outgoing.send_whole(200, "text/plain; charset=utf-8", b"Ollama is running")

    async def _handle_version(self, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
        outgoing.send_whole(200, JSON_TYPE, replies.encode_json({"version": self._settings.version}))

    async def _handle_tags(self, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
        outgoing.send_whole(200, JSON_TYPE, replies.encode_json(replies.build_tags(self._settings)))

    async def _handle_ps(self, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
        listing = replies.build_ps(self._settings, self._engine.list_loaded(), self._engine.clock.now_ns())
        outgoing.send_whole(200, JSON_TYPE, replies.encode_json(listing))

    async def _handle_show(self, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
        given = requests.parse_body(request.body, "ShowRequest")
        name = given.get_text("model") or given.get_text("name")
        model = self._settings.find_model(name)
        if model is None:
            raise ResponseError(404, f"model '{name if ':' in name else name + ':latest'}' not found")
        outgoing.send_whole(200, JSON_TYPE, replies.encode_json(replies.build_show(model)))

    async def _handle_ground_truth(self, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
        outgoing.send_whole(200, JSON_TYPE, msgspec.json.encode({"requests": list(self._engine.ground_truths)}))

    async def _handle_settings(self, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
        outgoing.send_whole(200, JSON_TYPE, msgspec.json.encode(self._settings))

    async def _handle_reset(self, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
        self._engine.reset()
        self._control_calls = 0
        outgoing.send_whole(200, JSON_TYPE, b"{}")

    async def _handle_text(self, endpoint: str, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
        """Answer ``/api/generate`` or ``/api/chat``."""
        given = requests.parse_body(request.body, _REQUEST_TYPES[endpoint])
        name = given.get_text("model")
        model = self._engine.get_model(name)
        empty = not given.get_list("messages") if endpoint == "chat" else not given.get_text("prompt")
        if empty and await self._apply_control_fault(request, outgoing):
            return
        if empty and given.keep_alive_s == 0:
            self._engine.unload(model)
            _send_empty_reply(outgoing, name, endpoint, "unload")
            return
        requests.require_capability(model, name, "completion", endpoint)
        if empty:
            await self._load(given, model)
            _send_empty_reply(outgoing, name, endpoint, "load")
            return
        await self._answer(*self._build_completion(endpoint, given, model, request, outgoing), request)

    def _build_completion(
        self,
        endpoint: str,
        given: requests.RequestBody,
        model: SimulatedModel,
        request: IncomingRequest,
        outgoing: OutgoingResponse,
    ) -> tuple[InferenceRequest, Reply]:
        tokenize = requests.tokenize_chat if endpoint == "chat" else requests.tokenize_prompt
        prompt = tokenize(given, self._engine.tokenizer)
        ask = requests.build_completion_request(
            given, model, prompt, endpoint, request.headers.get(_REQUEST_ID_HEADER, "")
        )
        with_context = endpoint == "generate" and not given.get_flag("raw", False)
        kind = LineReply if given.stream else WholeReply
        return ask, kind(outgoing, given.get_text("model"), endpoint, with_context=with_context)

    async def _answer(self, ask: InferenceRequest, reply: Reply, request: IncomingRequest) -> None:
        """Run a request in the engine and write its result."""
        try:
            answer, truth = await self._engine.answer(ask, reply, request.read_ns)
            reply.finish(answer)
            reply.record_write_times(truth)
        except ResponseError as failure:
            reply.fail(failure)
        except TransportFaultError as failure:
            if failure.fault.kind is FaultKind.REFUSE:
                self._refuse(failure.fault.seconds)
            else:
                await _respond_with_fault(failure.fault, request, reply.outgoing)
        except DroppedConnectionError:
            reply.outgoing.drop()
        except TruncatedResponseError:
            reply.truncate()

    async def _load(self, given: requests.RequestBody, model: SimulatedModel) -> None:
        chosen = requests.merge_shift_option(given, requests.check_options(given.fields.get("options")))
        await self._engine.load(model, chosen, given.keep_alive_s)

    async def _handle_embed(self, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
        given = requests.parse_body(request.body, "EmbedRequest")
        name = given.get_text("model")
        model = self._engine.get_model(name)
        ask, texts = requests.build_embed_request(
            given, self._engine.tokenizer, request.headers.get(_REQUEST_ID_HEADER, "")
        )
        if not model.has_capability("embedding") or not ask.prompt:
            await self._load(given, model)
            if not model.has_capability("embedding"):
                raise ResponseError(501, "This server does not support embeddings. Start it with `--embeddings`")
            outgoing.send_whole(200, JSON_TYPE, replies.encode_json(replies.build_embeddings(name, [])))
            return
        await self._answer(ask, EmbedReply(outgoing, name, texts, model.embedding_length), request)

    async def _handle_openai_models(self, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
        outgoing.send_whole(200, "application/json", openai.encode_models(self._settings))

    async def _handle_openai_text(self, endpoint: str, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
        request_id = request.headers.get(_REQUEST_ID_HEADER, "")
        read = openai.parse_completion(endpoint, self._engine, request, outgoing, request_id)
        if read is not None:
            await self._answer(*read, request)


def _send_empty_reply(outgoing: OutgoingResponse, name: str, endpoint: str, reason: str) -> None:
    """Answer an empty prompt, which loads the model, or unloads it with ``keep_alive`` 0."""
    fields = replies.build_head(name) | replies.build_text_field(endpoint, "") | replies.build_done(reason)
    outgoing.send_whole(200, JSON_TYPE, replies.encode_json(fields))


_HTML_PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in.</body></html>\n"
_TRICKLED_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Padding: "
_Respond = Callable[[Fault, IncomingRequest, OutgoingResponse], Awaitable[None]]


async def _respond_with_fault(fault: Fault, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
    """Write what ``fault`` sends in place of a response. ``REFUSE`` is left to the server, which owns the socket."""
    await _RESPONDERS[fault.kind](fault, request, outgoing)


async def _send_html(fault: Fault, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
    outgoing.send_whole(200, "text/html; charset=utf-8", _HTML_PAGE)


async def _reset(fault: Fault, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
    outgoing.reset()


async def _trickle(fault: Fault, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
    for byte in _TRICKLED_HEAD:
        outgoing.send_raw(bytes([byte]))
        await asyncio.sleep(fault.seconds)
    while True:  # a header that never ends; the client hanging up cancels this task
        outgoing.send_raw(b"x")
        await asyncio.sleep(fault.seconds)


async def _echo_key(fault: Fault, request: IncomingRequest, outgoing: OutgoingResponse) -> None:
    given = request.headers.get("authorization", "no key")
    outgoing.send_whole(500, JSON_TYPE, replies.encode_error(f"upstream rejected Authorization: {given}"))


_RESPONDERS: Mapping[FaultKind, _Respond] = MappingProxyType(
    {
        FaultKind.HTML: _send_html,
        FaultKind.CONTROL_HTML: _send_html,
        FaultKind.RESET: _reset,
        FaultKind.TRICKLE: _trickle,
        FaultKind.CONTROL_TRICKLE: _trickle,
        FaultKind.ECHO_KEY: _echo_key,
    }
)


def _is_local(host: str) -> bool:
    """Return whether a server on loopback accepts this Host header; others are rejected to block foreign web pages."""
    name = host.rsplit(":", 1)[0] if host.count(":") == 1 or host.startswith("[") else host
    name = name.strip("[]").lower()
    if name in {"", "localhost"} or name.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@asynccontextmanager
async def serve(
    settings: SimulatorSettings, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[tuple[str, Engine]]:
    """Serve on ``host`` and ``port`` (0: any free one); yields the URL and the engine. Must run on asyncio.

    ``OSError`` if the address is not available.
    """
    async with run_engine(settings, RealClock()) as running:
        listener = _Listener(running, host, port)
        try:
            yield await listener.open(), running
        finally:
            await listener.close()


class _Listener:
    """The listening socket and its connections."""

    def __init__(self, running: Engine, host: str, port: int) -> None:
        self._router = Router(running, loopback=_is_loopback(host), refuse=self.refuse)
        self._host, self._port = host, port
        self._connections: set[HttpServerConnection] = set()
        self._server: asyncio.Server | None = None
        self._reopening: asyncio.Task[str] | None = None

    async def open(self, delay_s: float = 0.0) -> str:
        """Listen after ``delay_s``, on the same port as before; return the URL."""
        await asyncio.sleep(delay_s)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: HttpServerConnection(self._router, self._connections), self._host, self._port, backlog=1024
        )
        address, self._port = self._server.sockets[0].getsockname()[:2]
        return f"http://{f'[{address}]' if ':' in address else address}:{self._port}"

    def refuse(self, seconds: float) -> None:
        """Reset all connections and refuse new ones for ``seconds``."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for connection in list(self._connections):
            connection.reset()
        self._reopening = asyncio.get_running_loop().create_task(self.open(seconds))

    async def close(self) -> None:
        """Stop listening, close the connections and wait for their handlers."""
        if self._reopening is not None:
            self._reopening.cancel()
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            await connection.close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
