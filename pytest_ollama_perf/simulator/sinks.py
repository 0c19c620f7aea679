"""Sinks that delay the pieces of a response on their way to the client, as proxies and buffers do."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pytest_ollama_perf.simulator.faults import Fault, FaultKind
from pytest_ollama_perf.simulator.job import ResponseSink


class DelayingSink:
    """Collects pieces until ``flush``. ``held_until_ns`` is when the end of the response may leave; 0 is at once."""

    def __init__(self, sink: ResponseSink) -> None:
        self._sink = sink
        self._pieces: list[tuple[str, bool]] = []
        self.held_until_ns = 0

    def write_text(self, text: str, thinking: bool, at_ns: int) -> None:
        """Keep a piece of text until it is due."""
        self._pieces.append((text, thinking))
        if self.is_due(at_ns):
            self.flush(at_ns)

    def write_garbage(self, at_ns: int) -> None:
        """Flush, then pass garbage on."""
        self.flush(at_ns)
        self._sink.write_garbage(at_ns)

    def is_due(self, at_ns: int) -> bool:
        """Return whether what was collected may leave now."""
        raise NotImplementedError

    def flush(self, at_ns: int) -> None:
        """Release everything that was collected."""
        for text, thinking in self._pieces:
            self._sink.write_text(text, thinking, at_ns)
        self._pieces.clear()


class BufferingSink(DelayingSink):
    """Releases pieces at a fixed period, as a buffering proxy does."""

    def __init__(self, sink: ResponseSink, fault: Fault, start_ns: int) -> None:
        super().__init__(sink)
        self._period_ns = max(1, round(fault.seconds * 1e9))
        self._due_ns = start_ns + self._period_ns

    def is_due(self, at_ns: int) -> bool:
        """Return whether the period has ended."""
        return at_ns >= self._due_ns

    def flush(self, at_ns: int) -> None:
        """Pass everything on and begin the next period."""
        super().flush(at_ns)
        self._due_ns += self._period_ns * max(1, math.ceil((at_ns - self._due_ns) / self._period_ns))


class BurstingSink(DelayingSink):
    """Releases pieces in bursts of one fewer than ``fault.tokens``, that many, and one more, in turn."""

    def __init__(self, sink: ResponseSink, fault: Fault, start_ns: int) -> None:
        super().__init__(sink)
        self._tokens = max(1, fault.tokens)
        self._bursts = 0

    def is_due(self, at_ns: int) -> bool:
        """Return whether the burst is complete."""
        due = len(self._pieces) >= max(1, self._tokens - 1 + self._bursts % 3)
        self._bursts += due
        return due


class HoldingSink(DelayingSink):
    """Holds the beginning of a response back until some time after its first piece, then passes everything on."""

    def __init__(self, sink: ResponseSink, fault: Fault, start_ns: int) -> None:
        super().__init__(sink)
        self._hold_ns = round(fault.seconds * 1e9)

    def is_due(self, at_ns: int) -> bool:
        """Return whether the hold has ended."""
        self.held_until_ns = self.held_until_ns or at_ns + self._hold_ns
        return at_ns >= self.held_until_ns


_DELAYING_SINKS: Mapping[FaultKind, type[BufferingSink | BurstingSink | HoldingSink]] = {
    FaultKind.BUFFER: BufferingSink,
    FaultKind.BURST: BurstingSink,
    FaultKind.HOLD: HoldingSink,
}


def wrap_sink(sink: ResponseSink, faults: Mapping[FaultKind, Fault], start_ns: int) -> ResponseSink:
    """Return ``sink`` behind the delaying sink that the first of ``faults`` asks for, or ``sink`` itself."""
    for kind, delaying in _DELAYING_SINKS.items():
        if kind in faults:
            return delaying(sink, faults[kind], start_ns)
    return sink
