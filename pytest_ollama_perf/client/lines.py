"""The objects that Ollama answers with, typed: whatever does not fit is malformed."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from pytest_ollama_perf.sample import Counters

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None


class Message(msgspec.Struct, gc=False):
    """The message of a chat line."""

    content: str | None = None
    thinking: str | None = None


class Line(msgspec.Struct, gc=False):
    """What every streamed object is read for; the counters of the last one are a :class:`Final`."""

    response: str | None = None
    thinking: str | None = None
    message: Message | None = None
    done: bool = False
    error: Any = None


class Final(msgspec.Struct):
    """The counters of a final object, as Ollama names them (nanoseconds)."""

    done_reason: str | None = None
    total_duration: Count = None
    load_duration: Count = None
    prompt_eval_count: Count = None
    prompt_eval_cached_count: Count = None
    prompt_eval_duration: Count = None
    eval_count: Count = None
    eval_duration: Count = None

    def counters(self) -> Counters:
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


class Embeddings(msgspec.Struct):
    """The answer of ``/api/embed``."""

    embeddings: list[list[float]] | None = None
    error: Any = None


decode_line = msgspec.json.Decoder(Line).decode
decode_final = msgspec.json.Decoder(Final).decode
decode_embeddings = msgspec.json.Decoder(Embeddings).decode

DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What the decoders raise for bytes that are no such object."""
