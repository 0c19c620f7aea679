"""The JSON of Ollama's responses: listings, model details, the lines of a stream and the final object."""

from __future__ import annotations

import abc
import functools
import json
import random
import time
from typing import Any

from pytest_ollama_perf.core.sample import Counters
from pytest_ollama_perf.simulator.engine import InferenceResult
from pytest_ollama_perf.simulator.http import JSON_TYPE, OutgoingResponse
from pytest_ollama_perf.simulator.job import GroundTruth, ResponseError
from pytest_ollama_perf.simulator.scheduler import ResidentModel
from pytest_ollama_perf.simulator.settings import SimulatedModel, SimulatorSettings

_STARTED_NS = time.time_ns()
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_CHAT_TEMPLATE = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
)


def encode_json(value: object) -> bytes:
    """Encode as Go's ``encoding/json`` does: no spaces, and ``< > &`` escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for char, escape in _ESCAPES.items():
        text = text.replace(char, escape)
    return text.encode()


def encode_error(message: str) -> bytes:
    """Return the JSON of an error message."""
    return encode_json({"error": message})


def format_time(wall_ns: int | None = None) -> str:
    """Return a time as Go formats it: RFC 3339 in UTC, without trailing zeros."""
    seconds, nanos = divmod(time.time_ns() if wall_ns is None else wall_ns, 1_000_000_000)
    fraction = f".{nanos:09d}".rstrip("0").rstrip(".")
    return f"{_format_second(seconds)}{fraction}Z"


@functools.lru_cache(maxsize=4)
def _format_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _build_details(model: SimulatedModel) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": [model.family],
        "parameter_size": model.parameters,
        "quantization_level": model.quantization,
    }


def build_tags(settings: SimulatorSettings) -> dict[str, Any]:
    """Return the body of ``/api/tags``."""
    return {"models": [_build_tag(model) for model in settings.models]}


def _build_tag(model: SimulatedModel) -> dict[str, Any]:
    lengths = {"context_length": model.context_length, "embedding_length": model.embedding_length}
    return {
        "name": model.full_name,
        "model": model.full_name,
        "modified_at": format_time(_STARTED_NS),
        "size": model.size,
        "digest": model.full_digest,
        "details": _build_details(model) | lengths,
        "capabilities": list(model.capabilities),
    }


def build_ps(settings: SimulatorSettings, loaded: list[ResidentModel], now_ns: int) -> dict[str, Any]:
    """Return the body of ``/api/ps``."""
    return {"models": [_build_running_model(settings, held, now_ns) for held in loaded]}


def _build_running_model(settings: SimulatorSettings, held: ResidentModel, now_ns: int) -> dict[str, Any]:
    model, num_ctx = held.model, held.runner.num_ctx
    size = model.size + 64 * model.embedding_length * num_ctx // 32
    share = settings.vram_share if model.vram_share is None else model.vram_share
    return {
        "name": model.full_name,
        "model": model.full_name,
        "size": size,
        "digest": model.full_digest,
        "details": _build_details(model),
        "expires_at": _format_expiry(held, now_ns),
        "size_vram": round(size * share),
        "context_length": num_ctx,
    }


def _format_expiry(held: ResidentModel, now_ns: int) -> str:
    """Return when the model expires; a model in use expires one ``keep_alive`` from now."""
    if held.keep_s < 0:
        return "2318-11-20T00:00:00Z"
    left = round(held.keep_s * 1e9) if held.users or held.expires_ns is None else held.expires_ns - now_ns
    return format_time(time.time_ns() + left)


def build_show(model: SimulatedModel) -> dict[str, Any]:
    """Return the body of ``/api/show``."""
    modelfile = f"# A simulated model\n\nFROM {model.full_name}\n"
    return {
        "modelfile": modelfile + (f"PARAMETER num_ctx {model.num_ctx}\n" if model.num_ctx else ""),
        **({"parameters": f"num_ctx                        {model.num_ctx}"} if model.num_ctx else {}),
        "template": _CHAT_TEMPLATE,
        "details": _build_details(model),
        "model_info": _build_model_info(model),
        "tensors": [{"name": "token_embd.weight", "type": "F16", "shape": [model.embedding_length, 510]}],
        "capabilities": list(model.capabilities),
        "modified_at": format_time(_STARTED_NS),
    }


def _build_model_info(model: SimulatedModel) -> dict[str, Any]:
    return {
        "general.architecture": model.family,
        "general.file_type": 1,
        "general.parameter_count": _parse_parameter_count(model.parameters),
        f"{model.family}.context_length": model.context_length,
        f"{model.family}.embedding_length": model.embedding_length,
    }


def _parse_parameter_count(parameters: str) -> int:
    factor = {"K": 10**3, "M": 10**6, "B": 10**9}.get(parameters[-1:], 1)
    return round(float(parameters.rstrip("KMB") or 0) * factor)


def build_head(model: str) -> dict[str, Any]:
    """Return the fields that every object of a text response begins with."""
    return {"model": model, "created_at": format_time()}


def build_text_field(endpoint: str, text: str, thinking: str = "") -> dict[str, Any]:
    """Return the text of an object: ``message`` of a chat, else ``response``."""
    thought = {"thinking": thinking} if thinking else {}
    if endpoint == "chat":
        return {"message": {"role": "assistant", "content": text} | thought}
    return {"response": text} | thought


def build_done(reason: str) -> dict[str, Any]:
    """Return the fields that end an answer."""
    return {"done": True, "done_reason": reason}


def build_counters(counters: Counters) -> dict[str, int]:
    """Return the counters of a final object; zeros are omitted."""
    fields = {
        "total_duration": counters.total_duration_ns,
        "load_duration": counters.load_duration_ns,
        "prompt_eval_count": counters.prompt_eval_count,
        "prompt_eval_cached_count": counters.prompt_eval_cached_count,
        "prompt_eval_duration": counters.prompt_eval_duration_ns,
        "eval_count": counters.eval_count,
        "eval_duration": counters.eval_duration_ns,
    }
    return {name: value for name, value in fields.items() if value}


def build_ending(answer: InferenceResult, with_context: bool) -> dict[str, Any]:
    """Return the part of the final object after its text; ``context`` only if a template was used."""
    context = {"context": list(answer.tokens)} if with_context else {}
    return build_done(answer.reason) | context | build_counters(answer.counters)


def build_embeddings(model: str, vectors: list[tuple[float, ...]]) -> dict[str, object]:
    """Return the body of ``/api/embed`` without its counters."""
    return {"model": model, "embeddings": vectors}


@functools.lru_cache(maxsize=512)
def compute_embedding(text: str, length: int) -> tuple[float, ...]:
    """Return a vector of length 1 that depends only on ``text``."""
    drawn = [byte - 127.5 for byte in random.Random(text).randbytes(length)]
    norm = sum(value * value for value in drawn) ** 0.5
    return tuple(round(value / norm, 9) for value in drawn)


NDJSON_TYPE = "application/x-ndjson"
_GARBAGE = b"<html><body>502 Bad Gateway</body></html>\n"


@functools.lru_cache(maxsize=4096)
def _encode_line_end(endpoint: str, text: str, thinking: bool) -> bytes:
    """Return a line of a stream from its text on, cached because the same texts repeat."""
    fields = build_text_field(endpoint, "" if thinking else text, text if thinking else "")
    return b'",' + encode_json(fields | {"done": False})[1:] + b"\n"


class Reply(abc.ABC):
    """A response in any form; receives the pieces as the engine's ``ResponseSink``."""

    def __init__(self, outgoing: OutgoingResponse) -> None:
        self.outgoing = outgoing
        self._first_write_ns: int | None = None

    @abc.abstractmethod
    def write_text(self, text: str, thinking: bool, at_ns: int) -> None:
        """Take the text of one or more tokens."""

    @abc.abstractmethod
    def write_garbage(self, at_ns: int) -> None:
        """Send something that is not JSON."""

    @abc.abstractmethod
    def finish(self, answer: InferenceResult) -> None:
        """Send the final object."""

    @abc.abstractmethod
    def fail(self, failure: ResponseError) -> None:
        """Send the error."""

    @abc.abstractmethod
    def truncate(self) -> None:
        """End the response properly as HTTP, but without ``done: true``."""

    def record_write_times(self, truth: GroundTruth) -> None:
        """Record in the ground truth when bytes were written."""
        truth.first_write_ns, truth.last_write_ns = self._first_write_ns, time.perf_counter_ns()

    def record_first_write(self) -> None:
        """Record when the first bytes of the text are written."""
        if self._first_write_ns is None:
            self._first_write_ns = time.perf_counter_ns()


