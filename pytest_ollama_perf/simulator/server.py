"""The simulated server on a socket: Ollama's routes over the engine, in real time."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import msgspec

from pytest_ollama_perf.simulator import asked, openai, replies
from pytest_ollama_perf.simulator.clock import RealClock
from pytest_ollama_perf.simulator.engine import Engine, engine
from pytest_ollama_perf.simulator.http import JSON, Connection, Incoming, Outgoing
from pytest_ollama_perf.simulator.job import Ask, Drop, Failure, Truncate
from pytest_ollama_perf.simulator.settings import Model, SimulatorSettings
from pytest_ollama_perf.simulator.sinks import EmbedReply, LineReply, Reply, WholeReply

_REQUEST_ID = "x-request-id"
_Route = Callable[[Incoming, Outgoing], Awaitable[None]]
_KINDS = {"generate": "GenerateRequest", "chat": "ChatRequest"}


class Routes:
    """Answers requests by path and method."""

    def __init__(self, running: Engine, loopback: bool) -> None:
        self._engine = running
        self._settings = running.settings
        self._loopback = loopback
        self._routes: dict[str, dict[str, _Route]] = {
            "/": {"GET": self._root, "HEAD": self._root},
            "/api/version": {"GET": self._version, "HEAD": self._version},
            "/api/tags": {"GET": self._tags, "HEAD": self._tags},
            "/api/ps": {"GET": self._ps},
            "/api/show": {"POST": self._show},
            "/api/generate": {"POST": partial(self._text, "generate")},
            "/api/chat": {"POST": partial(self._text, "chat")},
            "/api/embed": {"POST": self._embed},
            "/v1/models": {"GET": self._openai_models},
            "/v1/chat/completions": {"POST": partial(self._openai_text, "chat")},
            "/v1/completions": {"POST": partial(self._openai_text, "generate")},
            "/sim/requests": {"GET": self._truths},
            "/sim/settings": {"GET": self._show_settings},
            "/sim/reset": {"POST": self._reset},
        }

    async def __call__(self, request: Incoming, outgoing: Outgoing) -> None:
        """Answer one request; what Ollama refuses is an answer as well."""
        if self._loopback and not _is_local(request.headers.get("host", "")):
            outgoing.whole(403, "", b"")
            return
        methods = self._routes.get(request.path)
        route = methods.get(request.method) if methods else None
        if route is None:
            status, words = (405, b"405 method not allowed") if methods else (404, b"404 page not found")
            outgoing.whole(status, "text/plain", words)
            return
        try:
            await route(request, outgoing)
        except Failure as failure:
            outgoing.whole(failure.status, JSON, replies.error(failure.message))

    async def _root(self, request: Incoming, outgoing: Outgoing) -> None:
        outgoing.whole(200, "text/plain; charset=utf-8", b"Ollama is running")

    async def _version(self, request: Incoming, outgoing: Outgoing) -> None:
        outgoing.whole(200, JSON, replies.dump({"version": self._settings.version}))

    async def _tags(self, request: Incoming, outgoing: Outgoing) -> None:
        outgoing.whole(200, JSON, replies.dump(replies.tags(self._settings)))

    async def _ps(self, request: Incoming, outgoing: Outgoing) -> None:
        listing = replies.ps(self._settings, self._engine.loaded(), self._engine.clock.now_ns())
        outgoing.whole(200, JSON, replies.dump(listing))

    async def _show(self, request: Incoming, outgoing: Outgoing) -> None:
        given = asked.body(request.body, "ShowRequest")
        name = given.text("model") or given.text("name")
        model = self._settings.model(name)
        if model is None:
            raise Failure(404, f"model '{name if ':' in name else name + ':latest'}' not found")
        outgoing.whole(200, JSON, replies.dump(replies.show(self._settings, model)))

    async def _truths(self, request: Incoming, outgoing: Outgoing) -> None:
        outgoing.whole(200, JSON, msgspec.json.encode({"requests": list(self._engine.truths)}))

    async def _show_settings(self, request: Incoming, outgoing: Outgoing) -> None:
        outgoing.whole(200, JSON, msgspec.json.encode(self._settings))

    async def _reset(self, request: Incoming, outgoing: Outgoing) -> None:
        self._engine.reset()
        outgoing.whole(200, JSON, b"{}")

    async def _text(self, endpoint: str, request: Incoming, outgoing: Outgoing) -> None:
        """Answer ``/api/generate`` or ``/api/chat``."""
        given = asked.body(request.body, _KINDS[endpoint])
        name = given.text("model")
        model = self._engine.model(name)
        empty = not given.items("messages") if endpoint == "chat" else not given.text("prompt")
        if empty and given.keep_alive_s == 0:
            self._engine.unload(model)
            _without_text(outgoing, name, endpoint, "unload")
            return
        asked.capable(model, name, "completion", endpoint)
        if empty:
            await self._load(given, model)
            _without_text(outgoing, name, endpoint, "load")
            return
        await self._answer(*self._completion(endpoint, given, model, request, outgoing), request)

    def _completion(
        self, endpoint: str, given: asked.Body, model: Model, request: Incoming, outgoing: Outgoing
    ) -> tuple[Ask, Reply]:
        tokenize = asked.chat_tokens if endpoint == "chat" else asked.prompt_tokens
        prompt = tokenize(given, self._engine.tokenizer)
        ask = asked.completion(given, model, prompt, endpoint, request.headers.get(_REQUEST_ID, ""))
        with_context = endpoint == "generate" and not given.flag("raw", False)
        kind = LineReply if given.stream else WholeReply
        return ask, kind(outgoing, given.text("model"), endpoint, with_context=with_context)

    async def _answer(self, ask: Ask, reply: Reply, request: Incoming) -> None:
        """Run a request through the engine and write how it ends."""
        try:
            answer, truth = await self._engine.answer(ask, reply, request.read_ns)
            reply.finish(answer)
            reply.wrote(truth)
        except Failure as failure:
            reply.fail(failure)
        except Drop:
            reply.outgoing.drop()
        except Truncate:
            reply.truncate()

    async def _load(self, given: asked.Body, model: Model) -> None:
        chosen = asked.reloads(given, asked.options(given.fields.get("options")))
        await self._engine.load(model, chosen, given.keep_alive_s)

    async def _embed(self, request: Incoming, outgoing: Outgoing) -> None:
        given = asked.body(request.body, "EmbedRequest")
        name = given.text("model")
        model = self._engine.model(name)
        ask, texts = asked.embed_ask(given, self._engine.tokenizer, request.headers.get(_REQUEST_ID, ""))
        if not model.can("embedding") or not ask.prompt:
            await self._load(given, model)
            if not model.can("embedding"):
                raise Failure(501, "This server does not support embeddings. Start it with `--embeddings`")
            outgoing.whole(200, JSON, replies.dump(replies.embeddings(name, [])))
            return
        await self._answer(ask, EmbedReply(outgoing, name, texts, model.embedding_length), request)

    async def _openai_models(self, request: Incoming, outgoing: Outgoing) -> None:
        outgoing.whole(200, "application/json", openai.models(self._settings))

    async def _openai_text(self, endpoint: str, request: Incoming, outgoing: Outgoing) -> None:
        request_id = request.headers.get(_REQUEST_ID, "")
        read = openai.completion(endpoint, self._engine, request, outgoing, request_id)
        if read is not None:
            await self._answer(*read, request)


def _without_text(outgoing: Outgoing, name: str, endpoint: str, reason: str) -> None:
    """Answer an empty prompt: it loads the model, or unloads it when it is to be kept for no time at all."""
    fields = replies.head(name) | replies.text_field(endpoint, "") | replies.done(reason)
    outgoing.whole(200, JSON, replies.dump(fields))


def _is_local(host: str) -> bool:
    """Say whether a Host header is one that a server on loopback answers, so that no foreign web page can use it."""
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

    ``OSError`` when the address cannot be had.
    """
    async with engine(settings, RealClock()) as running:
        connections: set[Connection] = set()
        server = await _listen(running, connections, host, port)
        bound = server.sockets[0].getsockname()
        try:
            yield f"http://{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}", running
        finally:
            server.close()
            for connection in list(connections):
                await connection.close()


async def _listen(running: Engine, connections: set[Connection], host: str, port: int) -> asyncio.Server:
    routes = Routes(running, loopback=_is_loopback(host))
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: Connection(routes, connections), host, port, backlog=1024)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
