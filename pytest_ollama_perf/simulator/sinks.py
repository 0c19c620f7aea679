"""Where the pieces of an answer go: a stream of JSON lines, or one object at the end."""

from __future__ import annotations

import abc
import functools
import time

from pytest_ollama_perf.simulator import replies
from pytest_ollama_perf.simulator.engine import Answer
from pytest_ollama_perf.simulator.http import JSON, Outgoing
from pytest_ollama_perf.simulator.job import Failure, Truth

NDJSON = "application/x-ndjson"
_NO_JSON = b"<html><body>502 Bad Gateway</body></html>\n"


@functools.lru_cache(maxsize=4096)
def _line_end(endpoint: str, text: str, thinking: bool) -> bytes:
    """Return a line of a stream from its text on: the same words come again and again."""
    fields = replies.text_field(endpoint, "" if thinking else text, text if thinking else "")
    return b'",' + replies.dump(fields | {"done": False})[1:] + b"\n"


class Reply(abc.ABC):
    """An answer under way, whatever its form; takes the pieces as the engine's ``Sink``."""

    def __init__(self, outgoing: Outgoing) -> None:
        self.outgoing = outgoing
        self._first_write_ns: int | None = None

    @abc.abstractmethod
    def piece(self, text: str, thinking: bool, at_ns: int) -> None:
        """Take the text of one or more tokens."""

    @abc.abstractmethod
    def garbage(self, at_ns: int) -> None:
        """Send something that is no JSON."""

    @abc.abstractmethod
    def finish(self, answer: Answer) -> None:
        """Send how it ended."""

    @abc.abstractmethod
    def fail(self, failure: Failure) -> None:
        """Send what went wrong."""

    @abc.abstractmethod
    def truncate(self) -> None:
        """End the response properly, but without saying that it is done."""

    def wrote(self, truth: Truth) -> None:
        """Note in the ground truth when bytes were handed over."""
        truth.first_write_ns, truth.last_write_ns = self._first_write_ns, time.perf_counter_ns()

    def stamp_first(self) -> None:
        """Note that the first bytes of the text leave."""
        if self._first_write_ns is None:
            self._first_write_ns = time.perf_counter_ns()


class StreamReply(Reply):
    """Sends every piece at once; status and headers leave with the first."""

    content_type = NDJSON

    def garbage(self, at_ns: int) -> None:
        self.send(_NO_JSON)

    def truncate(self) -> None:
        if not self.outgoing.started:
            self.outgoing.start(200, self.content_type)
        self.outgoing.end()

    def send(self, data: bytes) -> None:
        """Send one chunk."""
        if not self.outgoing.started:
            self.outgoing.start(200, self.content_type)
        self.stamp_first()
        self.outgoing.chunk(data)


class LineReply(StreamReply):
    """Ollama's own stream: an object a line, an error line when it fails."""

    def __init__(self, outgoing: Outgoing, model: str, endpoint: str, *, with_context: bool) -> None:
        super().__init__(outgoing)
        self._model = model
        self._endpoint = endpoint
        self._with_context = with_context
        self._begin = b'{"model":' + replies.dump(model) + b',"created_at":"'

    def piece(self, text: str, thinking: bool, at_ns: int) -> None:
        self.send(self._begin + replies.stamp().encode() + _line_end(self._endpoint, text, thinking))

    def finish(self, answer: Answer) -> None:
        text = replies.text_field(self._endpoint, "")
        fields = replies.head(self._model) | text | replies.ending(answer, self._with_context)
        self.send(replies.dump(fields) + b"\n")
        self.outgoing.end()

    def fail(self, failure: Failure) -> None:
        if self.outgoing.started:
            self.send(replies.error(failure.message) + b"\n")
            self.outgoing.end()
        elif failure.engine:
            self.outgoing.start(failure.status, "application/json")
            self.outgoing.chunk(replies.error(failure.message))
            self.outgoing.end()
        else:
            self.outgoing.whole(failure.status, JSON, replies.error(failure.message))


class WholeReply(Reply):
    """One object at the end."""

    def __init__(self, outgoing: Outgoing, model: str, endpoint: str, *, with_context: bool) -> None:
        super().__init__(outgoing)
        self._model = model
        self._endpoint = endpoint
        self._with_context = with_context
        self._texts: dict[bool, list[str]] = {False: [], True: []}
        self._garbled = False

    def piece(self, text: str, thinking: bool, at_ns: int) -> None:
        self._texts[thinking].append(text)

    def garbage(self, at_ns: int) -> None:
        self._garbled = True

    def finish(self, answer: Answer) -> None:
        self.whole(200, JSON, _NO_JSON if self._garbled else replies.dump(self.fields(answer)))

    def fields(self, answer: Answer) -> dict[str, object]:
        """Return the one object."""
        text = replies.text_field(self._endpoint, self.text(), self.text(thinking=True))
        return replies.head(self._model) | text | replies.ending(answer, self._with_context)

    def text(self, *, thinking: bool = False) -> str:
        """Return what the model said, or what it thought before."""
        return "".join(self._texts[thinking])

    def fail(self, failure: Failure) -> None:
        self.whole(failure.status, JSON, replies.error(failure.message))

    def truncate(self) -> None:
        self.whole(200, JSON, b"")

    def whole(self, status: int, content_type: str, body: bytes) -> None:
        """Send it."""
        self.stamp_first()
        self.outgoing.whole(status, content_type, body)


class EmbedReply(WholeReply):
    """The answer of ``/api/embed``: a vector for every text."""

    def __init__(self, outgoing: Outgoing, model: str, texts: list[str], length: int) -> None:
        super().__init__(outgoing, model, "embed", with_context=False)
        self._vectors = [replies.embedding(text, length) for text in texts]

    def fields(self, answer: Answer) -> dict[str, object]:
        return replies.embeddings(self._model, self._vectors) | replies.durations(answer.counters)
