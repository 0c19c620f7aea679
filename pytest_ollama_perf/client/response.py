"""One request and its answer, without a socket: bytes with their arrival times go in, a sample comes out.

The answer is read as Ollama means it: success is an object with ``done: true`` and no error object, never a status.
"""

from __future__ import annotations

import httptools

from pytest_ollama_perf.client import protocol
from pytest_ollama_perf.client.protocol import (
    MAX_ERROR_BODY_BYTES,
    extract_body_text,
    extract_error_text,
    format_location,
)
from pytest_ollama_perf.core.sample import Counters, Outcome, Sample
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.workload import Endpoint
from pytest_ollama_perf.loadgen.backend import Request, StreamProgress

MAX_LINE_BYTES = 8 * 1024 * 1024
"""Bytes of one streamed object, or of an answer that is not streamed."""

MAX_HEADER_BYTES = 256 * 1024
"""Bytes without any body among them: headers, trailers, chunk extensions."""

MAX_STREAM_OBJECTS = 2_000_000
"""Objects in one stream; a server that never stops must not fill the memory."""

IDLE_CLOSE_NS = 1_000_000_000
"""A server that closed an idle connection says so within a round trip; one that breaks later had the request."""

UPSTREAM_HEADERS = (b"x-upstream", b"x-served-by", b"x-backend-server", b"x-upstream-addr", b"via")
"""Headers in which proxies name the server behind them, the most telling first."""

_KEPT_HEADERS = frozenset(
    {*UPSTREAM_HEADERS, b"content-type", b"content-encoding", b"content-length", b"transfer-encoding"}
)
_KEPT_HEADERS |= {b"location"}
_SECOND_NS = 1_000_000_000