class StreamReply(Reply):
    """Sends every piece immediately; status and headers leave with the first one."""

    content_type = NDJSON_TYPE

    def write_garbage(self, at_ns: int) -> None:
        """Send a line that is no JSON."""
        self.send(_GARBAGE)

    def truncate(self) -> None:
        """End the stream without its last line."""
        if not self.outgoing.started:
            self.outgoing.start(200, self.content_type)
        self.outgoing.end()

    def send(self, data: bytes) -> None:
        """Send one chunk."""
        if not self.outgoing.started:
            self.outgoing.start(200, self.content_type)
        self.record_first_write()
        self.outgoing.send_chunk(data)


class LineReply(StreamReply):
    """Ollama's stream: one object per line, and an error line for a failure."""

    def __init__(self, outgoing: OutgoingResponse, model: str, endpoint: str, *, with_context: bool) -> None:
        super().__init__(outgoing)
        self._model = model
        self._endpoint = endpoint
        self._with_context = with_context
        self._line_start = b'{"model":' + encode_json(model) + b',"created_at":"'

    def write_text(self, text: str, thinking: bool, at_ns: int) -> None:
        """Send a piece of text as a line."""
        self.send(self._line_start + format_time().encode() + _encode_line_end(self._endpoint, text, thinking))

    def finish(self, answer: InferenceResult) -> None:
        """Send the last line with the counters."""
        text = build_text_field(self._endpoint, "")
        fields = build_head(self._model) | text | build_ending(answer, self._with_context)
        self.send(encode_json(fields) + b"\n")
        self.outgoing.end()

    def fail(self, failure: ResponseError) -> None:
        """Send the error, as a line if the stream has begun."""
        if self.outgoing.started:
            self.send(encode_error(failure.message) + b"\n")
            self.outgoing.end()
        elif failure.engine:
            self.outgoing.start(failure.status, "application/json")
            self.outgoing.send_chunk(encode_error(failure.message))
            self.outgoing.end()
        else:
            self.outgoing.send_whole(failure.status, JSON_TYPE, encode_error(failure.message))


