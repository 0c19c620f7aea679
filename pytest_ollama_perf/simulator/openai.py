"""The OpenAI-compatible routes: the same engine, other field names, no timings."""

from __future__ import annotations

import random
import time
from typing import Any

from pytest_ollama_perf.simulator import replies, requests
from pytest_ollama_perf.simulator.engine import Engine, InferenceResult
from pytest_ollama_perf.simulator.http import JSON_TYPE, IncomingRequest, OutgoingResponse
from pytest_ollama_perf.simulator.job import InferenceRequest, ResponseError
from pytest_ollama_perf.simulator.replies import Reply, StreamReply, WholeReply
from pytest_ollama_perf.simulator.settings import SimulatorSettings

_OPENAI_JSON_TYPE = "application/json"
_ERROR_TYPES = {400: "invalid_request_error", 404: "not_found_error"}
_OBJECT_KINDS = {"chat": ("chatcmpl", "chat.completion"), "generate": ("cmpl", "text_completion")}


def encode_error(status: int, message: str) -> bytes:
    """Return an error in OpenAI's form."""
    kind = _ERROR_TYPES.get(status, "api_error")
    return replies.encode_json({"error": {"message": message, "type": kind, "param": None, "code": None}})


def encode_models(settings: SimulatorSettings) -> bytes:
    """Return the body of ``/v1/models``."""
    created = int(time.time())
    rows = [
        {"id": model.full_name, "object": "model", "created": created, "owned_by": "library"}
        for model in settings.models
    ]
    return replies.encode_json({"object": "list", "data": rows}) + b"\n"


class _ObjectHead:
    """The fields that all objects of one response share; ``chunk`` marks the parts of a streamed chat."""

    def __init__(self, endpoint: str, model: str, *, streamed: bool) -> None:
        prefix, kind = _OBJECT_KINDS[endpoint]
        self.fields = {
            "id": f"{prefix}-{random.randrange(1000)}",
            "object": f"{kind}.chunk" if streamed and endpoint == "chat" else kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": "fp_ollama",
        }


def _build_usage(answer: InferenceResult) -> dict[str, int]:
    prompt, output = answer.counters.prompt_eval_count or 0, answer.counters.eval_count or 0
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def _build_message(text: str, thinking: str) -> dict[str, str]:
    return {"content": text} | ({"reasoning": thinking} if thinking else {})


class EventReply(StreamReply):
    """Server-sent events that end with ``[DONE]``; after a failure the stream ends without it."""

    content_type = "text/event-stream"

    def __init__(self, outgoing: OutgoingResponse, model: str, endpoint: str, *, with_usage: bool) -> None:
        super().__init__(outgoing)
        self._endpoint = endpoint
        self._head = _ObjectHead(endpoint, model, streamed=True).fields
        self._with_usage = with_usage

    def write_text(self, text: str, thinking: bool, at_ns: int) -> None:
        """Send a piece of text as an event."""
        role = {} if self.outgoing.started else {"role": "assistant"}
        said = _build_message("" if thinking else text, text if thinking else "")
        self._send_event([self._build_choice(text, role | said, None)])

    def finish(self, answer: InferenceResult) -> None:
        """Send the finish reason, the usage if it was requested, and the end of the stream."""
        self._send_event([self._build_choice("", {}, answer.reason)])
        if self._with_usage:
            self._send_event([], usage=_build_usage(answer))
        self.send(b"data: [DONE]\n\n")
        self.outgoing.end()

    def fail(self, failure: ResponseError) -> None:
        """End the stream, or send the error if nothing was sent yet."""
        if self.outgoing.started:
            self.outgoing.end()
        else:
            self.outgoing.send_whole(
                failure.status, _OPENAI_JSON_TYPE, encode_error(failure.status, failure.message) + b"\n"
            )

    def _build_choice(self, text: str, delta: dict[str, str], reason: str | None) -> dict[str, Any]:
        if self._endpoint == "chat":
            return {"index": 0, "delta": delta, "finish_reason": reason}
        return {"text": text, "index": 0, "finish_reason": reason}

    def _send_event(self, choices: list[dict[str, Any]], **more: object) -> None:
        self.send(b"data: " + replies.encode_json(self._head | {"choices": choices} | more) + b"\n\n")


