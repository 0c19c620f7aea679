"""When the system was fully loaded, and how many tokens it made in that time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pytest_ollama_perf.sample import Sample
from pytest_ollama_perf.summary.values import Floats

Edges = npt.NDArray[np.int64]
Window = tuple[int, int]
"""From and until, in nanoseconds of the samples' clock; empty where until is not after from."""


def whole(samples: Sequence[Sample]) -> Window:
    """Return first start (scheduled time of an open loop) to last done."""
    return min(sample.start_ns for sample in samples), max(sample.done_ns for sample in samples)


def steady(samples: Sequence[Sample]) -> Window:
    """Return the time in which all clients were busy.

    Closed loop: from when the last client sent its first request until the first client's last request ended. Open
    loop: from the first to the last scheduled time.
    """
    scheduled = [sample.scheduled_ns for sample in samples if sample.scheduled_ns is not None]
    if scheduled:
        return min(scheduled), max(scheduled)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for sample in samples:
        first[sample.client] = min(sample.sent_ns, first.get(sample.client, sample.sent_ns))
        last[sample.client] = max(sample.done_ns, last.get(sample.client, sample.done_ns))
    return max(first.values()), min(last.values())


def seconds(window: Window) -> float:
    return max(0, window[1] - window[0]) / 1e9


def tokens_by(samples: Sequence[Sample], edges: Edges) -> Floats:
    """Return how many tokens arrived from each of ``edges`` (ns, itself not counted) up to the next.

    A streamed request's eval_count is spread evenly over its chunks; one that came in a single piece evenly over its
    eval_duration, which ended when it was done. Failed requests made none.
    """
    return np.asarray(np.diff(_made_before(samples, edges)))


def completed_by(samples: Sequence[Sample], edges: Edges) -> Floats:
    """Return how many requests succeeded between each pair of neighbouring ``edges`` (ns)."""
    done = np.sort(np.array([sample.done_ns for sample in samples if sample.ok], dtype=np.int64))
    return np.diff(np.searchsorted(done, edges, side="right")).astype(float)


def edges(window: Window, parts: int = 1) -> Edges:
    """Return the ``parts + 1`` borders of equal parts of ``window``."""
    return np.linspace(window[0], window[1], parts + 1).astype(np.int64)


def _made_before(samples: Sequence[Sample], edges: Edges) -> Floats:
    made = np.zeros(len(edges))
    for sample in samples:
        tokens = sample.counters.eval_count
        if not sample.ok or not tokens:
            continue
        if len(sample.chunk_ns) > 1:
            arrived = np.searchsorted(np.array(sample.chunk_ns, dtype=np.int64), edges, side="right")
            made += tokens / len(sample.chunk_ns) * arrived
        else:
            took = max(1, sample.counters.eval_duration_ns or 0)
            made += tokens * np.clip((edges - (sample.done_ns - took)) / took, 0.0, 1.0)
    return made
