"""The OpenAI-compatible routes: the same engine, other words around it, no timings."""

from __future__ import annotations

import random
import time
from typing import Any

from pytest_ollama_perf.simulator import asked, replies
from pytest_ollama_perf.simulator.engine import Answer, Engine
from pytest_ollama_perf.simulator.http import JSON, Incoming, Outgoing
from pytest_ollama_perf.simulator.job import Ask, Failure
from pytest_ollama_perf.simulator.settings import SimulatorSettings
from pytest_ollama_perf.simulator.sinks import Reply, StreamReply, WholeReply

_PLAIN = "application/json"
_TYPES = {400: "invalid_request_error", 404: "not_found_error"}
_OBJECTS = {"chat": ("chatcmpl", "chat.completion"), "generate": ("cmpl", "text_completion")}


def error(status: int, message: str) -> bytes:
    """Return an error in OpenAI's form."""
    kind = _TYPES.get(status, "api_error")
    return replies.dump({"error": {"message": message, "type": kind, "param": None, "code": None}})


def models(settings: SimulatorSettings) -> bytes:
    """Return the body of ``/v1/models``."""
    created = int(time.time())
    rows = [
        {"id": model.full_name, "object": "model", "created": created, "owned_by": "library"}
        for model in settings.models
    ]
    return replies.dump({"object": "list", "data": rows}) + b"\n"


class _Head:
    """What all objects of one answer begin with; ``chunk`` marks the parts of a streamed chat."""

    def __init__(self, endpoint: str, model: str, *, streamed: bool) -> None:
        prefix, kind = _OBJECTS[endpoint]
        self.fields = {
            "id": f"{prefix}-{random.randrange(1000)}",
            "object": f"{kind}.chunk" if streamed and endpoint == "chat" else kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": "fp_ollama",
        }


def _usage(answer: Answer) -> dict[str, int]:
    prompt, output = answer.counters.prompt_eval_count or 0, answer.counters.eval_count or 0
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def _said(text: str, thinking: str) -> dict[str, str]:
    return {"content": text} | ({"reasoning": thinking} if thinking else {})


class EventReply(StreamReply):
    """Server-sent events, ending in ``[DONE]``; a failure just ends them."""

    content_type = "text/event-stream"

    def __init__(self, outgoing: Outgoing, model: str, endpoint: str, *, with_usage: bool) -> None:
        super().__init__(outgoing)
        self._endpoint = endpoint
        self._head = _Head(endpoint, model, streamed=True).fields
        self._with_usage = with_usage

    def piece(self, text: str, thinking: bool, at_ns: int) -> None:
        role = {} if self.outgoing.started else {"role": "assistant"}
        said = _said("" if thinking else text, text if thinking else "")
        self._event([self._choice(text, role | said, None)])

    def finish(self, answer: Answer) -> None:
        self._event([self._choice("", {}, answer.reason)])
        if self._with_usage:
            self._event([], usage=_usage(answer))
        self.send(b"data: [DONE]\n\n")
        self.outgoing.end()

    def fail(self, failure: Failure) -> None:
        if self.outgoing.started:
            self.outgoing.end()
        else:
            self.outgoing.whole(failure.status, _PLAIN, error(failure.status, failure.message) + b"\n")

    def _choice(self, text: str, delta: dict[str, str], reason: str | None) -> dict[str, Any]:
        if self._endpoint == "chat":
            return {"index": 0, "delta": delta, "finish_reason": reason}
        return {"text": text, "index": 0, "finish_reason": reason}

    def _event(self, choices: list[dict[str, Any]], **more: object) -> None:
        self.send(b"data: " + replies.dump(self._head | {"choices": choices} | more) + b"\n\n")


class CompletionReply(WholeReply):
    """One completion object at the end."""

    def __init__(self, outgoing: Outgoing, model: str, endpoint: str) -> None:
        super().__init__(outgoing, model, endpoint, with_context=False)
        self._chat = endpoint == "chat"
        self._head = _Head(endpoint, model, streamed=False).fields

    def finish(self, answer: Answer) -> None:
        self.whole(200, _PLAIN, replies.dump(self.fields(answer)) + b"\n")

    def fields(self, answer: Answer) -> dict[str, object]:
        choice: dict[str, object] = {"text": self.text(), "index": 0, "finish_reason": answer.reason}
        if self._chat:
            message = {"role": "assistant"} | _said(self.text(), self.text(thinking=True))
            choice = {"index": 0, "message": message, "finish_reason": answer.reason}
        return self._head | {"choices": [choice], "usage": _usage(answer)}

    def fail(self, failure: Failure) -> None:
        self.whole(failure.status, _PLAIN, error(failure.status, failure.message) + b"\n")


def completion(
    endpoint: str, running: Engine, request: Incoming, outgoing: Outgoing, request_id: str
) -> tuple[Ask, Reply] | None:
    """Read a request of ``/v1/chat/completions`` or ``/v1/completions``; ``None`` when it is already answered."""
    try:
        return _read(endpoint, running, request, outgoing, request_id)
    except Failure as failure:
        found = failure.status == 404
        body = error(failure.status, failure.message) + (b"\n" if found else b"")
        outgoing.whole(failure.status, _PLAIN if found else JSON, body)
        return None


def _read(endpoint: str, running: Engine, request: Incoming, outgoing: Outgoing, request_id: str) -> tuple[Ask, Reply]:
    given = asked.body(request.body, "ChatCompletionRequest" if endpoint == "chat" else "CompletionRequest")
    if endpoint == "chat" and not given.items("messages"):
        raise Failure(400, "[] is too short - 'messages'")
    name = given.text("model")
    model = running.model(name)
    asked.capable(model, name, "completion", endpoint)
    native = asked.Body(_native(given), "GenerateRequest")
    tokenize = asked.chat_tokens if endpoint == "chat" else asked.prompt_tokens
    ask = asked.completion(native, model, tokenize(native, running.tokenizer), endpoint, request_id)
    if not given.flag("stream", False):
        return ask, CompletionReply(outgoing, name, endpoint)
    wanted = given.fields.get("stream_options") or {}
    return ask, EventReply(outgoing, name, endpoint, with_usage=bool(wanted.get("include_usage")))


def _native(given: asked.Body) -> dict[str, Any]:
    """Say the request in Ollama's own words."""
    fields = given.fields
    limit = fields.get("max_completion_tokens") or fields.get("max_tokens")
    stop = fields.get("stop")
    options = {"num_predict": limit, "seed": fields.get("seed"), "stop": [stop] if isinstance(stop, str) else stop}
    kept = {name: fields[name] for name in ("model", "messages", "prompt", "system") if name in fields}
    return kept | {"options": {name: value for name, value in options.items() if value is not None}}
