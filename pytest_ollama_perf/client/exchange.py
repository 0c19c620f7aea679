"""One request and its answer, without a socket: bytes with their arrival times go in, a sample comes out.

The answer is read as Ollama means it: success is an object with ``done: true`` and no error object, never a status.
"""

from __future__ import annotations

import httptools

from pytest_ollama_perf.client import lines
from pytest_ollama_perf.client.errortext import BODY_LIMIT, body_text, error_text
from pytest_ollama_perf.load.backend import Request
from pytest_ollama_perf.sample import Counters, Outcome, Sample
from pytest_ollama_perf.text import inert
from pytest_ollama_perf.workload import Endpoint

LINE_LIMIT = 8 * 1024 * 1024
"""Bytes of one streamed object, or of an answer that is not streamed."""

HEAD_LIMIT = 256 * 1024
"""Bytes without any body among them: headers, trailers, chunk extensions."""

OBJECT_LIMIT = 2_000_000
"""Objects in one stream; a server that never stops must not fill the memory."""

IDLE_CLOSE_NS = 1_000_000_000
"""A server that closed an idle connection says so within a round trip; one that breaks later had the request."""

UPSTREAM_HEADERS = (b"x-upstream", b"x-served-by", b"x-backend-server", b"x-upstream-addr", b"via")
"""Headers in which proxies name the server behind them, the most telling first."""

_KEPT = frozenset({*UPSTREAM_HEADERS, b"content-type", b"content-encoding", b"content-length", b"transfer-encoding"})
_KEPT |= {b"location"}
_SECOND = 1_000_000_000