class Exchange:
    """Reads one answer. ``finished`` says that the outcome stands, ``reusable`` that the connection may serve again."""

    __slots__ = (
        "_body",
        "_chunk_ns",
        "_complete",
        "_counters",
        "_done_ns",
        "_done_reason",
        "_error",
        "_feed",
        "_final",
        "_final_ns",
        "_first_answer_ns",
        "_first_token_ns",
        "_header_ns",
        "_headers",
        "_headless",
        "_heard",
        "_kept_alive",
        "_last_piece",
        "_line_count",
        "_outcome",
        "_parser",
        "_problem",
        "_read_count",
        "_read_lag_ns",
        "_rest",
        "_rest_size",
        "_status",
        "_take",
        "attempt",
        "bytes_received",
        "connect_ns",
        "finished",
        "last_ns",
        "on_body",
        "request",
        "reusable",
        "sent_ns",
        "url",
    )

    def __init__(self, request: Request, url: str, sent_ns: int) -> None:
        self.request = request
        self.url = url
        self.sent_ns = self.last_ns = sent_ns
        self.connect_ns: int | None = None
        self.attempt = 1
        self.bytes_received = 0
        self._heard = request.answer_parts
        self._reset()

    def _reset(self) -> None:
        self.finished = False
        self.reusable = False
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self.on_body = self._body.append  # called by the parser, for each piece of a read
        self._parser = httptools.HttpResponseParser(self)
        self._feed = self._parser.feed_data
        self._last_piece: int | None = None
        self._problem = ""
        self._rest: list[bytes] = []
        self._rest_size = 0
        self._headless = 0
        self._complete = False
        self._kept_alive = False
        self._take = self._read_stream
        self._final = False
        self._outcome: Outcome | None = None
        self._error = ""
        self._status: int | None = None
        self._header_ns: int | None = None
        self._done_ns = self._final_ns = 0
        self._first_token_ns: int | None = None
        self._first_answer_ns: int | None = None
        self._chunk_ns: list[int] = []
        self._line_count = 0
        self._read_count = 0
        self._read_lag_ns = 0
        self._done_reason = ""
        self._counters = Counters()

    def restart(self, sent_ns: int) -> None:
        """Begin again on a fresh connection, as the next attempt."""
        self.attempt += 1
        if self._heard is not None:
            self._heard.clear()
        self.sent_ns = self.last_ns = sent_ns
        self._reset()

    @property
    def is_connection_stale(self) -> bool:
        """Whether the connection broke right after the send, without a byte of an answer: it had been closed before."""
        quick = self._done_ns - self.sent_ns < IDLE_CLOSE_NS
        return self._outcome is Outcome.CUT_OFF and not self.bytes_received and quick

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; ``None`` while nothing is known."""
        return self._outcome

    # What the connection tells.

    def receive(self, data: bytes, at_ns: int, now_ns: int) -> None:
        """Take bytes that arrived at ``at_ns`` and were read at ``now_ns``."""
        if at_ns < self.last_ns:
            at_ns = now_ns if self.last_ns == self.sent_ns else self.last_ns
        elif now_ns - at_ns > self._read_lag_ns:
            self._read_lag_ns = now_ns - at_ns
        self.last_ns = at_ns
        self.bytes_received += len(data)
        feed = self._feed  # a bound method in a slot is called twice as fast by way of a name
        try:
            feed(data)
        except httptools.HttpParserUpgrade:
            self._problem = "the server switched to another protocol"
        except httptools.HttpParserError as error:
            self._problem = self._problem or f"not HTTP: {sanitize(str(error))}"
        body = self._body
        if body:
            self._headless = 0
            self._read_count += 1
            data = body[0] if len(body) == 1 else b"".join(body[: self._last_piece])
            body.clear()
            take = self._take
            take(data)
        elif not self._complete:
            self._count_header_bytes(len(data))
        if self._complete:
            self._finish_response()
        elif self._problem:
            self.fail(Outcome.MALFORMED, self._problem)

    def _count_header_bytes(self, size: int) -> None:
        self._headless += size
        if self._headless > MAX_HEADER_BYTES:
            self._problem = self._problem or f"headers of more than {MAX_HEADER_BYTES} bytes"

    def on_connection_closed(self, at_ns: int, why: str = "") -> None:
        """The connection ended: by the server in order, or because of ``why``."""
        if self.finished:
            return
        self.last_ns = max(self.last_ns, at_ns)
        if self._header_ns is not None and not self._is_framed and not why:
            self._complete = True
            self._finish_response()
        elif self._header_ns is not None and self._take == self._buffer_error_body:
            self._finish_response()
        else:
            place = "inside the answer" if self._header_ns is not None else "before any answer"
            self.fail(Outcome.CUT_OFF, f"{why or 'the server closed the connection'} {place}")

    def fail(self, outcome: Outcome, error: str, at_ns: int = 0) -> None:
        """End with ``outcome`` unless an outcome stands already."""
        if not self.finished:
            self._set_outcome(outcome, error, max(at_ns, self.last_ns))
            self.finished = True

    def get_stream_progress(self) -> StreamProgress:
        """Return how far the answer has come; may be asked from any thread."""
        first, due = self._first_token_ns, self.request.scheduled_ns
        start = self.sent_ns if due is None else due
        return StreamProgress(len(self._chunk_ns), None if first is None else first - start)

    def compute_deadline(self) -> tuple[int, Outcome]:
        """Return the time on the clock by which something has to have happened, and what it is called if not."""
        timeouts = self.request.timeouts
        total = self.sent_ns + int(timeouts.total_s * _SECOND_NS)
        if self._first_token_ns is None and self._is_streamed:
            soon, outcome = self.sent_ns + int(timeouts.first_token_s * _SECOND_NS), Outcome.FIRST_TOKEN_TIMEOUT
        elif self.bytes_received:
            soon, outcome = self.last_ns + int(timeouts.idle_s * _SECOND_NS), Outcome.IDLE_TIMEOUT
        else:
            return total, Outcome.TOTAL_TIMEOUT
        return (soon, outcome) if soon < total else (total, Outcome.TOTAL_TIMEOUT)

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Trust the connection no more where it brings an answer that nobody asked for."""
        if self._complete:
            self._kept_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep what is needed of a header."""
        name = name.lower()
        if name in _KEPT_HEADERS and not self._complete:
            self._headers[name] = value

    def on_headers_complete(self) -> None:
        """Decide how the body is read."""
        status = self._parser.get_status_code()
        if self._complete:
            return
        if status < 200:
            self._headers.clear()
            return
        self._status = status
        self._header_ns = self.last_ns
        encoding = self._headers.get(b"content-encoding", b"identity").lower()
        if not 200 <= status < 300:
            self._take = self._buffer_error_body
        elif not self._is_streamed:
            self._take = self._buffer_body
        if encoding not in (b"identity", b""):
            shown = sanitize(encoding.decode("latin-1"), 40)
            self._problem = f"the answer is encoded ({shown}), but only identity was offered"
            if self._take != self._buffer_error_body:
                self._take = self._reject_encoding

    def on_message_complete(self) -> None:
        """Note the end of the answer; one of 1xx is none. The parser forgets about keep-alive right after this."""
        if self._header_ns is None or self._complete:
            return
        self._complete = True
        self._last_piece = len(self._body)
        self._kept_alive = bool(self._parser.should_keep_alive())

    # What the body says.

    @property
    def _is_streamed(self) -> bool:
        return self.request.stream and self.request.endpoint is not Endpoint.EMBED

    @property
    def _is_framed(self) -> bool:
        return b"content-length" in self._headers or b"transfer-encoding" in self._headers or self._status == 204

    def _read_stream(self, data: bytes) -> None:
        if self._rest:
            data = self._finish_line(data)
        if data.find(b"\n") == len(data) - 1:
            if data and not self._record_token(data):
                self._read_line(data)
            return
        *whole, rest = data.split(b"\n")
        for line in whole:
            if line and not self.finished:
                self._read_line(line)
        if rest:
            self._buffer_body(rest)

    def _finish_line(self, data: bytes) -> bytes:
        """Complete the line that an earlier read began; return what follows it."""
        end = data.find(b"\n") + 1 or len(data)
        self._buffer_body(data[:end])
        if data[end - 1] == 0x0A and not self.finished:
            line = b"".join(self._rest)
            self._rest.clear()
            self._rest_size = 0
            self._read_line(line)
        return data[end:]

    def _buffer_body(self, data: bytes) -> None:
        self._rest.append(data)
        self._rest_size += len(data)
        if self._rest_size - data.endswith(b"\n") > MAX_LINE_BYTES:
            self._rest.clear()
            self.fail(Outcome.MALFORMED, f"a line of more than {MAX_LINE_BYTES} bytes")

    def _buffer_error_body(self, data: bytes) -> None:
        room = MAX_ERROR_BODY_BYTES - self._rest_size
        if room > 0:
            self._buffer_body(data[:room])

    def _reject_encoding(self, data: bytes) -> None:
        self.fail(Outcome.MALFORMED, self._problem)

    def _record_token(self, data: bytes) -> bool:
        """Take the commonest line, a further token of ``generate``, the short way; return whether it was one."""
        chunks = self._chunk_ns
        if not chunks or self._final or len(chunks) >= MAX_STREAM_OBJECTS or self._first_answer_ns is None:
            return False
        try:
            line = protocol.decode_line(data)
        except protocol.DECODE_ERRORS:
            return False
        if not line.response or line.done or line.error is not None or line.message is not None:
            return False
        self._line_count += 1
        chunks.append(self.last_ns)
        return True

    def _read_line(self, data: bytes) -> None:
        try:
            line = protocol.decode_line(data)
        except protocol.DECODE_ERRORS as error:
            if not data.isspace():
                self._fail_malformed(data, error)
            return
        self._line_count += 1
        message = line.message
        if message is None:
            answer, thinking = line.response, line.thinking
        else:
            answer, thinking = message.content, message.thinking
        if line.error is not None:
            self._record_server_error(line.error)
        elif self._final:
            self.fail(Outcome.MALFORMED, "an object after the final one")
        elif answer or thinking:
            if self._is_streamed:
                self._record_text(bool(answer))
            if self._heard is not None and answer:
                self._heard.append(answer)
        if line.done:
            self._read_final(data)

    def _record_text(self, is_answer: bool) -> None:
        at_ns = self.last_ns
        chunks = self._chunk_ns
        if not chunks:
            self._first_token_ns = at_ns
        elif len(chunks) >= MAX_STREAM_OBJECTS:
            self.fail(Outcome.MALFORMED, f"a stream of more than {MAX_STREAM_OBJECTS} tokens")
        chunks.append(at_ns)
        if is_answer and self._first_answer_ns is None:
            self._first_answer_ns = at_ns

    def _read_final(self, data: bytes) -> None:
        try:
            final = protocol.decode_final(data)
        except protocol.DECODE_ERRORS as error:
            self._fail_malformed(data, error)
            return
        self._final = True
        self._final_ns = self.last_ns
        self._done_reason = sanitize(final.done_reason or "", 60)
        self._counters = final.to_counters()

    def _read_embeddings(self, data: bytes) -> None:
        try:
            answer = protocol.decode_embeddings(data)
        except protocol.DECODE_ERRORS as error:
            self._fail_malformed(data, error)
            return
        self._line_count = 1
        if answer.error is not None:
            self._record_server_error(answer.error)
        elif answer.embeddings is None:
            self._set_outcome(Outcome.TRUNCATED, "the answer holds no embeddings", self.last_ns)
        else:
            self._read_final(data)

    def _record_server_error(self, error: object) -> None:
        self._set_outcome(Outcome.SERVER_ERROR, extract_error_text(error), self.last_ns)

    def _set_outcome(self, outcome: Outcome, error: str, at_ns: int) -> None:
        if self._outcome is None:
            self._outcome, self._error, self._done_ns = outcome, error, at_ns

    def _fail_malformed(self, data: bytes, error: Exception) -> None:
        if b"html" in self._headers.get(b"content-type", b"").lower():
            self.fail(Outcome.MALFORMED, "an HTML page in place of an answer; is this Ollama?")
            return
        shown = sanitize(data[:80].decode("utf-8", "replace"), 60)
        self.fail(Outcome.MALFORMED, f"{sanitize(str(error), 150)}: {shown}")

    # How it ended.

    def _finish_response(self) -> None:
        rest = b"".join(self._rest)
        self._rest.clear()
        if self.finished:
            return
        if self._take == self._buffer_error_body:
            self._record_http_error(rest)
        elif self.request.endpoint is Endpoint.EMBED:
            self._read_embeddings(rest)
        elif rest:
            self._read_line(rest)
        if self._final:
            self._set_outcome(Outcome.OK, "", self._final_ns)
        self._set_outcome(
            Outcome.TRUNCATED, f"the answer ended without done: true after {self._line_count} objects", self.last_ns
        )
        self.finished = True
        self.reusable = self._kept_alive and self._is_framed

    def _record_http_error(self, body: bytes) -> None:
        content_type = self._headers.get(b"content-type", b"").decode("latin-1")
        text = f"HTTP {self._status}: {extract_body_text(content_type, body)}"
        if b"location" in self._headers:
            text += f" (redirect to {format_location(self._headers[b'location'].decode('latin-1'))} not followed)"
        self._set_outcome(Outcome.BUSY if self._status == 503 else Outcome.HTTP_ERROR, text, self.last_ns)

    def _read_upstream(self) -> str:
        for name in UPSTREAM_HEADERS:
            if name in self._headers:
                return sanitize(self._headers[name].decode("latin-1"), 100)
        return ""

    def build_sample(self) -> Sample:
        """Return what the request showed, once the outcome stands; the exchange is over with that."""
        request = self.request
        assert self._outcome is not None
        del self._parser, self._feed, self._take  # they refer back to this exchange
        return Sample(
            index=request.index,
            client=request.client,
            url=self.url,
            request_id=request.request_id,
            stage=request.stage,
            outcome=self._outcome,
            sent_ns=self.sent_ns,
            done_ns=self._done_ns,
            error=self._error,
            status=self._status,
            scheduled_ns=request.scheduled_ns,
            connect_ns=self.connect_ns,
            header_ns=self._header_ns,
            first_token_ns=self._first_token_ns,
            first_answer_ns=self._first_answer_ns,
            chunk_ns=tuple(self._chunk_ns),
            line_count=self._line_count,
            read_count=self._read_count,
            bytes_received=self.bytes_received,
            read_lag_ns=self._read_lag_ns,
            done_reason=self._done_reason,
            counters=self._counters,
            attempt=self.attempt,
            server=self._read_upstream(),
        )
