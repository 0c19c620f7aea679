"""The objects of Ollama's responses as types; anything that does not fit is malformed."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from pytest_ollama_perf.core.sample import Counters
from pytest_ollama_perf.core.text import sanitize

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None


class StreamedMessage(msgspec.Struct, gc=False):
    """The message of a chat line."""

    content: str | None = None
    thinking: str | None = None


class StreamedLine(msgspec.Struct, gc=False):
    """The fields that are read from every streamed object; the last one also has :class:`FinalCounters`."""

    response: str | None = None
    thinking: str | None = None
    message: StreamedMessage | None = None
    done: bool = False
    error: Any = None


class FinalCounters(msgspec.Struct):
    """The counters of a final object, as Ollama names them (nanoseconds)."""

    done_reason: str | None = None
    total_duration: Count = None
    load_duration: Count = None
    prompt_eval_count: Count = None
    prompt_eval_cached_count: Count = None
    prompt_eval_duration: Count = None
    eval_count: Count = None
    eval_duration: Count = None

    def to_counters(self) -> Counters:
        """Return the values under the names of a sample."""
        return Counters(
            total_duration_ns=self.total_duration,
            load_duration_ns=self.load_duration,
            prompt_eval_count=self.prompt_eval_count,
            prompt_eval_cached_count=self.prompt_eval_cached_count,
            prompt_eval_duration_ns=self.prompt_eval_duration,
            eval_count=self.eval_count,
            eval_duration_ns=self.eval_duration,
        )


class EmbedResponse(msgspec.Struct):
    """The answer of ``/api/embed``."""

    embeddings: list[list[float]] | None = None
    error: Any = None


decode_line = msgspec.json.Decoder(StreamedLine).decode
decode_final = msgspec.json.Decoder(FinalCounters).decode
decode_embeddings = msgspec.json.Decoder(EmbedResponse).decode

DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What the decoders raise for bytes that are no such object."""


MAX_ERROR_BODY_BYTES = 65_536
"""Bytes of an error's body that are kept."""

_MAX_NESTING = 4


def extract_error_text(value: object, depth: int = _MAX_NESTING) -> str:
    """Return the message inside an ``error`` value: text, an object with ``message`` or ``error``, or JSON as text."""
    if isinstance(value, dict):
        inner = value.get("message", value.get("error"))
        return extract_error_text(inner, depth - 1) if inner is not None and depth else sanitize(str(value))
    if isinstance(value, str):
        nested = _parse_nested_error(value) if depth else None
        return sanitize(value) if nested is None else extract_error_text(nested, depth - 1)
    return sanitize(str(value))


def _parse_nested_error(text: str) -> dict[str, object] | None:
    brace = text.find("{")
    if brace < 0:
        return None
    try:
        value = msgspec.json.decode(text[brace:])
    except (msgspec.DecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) and ("error" in value or "message" in value) else None


def extract_body_text(content_type: str, body: bytes) -> str:
    """Return the message of an error answer: JSON ``{"error": ...}``, plain text, or a description of anything else."""
    if not body.strip():
        return "empty answer"
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = None
    if isinstance(value, dict) and value.get("error") is not None:
        return extract_error_text(value["error"])
    if "html" in content_type.lower() or body.lstrip()[:1] == b"<":
        return "an HTML page"
    return sanitize(body.decode("utf-8", "replace").strip())


def format_location(location: str) -> str:
    """Return the target of a redirect on one line, without user, password and query, which may be secrets."""
    scheme, found, rest = location.partition("?")[0].partition("#")[0].partition("://")
    if not found:
        return sanitize(scheme, 100)
    authority, slash, path = rest.partition("/")
    return sanitize(f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}", 100)