class Exchange:
    """Reads one answer. ``finished`` says that the outcome stands, ``reusable`` that the connection may serve again."""

    def __init__(self, request: Request, url: str, sent_ns: int) -> None:
        self.request = request
        self.url = url
        self.sent_ns = self.last_ns = sent_ns
        self.connect_ns: int | None = None
        self.attempt = 1
        self.bytes_received = 0
        self._reset()

    def _reset(self) -> None:
        self.finished = False
        self.reusable = False
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._rest: list[bytes] = []
        self._rest_size = 0
        self._headless = 0
        self._complete = False
        self._kept_alive = False
        self._take = self._stream_body
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
        self.sent_ns = self.last_ns = sent_ns
        self._reset()

    @property
    def lost_at_once(self) -> bool:
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
        problem = self._parse(data)
        if self._body:
            self._headless = 0
            self._read_count += 1
            body, self._body = self._body, []
            self._take(body[0] if len(body) == 1 else b"".join(body))
        else:
            self._headless += len(data)
            if self._headless > HEAD_LIMIT and not self._complete:
                problem = f"headers of more than {HEAD_LIMIT} bytes"
        if self._complete:
            self._end()
        elif problem:
            self.fail(Outcome.MALFORMED, problem)

    def closed(self, at_ns: int, why: str = "") -> None:
        """The connection ended: by the server in order, or because of ``why``."""
        if self.finished:
            return
        self.last_ns = max(self.last_ns, at_ns)
        if self._header_ns is not None and not self._framed and not why:
            self._complete = True
            self._end()
        elif self._header_ns is not None and self._take == self._error_body:
            self._end()
        else:
            place = "inside the answer" if self._header_ns is not None else "before any answer"
            self.fail(Outcome.CUT_OFF, f"{why or 'the server closed the connection'} {place}")

    def fail(self, outcome: Outcome, error: str, at_ns: int = 0) -> None:
        """End with ``outcome`` unless an outcome stands already."""
        if not self.finished:
            self._settle(outcome, error, max(at_ns, self.last_ns))
            self.finished = True

    def deadline(self) -> tuple[int, Outcome]:
        """Return the time on the clock by which something has to have happened, and what it is called if not."""
        timeouts = self.request.timeouts
        total = self.sent_ns + int(timeouts.total_s * _SECOND)
        if self._first_token_ns is None and self._streamed:
            soon, outcome = self.sent_ns + int(timeouts.first_token_s * _SECOND), Outcome.FIRST_TOKEN_TIMEOUT
        elif self.bytes_received:
            soon, outcome = self.last_ns + int(timeouts.idle_s * _SECOND), Outcome.IDLE_TIMEOUT
        else:
            return total, Outcome.TOTAL_TIMEOUT
        return (soon, outcome) if soon < total else (total, Outcome.TOTAL_TIMEOUT)

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep what is needed of a header."""
        name = name.lower()
        if name in _KEPT:
            self._headers[name] = value

    def on_headers_complete(self) -> None:
        """Decide how the body is read."""
        status = self._parser.get_status_code()
        if status < 200:
            self._headers.clear()
            return
        self._status = status
        self._header_ns = self.last_ns
        if not 200 <= status < 300:
            self._take = self._error_body
        elif not self._streamed:
            self._take = self._whole_body

    def on_body(self, body: bytes) -> None:
        """Collect until the whole read is parsed."""
        if not self._complete:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Note the end of the answer; one of 1xx is none. The parser forgets about keep-alive right after this."""
        if self._header_ns is not None:
            self._complete = True
            self._kept_alive = bool(self._parser.should_keep_alive())

    # What the body says.

    @property
    def _streamed(self) -> bool:
        return self.request.stream and self.request.endpoint is not Endpoint.EMBED

    @property
    def _framed(self) -> bool:
        return b"content-length" in self._headers or b"transfer-encoding" in self._headers or self._status == 204

    def _parse(self, data: bytes) -> str:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return "the server switched to another protocol"
        except httptools.HttpParserError as error:
            return f"not HTTP: {inert(str(error))}"
        encoding = self._headers.get(b"content-encoding", b"identity").lower()
        if encoding not in (b"identity", b""):
            self._body.clear()
            return f"the answer is encoded ({inert(encoding.decode('latin-1'), 40)}), but only identity was offered"
        return ""

    def _stream_body(self, data: bytes) -> None:
        end = data.rfind(b"\n")
        if end < 0:
            self._keep(data)
            return
        if self._rest:
            head, data = data[: end + 1], data[end + 1 :]
            whole = b"".join([*self._rest, head])
            self._rest.clear()
            self._rest_size = 0
        elif end == len(data) - 1:
            whole, data = data, b""
        else:
            whole, data = data[: end + 1], data[end + 1 :]
        if whole.find(b"\n") == len(whole) - 1:
            self._line(whole)
        else:
            for line in whole.split(b"\n"):
                self._line(line)
        if data:
            self._keep(data)

    def _keep(self, data: bytes) -> None:
        self._rest.append(data)
        self._rest_size += len(data)
        if self._rest_size > LINE_LIMIT:
            self._rest.clear()
            self.fail(Outcome.MALFORMED, f"a line of more than {LINE_LIMIT} bytes")

    def _whole_body(self, data: bytes) -> None:
        self._keep(data)

    def _error_body(self, data: bytes) -> None:
        room = BODY_LIMIT - self._rest_size
        if room > 0:
            self._keep(data[:room])

    def _line(self, data: bytes) -> None:
        if self.finished or not data or data.isspace():
            return
        if len(data) > LINE_LIMIT + 1:
            self.fail(Outcome.MALFORMED, f"a line of more than {LINE_LIMIT} bytes")
            return
        try:
            line = lines.decode_line(data)
        except lines.DECODE_ERRORS as error:
            self._malformed(data, error)
            return
        self._line_count += 1
        if line.error is not None:
            self._server_error(line.error)
            return
        if self._final or self._line_count > OBJECT_LIMIT:
            self.fail(Outcome.MALFORMED, "an object after the final one" if self._final else "a stream without end")
            return
        message = line.message
        if message is None:
            self._text(line.response, line.thinking)
        else:
            self._text(message.content, message.thinking)
        if line.done:
            self._finale(data)

    def _text(self, answer: str | None, thinking: str | None) -> None:
        if not answer and not thinking:
            return
        at_ns = self.last_ns
        self._chunk_ns.append(at_ns)
        if self._first_token_ns is None:
            self._first_token_ns = at_ns
        if answer and self._first_answer_ns is None:
            self._first_answer_ns = at_ns

    def _finale(self, data: bytes) -> None:
        try:
            final = lines.decode_final(data)
        except lines.DECODE_ERRORS as error:
            self._malformed(data, error)
            return
        self._final = True
        self._final_ns = self.last_ns
        self._done_reason = inert(final.done_reason or "", 60)
        self._counters = final.counters()

    def _embeddings(self, data: bytes) -> None:
        try:
            answer = lines.decode_embeddings(data)
        except lines.DECODE_ERRORS as error:
            self._malformed(data, error)
            return
        self._line_count = 1
        if answer.error is not None:
            self._server_error(answer.error)
        elif answer.embeddings is None:
            self._settle(Outcome.TRUNCATED, "the answer holds no embeddings", self.last_ns)
        else:
            self._finale(data)

    def _server_error(self, error: object) -> None:
        self._settle(Outcome.SERVER_ERROR, error_text(error), self.last_ns)

    def _settle(self, outcome: Outcome, error: str, at_ns: int) -> None:
        if self._outcome is None:
            self._outcome, self._error, self._done_ns = outcome, error, at_ns

    def _malformed(self, data: bytes, error: Exception) -> None:
        if b"html" in self._headers.get(b"content-type", b"").lower():
            self.fail(Outcome.MALFORMED, "an HTML page in place of an answer; is this Ollama?")
            return
        shown = inert(data[:80].decode("utf-8", "replace"), 60)
        self.fail(Outcome.MALFORMED, f"{inert(str(error), 150)}: {shown}")

    # How it ended.

    def _end(self) -> None:
        rest = b"".join(self._rest)
        self._rest.clear()
        if self.finished:
            return
        if self._take == self._error_body:
            self._refused(rest)
        elif self.request.endpoint is Endpoint.EMBED:
            self._embeddings(rest)
        else:
            self._line(rest)
        if self._final:
            self._settle(Outcome.OK, "", self._final_ns)
        self._settle(
            Outcome.TRUNCATED, f"the answer ended without done: true after {self._line_count} objects", self.last_ns
        )
        self.finished = True
        self.reusable = self._kept_alive and self._framed

    def _refused(self, body: bytes) -> None:
        content_type = self._headers.get(b"content-type", b"").decode("latin-1")
        text = f"HTTP {self._status}: {body_text(content_type, body)}"
        if b"location" in self._headers:
            text += f" (redirect to {inert(self._headers[b'location'].decode('latin-1'), 100)} not followed)"
        self._settle(Outcome.BUSY if self._status == 503 else Outcome.HTTP_ERROR, text, self.last_ns)

    def _upstream(self) -> str:
        for name in UPSTREAM_HEADERS:
            if name in self._headers:
                return inert(self._headers[name].decode("latin-1"), 100)
        return ""

    def sample(self) -> Sample:
        """Return what the request showed, once the outcome stands; the exchange is over with that."""
        request = self.request
        assert self._outcome is not None
        del self._parser, self._take  # they refer back to this exchange
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
            server=self._upstream(),
        )
