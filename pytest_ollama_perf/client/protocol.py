"""The objects of Ollama's responses as types; anything that does not fit is malformed."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from pytest_ollama_perf.core.sample import Counters, Outcome
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.workload import Endpoint
from pytest_ollama_perf.loadgen import Request

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


MAX_LINE_BYTES = 8 * 1024 * 1024
"""Limit of one streamed object, and of a response that is not streamed."""

MAX_STREAM_OBJECTS = 2_000_000
"""Limit of text chunks in one stream, so that a server that never stops cannot fill the memory."""

_NO_COUNTERS = Counters()


class BodyMode(enum.Enum):
    """How a body is read; the status and the headers decide."""

    STREAM = "stream"  # newline-delimited objects, each read when it arrives
    SINGLE = "single"  # one object, read when the response is complete
    ERROR = "error"  # the body of an HTTP error, kept up to a limit
    ENCODED = "encoded"  # a content encoding that was not offered: never read


ReadBody = Callable[[bytes, int], None]
"""Takes a piece of the body and the time of its arrival."""


class BodyReader:
    """Reads one body. The first ``outcome`` that is set stays; after ``is_rejected`` nothing more is read."""

    __slots__ = (
        "_answer_parts",
        "_final_ns",
        "_is_embedding",
        "_is_streamed",
        "_rest",
        "_rest_size",
        "chunk_ns",
        "counters",
        "done_ns",
        "done_reason",
        "error",
        "first_answer_ns",
        "first_token_ns",
        "is_html",
        "is_rejected",
        "line_count",
        "outcome",
    )

    def __init__(self, request: Request) -> None:
        self._answer_parts = request.answer_parts
        self._is_embedding = request.endpoint is Endpoint.EMBED
        self._is_streamed = request.stream and not self._is_embedding
        self._final_ns: int | None = None
        self._rest: list[bytes] = []
        self._rest_size = 0
        self.is_html = False
        self.is_rejected = False
        self.outcome: Outcome | None = None
        self.error = ""
        self.done_ns = 0
        self.first_token_ns: int | None = None
        self.first_answer_ns: int | None = None
        self.chunk_ns: list[int] = []
        self.line_count = 0
        self.done_reason = ""
        self.counters = _NO_COUNTERS

    @property
    def success_mode(self) -> BodyMode:
        """How the body of a successful response is read."""
        return BodyMode.STREAM if self._is_streamed else BodyMode.SINGLE

    def get_read_function(self, mode: BodyMode) -> ReadBody:
        """Return the function that takes the pieces of a body of ``mode``."""
        return {
            BodyMode.STREAM: self._read_stream,
            BodyMode.SINGLE: self._keep_piece,
            BodyMode.ERROR: self._keep_error_piece,
            BodyMode.ENCODED: self._ignore_piece,
        }[mode]

    def set_outcome(self, outcome: Outcome, error: str, at_ns: int) -> None:
        """Decide the outcome, unless it is decided already."""
        if self.outcome is None:
            self.outcome, self.error, self.done_ns = outcome, error, at_ns

    def take_rest(self) -> bytes:
        """Return, and forget, the bytes that are kept but not read yet."""
        rest = b"".join(self._rest)
        self._rest.clear()
        self._rest_size = 0
        return rest

    def finish(self, at_ns: int) -> None:
        """Decide the outcome of a body that is complete."""
        rest = self.take_rest()
        if self._is_embedding:
            self._read_embeddings(rest, at_ns)
        elif rest:
            self._read_line(rest, at_ns)
        if self._final_ns is not None:
            self.set_outcome(Outcome.OK, "", self._final_ns)
        error = f"the answer ended without done: true after {self.line_count} objects"
        self.set_outcome(Outcome.TRUNCATED, error, at_ns)

    def _read_stream(self, data: bytes, at_ns: int) -> None:
        if self._rest:
            data = self._finish_line(data, at_ns)
        if data.find(b"\n") == len(data) - 1:
            if data and not self._record_token(data, at_ns):
                self._read_line(data, at_ns)
            return
        *whole, rest = data.split(b"\n")
        for line in whole:
            if line and not self.is_rejected:
                self._read_line(line, at_ns)
        if rest:
            self._keep_piece(rest, at_ns)

    def _finish_line(self, data: bytes, at_ns: int) -> bytes:
        """Complete the line that an earlier read began; return what follows it."""
        end = data.find(b"\n") + 1 or len(data)
        self._keep_piece(data[:end], at_ns)
        if data[end - 1] == 0x0A and not self.is_rejected:
            self._read_line(self.take_rest(), at_ns)
        return data[end:]

    def _keep_piece(self, data: bytes, at_ns: int) -> None:
        self._rest.append(data)
        self._rest_size += len(data)
        if self._rest_size - data.endswith(b"\n") > MAX_LINE_BYTES:
            self._rest.clear()
            self._reject(f"a line of more than {MAX_LINE_BYTES} bytes", at_ns)

    def _keep_error_piece(self, data: bytes, at_ns: int) -> None:
        free = MAX_ERROR_BODY_BYTES - self._rest_size
        if free > 0:
            self._keep_piece(data[:free], at_ns)

    def _ignore_piece(self, data: bytes, at_ns: int) -> None:
        """Do nothing: the response is rejected because of its headers."""

    def _record_token(self, data: bytes, at_ns: int) -> bool:
        """Read the most frequent line, a further token of ``generate``; return whether it was one."""
        chunks = self.chunk_ns
        if (
            not chunks
            or self._final_ns is not None
            or len(chunks) >= MAX_STREAM_OBJECTS
            or self.first_answer_ns is None
        ):
            return False
        try:
            line = decode_line(data)
        except DECODE_ERRORS:
            return False
        if not line.response or line.done or line.error is not None or line.message is not None:
            return False
        self.line_count += 1
        chunks.append(at_ns)
        return True

    def _read_line(self, data: bytes, at_ns: int) -> None:
        try:
            line = decode_line(data)
        except DECODE_ERRORS as error:
            if not data.isspace():
                self._reject_line(data, error, at_ns)
            return
        self.line_count += 1
        if line.error is not None:
            self.set_outcome(Outcome.SERVER_ERROR, extract_error_text(line.error), at_ns)
        elif self._final_ns is not None:
            self._reject("an object after the final one", at_ns)
        else:
            self._read_text(line, at_ns)
        if line.done:
            self._read_final(data, at_ns)

    def _read_text(self, line: StreamedLine, at_ns: int) -> None:
        message = line.message
        if message is None:
            answer, thinking = line.response, line.thinking
        else:
            answer, thinking = message.content, message.thinking
        if self._is_streamed and (answer or thinking):
            self._record_chunk(bool(answer), at_ns)
        if self._answer_parts is not None and answer:
            self._answer_parts.append(answer)

    def _record_chunk(self, is_answer: bool, at_ns: int) -> None:
        chunks = self.chunk_ns
        if not chunks:
            self.first_token_ns = at_ns
        elif len(chunks) >= MAX_STREAM_OBJECTS:
            self._reject(f"a stream of more than {MAX_STREAM_OBJECTS} tokens", at_ns)
        chunks.append(at_ns)
        if is_answer and self.first_answer_ns is None:
            self.first_answer_ns = at_ns

    def _read_final(self, data: bytes, at_ns: int) -> None:
        try:
            final = decode_final(data)
        except DECODE_ERRORS as error:
            self._reject_line(data, error, at_ns)
            return
        self._final_ns = at_ns
        self.done_reason = sanitize(final.done_reason or "", 60)
        self.counters = final.to_counters()

    def _read_embeddings(self, data: bytes, at_ns: int) -> None:
        try:
            answer = decode_embeddings(data)
        except DECODE_ERRORS as error:
            self._reject_line(data, error, at_ns)
            return
        self.line_count = 1
        if answer.error is not None:
            self.set_outcome(Outcome.SERVER_ERROR, extract_error_text(answer.error), at_ns)
        elif answer.embeddings is None:
            self.set_outcome(Outcome.TRUNCATED, "the answer holds no embeddings", at_ns)
        else:
            self._read_final(data, at_ns)

    def _reject(self, error: str, at_ns: int) -> None:
        self.set_outcome(Outcome.MALFORMED, error, at_ns)
        self.is_rejected = True

    def _reject_line(self, data: bytes, error: Exception, at_ns: int) -> None:
        if self.is_html:
            self._reject("an HTML page in place of an answer; is this Ollama?", at_ns)
            return
        shown = sanitize(data[:80].decode("utf-8", "replace"), 60)
        self._reject(f"{sanitize(str(error), 150)}: {shown}", at_ns)
