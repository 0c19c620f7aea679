"""One response, without a socket: bytes with their arrival times go in, HTTP is parsed, the body is read."""

from __future__ import annotations

import httptools

from pytest_ollama_perf.client.protocol import BodyMode, BodyReader, extract_body_text, format_location
from pytest_ollama_perf.core.sample import Outcome
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.loadgen import Request

MAX_HEADER_BYTES = 256 * 1024
"""Limit of bytes without any body among them: headers, trailers, chunk extensions."""

UPSTREAM_HEADERS = (b"x-upstream", b"x-served-by", b"x-backend-server", b"x-upstream-addr", b"via")
"""Headers in which proxies name the server behind them, the most specific first."""

_KEPT_HEADERS = frozenset(
    {*UPSTREAM_HEADERS, b"content-type", b"content-encoding", b"content-length", b"transfer-encoding", b"location"}
)
_OFFERED_ENCODINGS = (b"identity", b"")


class Response:
    """Reads the response to one attempt. Once ``finished`` is true, the outcome is final.

    ``reusable`` says whether the connection may carry another request. Times are nanoseconds of one clock.
    """

    __slots__ = (
        "_complete",
        "_feed",
        "_headers",
        "_headless_bytes",
        "_kept_alive",
        "_last_piece",
        "_mode",
        "_parser",
        "_pieces",
        "_problem",
        "_read_body",
        "body",
        "bytes_received",
        "finished",
        "header_ns",
        "last_ns",
        "on_body",
        "read_count",
        "read_lag_ns",
        "reusable",
        "sent_ns",
        "status",
    )

    def __init__(self, request: Request, sent_ns: int) -> None:
        self.sent_ns = self.last_ns = sent_ns
        self.body = BodyReader(request)
        self.finished = False
        self.reusable = False
        self.status: int | None = None
        self.header_ns: int | None = None
        self.bytes_received = 0
        self.read_count = 0
        self.read_lag_ns = 0
        self._headers: dict[bytes, bytes] = {}
        self._headless_bytes = 0
        self._complete = False
        self._kept_alive = False
        self._last_piece: int | None = None
        self._problem = ""
        self._mode = self.body.success_mode
        self._read_body = self.body.get_read_function(self._mode)
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append  # called by the parser, for each piece of a read
        self._parser = httptools.HttpResponseParser(self)
        self._feed = self._parser.feed_data

    @property
    def outcome(self) -> Outcome | None:
        """How the attempt ended; ``None`` while that is open."""
        return self.body.outcome

    @property
    def is_error(self) -> bool:
        """Whether the status is that of an error, whose body is being read."""
        return self._mode is BodyMode.ERROR

    @property
    def is_waiting_for_token(self) -> bool:
        """Whether the first token of a stream has not arrived yet."""
        return self._mode is BodyMode.STREAM and self.body.first_token_ns is None

    @property
    def is_lost_unanswered(self) -> bool:
        """Whether the connection broke before a single byte of the response."""
        return self.body.outcome is Outcome.CUT_OFF and not self.bytes_received

    def mark_sent(self, at_ns: int) -> None:
        """Set the time of sending; comes right before the bytes leave."""
        self.sent_ns = self.last_ns = at_ns

    # Events of the connection.

    def receive(self, data: bytes, at_ns: int, now_ns: int) -> None:
        """Take bytes that arrived at ``at_ns`` and were read at ``now_ns``."""
        if at_ns < self.last_ns:
            at_ns = now_ns if self.last_ns == self.sent_ns else self.last_ns
        elif now_ns - at_ns > self.read_lag_ns:
            self.read_lag_ns = now_ns - at_ns
        self.last_ns = at_ns
        self.bytes_received += len(data)
        feed = self._feed  # calling a bound method through a local name is twice as fast as through a slot
        try:
            feed(data)
        except httptools.HttpParserUpgrade:
            self._problem = "the server switched to another protocol"
        except httptools.HttpParserError as error:
            self._problem = self._problem or f"not HTTP: {sanitize(str(error))}"
        pieces = self._pieces
        if pieces:
            self._headless_bytes = 0
            self.read_count += 1
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces[: self._last_piece])
            pieces.clear()
            read_body = self._read_body
            read_body(data, at_ns)
            self.finished |= self.body.is_rejected
        elif not self._complete:
            self._count_headless_bytes(len(data))
        if self._complete:
            self._finish()
        elif self._problem:
            self.fail(Outcome.MALFORMED, self._problem)

    def _count_headless_bytes(self, size: int) -> None:
        self._headless_bytes += size
        if self._headless_bytes > MAX_HEADER_BYTES:
            self._problem = self._problem or f"headers of more than {MAX_HEADER_BYTES} bytes"

    def on_connection_closed(self, at_ns: int, why: str = "") -> None:
        """End: the server closed the connection in order, or it broke because of ``why``."""
        if self.finished:
            return
        self.last_ns = max(self.last_ns, at_ns)
        if self.header_ns is not None and not self._is_framed and not why:
            self._complete = True
            self._finish()
        elif self.is_error:
            self._finish()
        else:
            place = "inside the answer" if self.header_ns is not None else "before any answer"
            self.fail(Outcome.CUT_OFF, f"{why or 'the server closed the connection'} {place}")

    def expire(self, outcome: Outcome, error: str, at_ns: int) -> None:
        """End by a missed deadline; an HTTP error stays one where only its body does not end."""
        if self.is_error and not self.finished:
            self.last_ns = max(self.last_ns, at_ns)
            self._finish(f" (the answer did not end: {error})")
        else:
            self.fail(outcome, error, at_ns)

    def fail(self, outcome: Outcome, error: str, at_ns: int = 0) -> None:
        """End with ``outcome``, unless the response is finished."""
        if not self.finished:
            self.body.set_outcome(outcome, error, max(at_ns, self.last_ns))
            self.finished = True

    def release(self) -> None:
        """Drop what refers back to this object; nothing can be received after that."""
        del self._parser, self._feed, self.on_body

    # Events of the parser.

    def on_message_begin(self) -> None:
        """Do not reuse a connection that brings a response without a request."""
        if self._complete:
            self._kept_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the headers that are needed."""
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
        self.status = status
        self.header_ns = self.last_ns
        self.body.is_html = b"html" in self._headers.get(b"content-type", b"").lower()
        if not 200 <= status < 300:
            self._set_mode(BodyMode.ERROR)
        elif self._headers.get(b"content-encoding", b"").lower() not in _OFFERED_ENCODINGS:
            self._set_mode(BodyMode.ENCODED)
            encoding = sanitize(self._headers[b"content-encoding"].decode("latin-1").lower(), 40)
            self._problem = f"the answer is encoded ({encoding}), but only identity was offered"

    def on_message_complete(self) -> None:
        """Note the end of the response, except for status 1xx. The parser forgets about keep-alive right after this."""
        if self.header_ns is None or self._complete:
            return
        self._complete = True
        self._last_piece = len(self._pieces)
        self._kept_alive = bool(self._parser.should_keep_alive())

    def _set_mode(self, mode: BodyMode) -> None:
        self._mode = mode
        self._read_body = self.body.get_read_function(mode)

    # The end.

    @property
    def _is_framed(self) -> bool:
        return b"content-length" in self._headers or b"transfer-encoding" in self._headers or self.status == 204

    def _finish(self, note: str = "") -> None:
        if self.finished:
            return
        if self.is_error:
            self._record_http_error(note)
        elif self._mode is BodyMode.ENCODED:
            self.body.set_outcome(Outcome.MALFORMED, self._problem, self.last_ns)
        else:
            self.body.finish(self.last_ns)
        self.finished = True
        self.reusable = self._kept_alive and self._is_framed

    def _record_http_error(self, note: str) -> None:
        content_type = self._headers.get(b"content-type", b"").decode("latin-1")
        text = f"HTTP {self.status}: {extract_body_text(content_type, self.body.take_rest())}{note}"
        if b"location" in self._headers:
            text += f" (redirect to {format_location(self._headers[b'location'].decode('latin-1'))} not followed)"
        self.body.set_outcome(Outcome.BUSY if self.status == 503 else Outcome.HTTP_ERROR, text, self.last_ns)

    def read_upstream(self) -> str:
        """Return the server that a proxy names in its headers; empty where none is named."""
        for name in UPSTREAM_HEADERS:
            if name in self._headers:
                return sanitize(self._headers[name].decode("latin-1"), 100)
        return ""
