"""Where the pieces of an answer go: a stream of JSON lines, or one object at the end."""

from __future__ import annotations

import functools
import time

from pytest_ollama_perf.simulator import replies
from pytest_ollama_perf.simulator.engine import Answer
from pytest_ollama_perf.simulator.http import JSON, Outgoing
from pytest_ollama_perf.simulator.job import Failure, Truth

NDJSON = "application/x-ndjson"


@functools.lru_cache(maxsize=4096)
def _line_end(endpoint: str, text: str, thinking: bool) -> bytes:
    """Return a line of a stream from its text on: the same words come again and again."""
    fields = replies.text_field(endpoint, "" if thinking else text, text if thinking else "")
    return b'","' + replies.dump(fields | {"done": False})[2:] + b"\n"


class LineSink:
    """Sends each piece as a line of NDJSON at once; status and headers leave with the first."""

    def __init__(self, outgoing: Outgoing, model: str, endpoint: str) -> None:
        self._outgoing = outgoing
        self._endpoint = endpoint
        self._model = model
        self._begin = b'{"model":' + replies.dump(model) + b',"created_at":"'
        self.first_write_ns: int | None = None

    def piece(self, text: str, thinking: bool, at_ns: int) -> None:
        end = _line_end(self._endpoint, text, thinking)
        self._send(self._begin + replies.stamp().encode() + end)

    def garbage(self, at_ns: int) -> None:
        self._send(b"<html><body>502 Bad Gateway</body></html>\n")

    def finish(self, answer: Answer, with_context: bool) -> None:
        """Send the final object."""
        text = replies.text_field(self._endpoint, "")
        fields = replies.head(self._model) | text | replies.ending(answer, with_context)
        self._send(replies.dump(fields) + b"\n")
        self._outgoing.end()

    def fail(self, failure: Failure) -> None:
        """Send an error line after a piece, an error status before."""
        if self._outgoing.started:
            self._send(replies.error(failure.message) + b"\n")
            self._outgoing.end()
        elif failure.engine:
            self._outgoing.start(failure.status, "application/json")
            self._outgoing.chunk(replies.error(failure.message))
            self._outgoing.end()
        else:
            self._outgoing.whole(failure.status, JSON, replies.error(failure.message))

    def truncate(self) -> None:
        """End the response properly, but without the final object."""
        if not self._outgoing.started:
            self._outgoing.start(200, NDJSON)
        self._outgoing.end()

    def wrote(self, truth: Truth) -> None:
        """Note in the ground truth when bytes were handed over."""
        truth.first_write_ns, truth.last_write_ns = self.first_write_ns, time.perf_counter_ns()

    def _send(self, line: bytes) -> None:
        if not self._outgoing.started:
            self._outgoing.start(200, NDJSON)
        if self.first_write_ns is None:
            self.first_write_ns = time.perf_counter_ns()
        self._outgoing.chunk(line)


class WholeSink:
    """Collects the pieces for one object at the end."""

    def __init__(self, outgoing: Outgoing, model: str, endpoint: str) -> None:
        self._outgoing = outgoing
        self._endpoint = endpoint
        self._model = model
        self._texts: dict[bool, list[str]] = {False: [], True: []}
        self._broken = False
        self.first_write_ns: int | None = None

    def piece(self, text: str, thinking: bool, at_ns: int) -> None:
        self._texts[thinking].append(text)

    def garbage(self, at_ns: int) -> None:
        self._broken = True

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._texts[False])

    def finish(self, answer: Answer, with_context: bool) -> None:
        """Send the one object."""
        text = replies.text_field(self._endpoint, self.text, "".join(self._texts[True]))
        fields = replies.head(self._model) | text | replies.ending(answer, with_context)
        self._whole(200, b"<html>502 Bad Gateway</html>" if self._broken else replies.dump(fields))

    def fail(self, failure: Failure) -> None:
        """Send an error status."""
        self._whole(failure.status, replies.error(failure.message))

    def truncate(self) -> None:
        """Send an answer without a final object: nothing."""
        self._whole(200, b"")

    def wrote(self, truth: Truth) -> None:
        """Note in the ground truth when bytes were handed over."""
        truth.first_write_ns, truth.last_write_ns = self.first_write_ns, time.perf_counter_ns()

    def _whole(self, status: int, body: bytes) -> None:
        self.first_write_ns = time.perf_counter_ns()
        self._outgoing.whole(status, JSON, body)