class CompletionReply(WholeReply):
    """One completion object at the end."""

    def __init__(self, outgoing: OutgoingResponse, model: str, endpoint: str) -> None:
        super().__init__(outgoing, model, endpoint, with_context=False)
        self._chat = endpoint == "chat"
        self._head = _ObjectHead(endpoint, model, streamed=False).fields

    def finish(self, answer: InferenceResult) -> None:
        """Send the whole answer."""
        self.send_whole(200, _OPENAI_JSON_TYPE, replies.encode_json(self.build_fields(answer)) + b"\n")

    def build_fields(self, answer: InferenceResult) -> dict[str, object]:
        """Return the fields of the JSON answer."""
        choice: dict[str, object] = {"text": self.join_text(), "index": 0, "finish_reason": answer.reason}
        if self._chat:
            message = {"role": "assistant"} | _build_message(self.join_text(), self.join_text(thinking=True))
            choice = {"index": 0, "message": message, "finish_reason": answer.reason}
        return self._head | {"choices": [choice], "usage": _build_usage(answer)}

    def fail(self, failure: ResponseError) -> None:
        """Send the error."""
        self.send_whole(failure.status, _OPENAI_JSON_TYPE, encode_error(failure.status, failure.message) + b"\n")


def parse_completion(
    endpoint: str, running: Engine, request: IncomingRequest, outgoing: OutgoingResponse, request_id: str
) -> tuple[InferenceRequest, Reply] | None:
    """Read a request of ``/v1/chat/completions`` or ``/v1/completions``; ``None`` if it was already answered."""
    try:
        return _parse_request(endpoint, running, request, outgoing, request_id)
    except ResponseError as failure:
        found = failure.status == 404
        body = encode_error(failure.status, failure.message) + (b"\n" if found else b"")
        outgoing.send_whole(failure.status, _OPENAI_JSON_TYPE if found else JSON_TYPE, body)
        return None


def _parse_request(
    endpoint: str, running: Engine, request: IncomingRequest, outgoing: OutgoingResponse, request_id: str
) -> tuple[InferenceRequest, Reply]:
    given = requests.parse_body(request.body, "ChatCompletionRequest" if endpoint == "chat" else "CompletionRequest")
    if endpoint == "chat" and not given.get_list("messages"):
        raise ResponseError(400, "[] is too short - 'messages'")
    name = given.get_text("model")
    model = running.get_model(name)
    requests.require_capability(model, name, "completion", endpoint)
    native = requests.RequestBody(_to_native_fields(given), "GenerateRequest")
    tokenize = requests.tokenize_chat if endpoint == "chat" else requests.tokenize_prompt
    ask = requests.build_completion_request(native, model, tokenize(native, running.tokenizer), endpoint, request_id)
    if not given.get_flag("stream", False):
        return ask, CompletionReply(outgoing, name, endpoint)
    wanted = given.fields.get("stream_options") or {}
    return ask, EventReply(outgoing, name, endpoint, with_usage=bool(wanted.get("include_usage")))


def _to_native_fields(given: requests.RequestBody) -> dict[str, Any]:
    """Return the fields of the equivalent request of Ollama's API."""
    fields = given.fields
    limit = fields.get("max_completion_tokens") or fields.get("max_tokens")
    stop = fields.get("stop")
    options = {"num_predict": limit, "seed": fields.get("seed"), "stop": [stop] if isinstance(stop, str) else stop}
    kept = {name: fields[name] for name in ("model", "messages", "prompt", "system") if name in fields}
    return kept | {"options": {name: value for name, value in options.items() if value is not None}}