class WholeReply(Reply):
    """A response of one object at the end."""

    def __init__(self, outgoing: OutgoingResponse, model: str, endpoint: str, *, with_context: bool) -> None:
        super().__init__(outgoing)
        self._model = model
        self._endpoint = endpoint
        self._with_context = with_context
        self._texts: dict[bool, list[str]] = {False: [], True: []}
        self._garbled = False

    def write_text(self, text: str, thinking: bool, at_ns: int) -> None:
        """Keep a piece of text for the answer."""
        self._texts[thinking].append(text)

    def write_garbage(self, at_ns: int) -> None:
        """Make the answer invalid JSON."""
        self._garbled = True

    def finish(self, answer: InferenceResult) -> None:
        """Send the whole answer."""
        self.send_whole(200, JSON_TYPE, _GARBAGE if self._garbled else encode_json(self.build_fields(answer)))

    def build_fields(self, answer: InferenceResult) -> dict[str, object]:
        """Return the object."""
        text = build_text_field(self._endpoint, self.join_text(), self.join_text(thinking=True))
        return build_head(self._model) | text | build_ending(answer, self._with_context)

    def join_text(self, *, thinking: bool = False) -> str:
        """Return the text of the response, or of the thinking before it."""
        return "".join(self._texts[thinking])

    def fail(self, failure: ResponseError) -> None:
        """Send the error."""
        self.send_whole(failure.status, JSON_TYPE, encode_error(failure.message))

    def truncate(self) -> None:
        """Send an empty body."""
        self.send_whole(200, JSON_TYPE, b"")

    def send_whole(self, status: int, content_type: str, body: bytes) -> None:
        """Send the whole response."""
        self.record_first_write()
        self.outgoing.send_whole(status, content_type, body)


class EmbedReply(WholeReply):
    """The response of ``/api/embed``: one vector per text."""

    def __init__(self, outgoing: OutgoingResponse, model: str, texts: list[str], length: int) -> None:
        super().__init__(outgoing, model, "embed", with_context=False)
        self._vectors = [compute_embedding(text, length) for text in texts]

    def build_fields(self, answer: InferenceResult) -> dict[str, object]:
        """Return the fields of the JSON answer."""
        return build_embeddings(self._model, self._vectors) | build_counters(answer.counters)
