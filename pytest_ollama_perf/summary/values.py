"""The value each request contributes to a metric. A failed request is infinitely slow, never absent.

What each metric counts for one successful request (all from one clock or from the server's own counters):

========== ============================================================ ===========================================
metric     value                                                        does not exist for
========== ============================================================ ===========================================
latency    done minus start; an open loop starts at the scheduled time  -
ttft       first token minus start                                      embed; responses in one piece, without text
ttfa       first answer token minus start; inf when it only thought     runs in which no model thought first
tpot       eval_duration / (eval_count - 1)                             fewer than two tokens
itl        every gap between two chunks, so many values per request     fewer than two chunks
queue      total - load - prompt_eval - eval                            embed, whose work no counter covers
load_time  load_duration                                                servers that sent none
tps        eval_count / eval_duration                                   fewer than two tokens
prefill    (prompt_eval_count - cached) / prompt_eval_duration          prompts that were cached whole
========== ============================================================ ===========================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from pytest_ollama_perf.metric import METRICS
from pytest_ollama_perf.sample import Sample

Floats = npt.NDArray[np.float64]
_SECOND = 1e9  # ns; divided by, so that 300 ms are 0.3 s exactly, as a limit has it


def request_values(metric: str, samples: Sequence[Sample]) -> list[float]:
    """Return one value for each of ``samples`` (for ``itl`` one for each gap), in the metric's own unit.

    A failed request counts as ``inf`` for a time and 0.0 for a rate. A request for which the metric does not exist is
    left out; where it exists for none of the successful ones, the metric has no values at all. ``metric`` must have one
    value per request: ``KeyError`` for ``throughput``, ``qps`` and the like.
    """
    return [float(value) for value in values(metric, samples)]


def values(metric: str, samples: Sequence[Sample]) -> Floats:
    """Return ``request_values`` as an array."""
    succeeded = [sample for sample in samples if sample.ok]
    found = gaps(succeeded)[0] if metric == "itl" else _of_each(metric, succeeded)
    if succeeded and not len(found):
        return found
    worst = 0.0 if METRICS[metric].is_rate else math.inf
    return np.concatenate([found, np.full(len(samples) - len(succeeded), worst)])


def gaps(succeeded: Sequence[Sample]) -> tuple[Floats, npt.NDArray[np.intp]]:
    """Return all gaps between chunks in seconds, and for each the position of its request in ``succeeded``."""
    sizes = np.array([max(0, len(sample.chunk_ns) - 1) for sample in succeeded], dtype=np.intp)
    if not sizes.sum():
        return np.empty(0), np.empty(0, dtype=np.intp)
    found = np.concatenate([np.diff(np.array(sample.chunk_ns, dtype=np.int64)) for sample in succeeded])
    return found / _SECOND, np.repeat(np.arange(len(succeeded)), sizes)


def _of_each(metric: str, succeeded: Sequence[Sample]) -> Floats:
    if metric == "ttfa" and not any(map(_thought, succeeded)):
        return np.empty(0)
    value = _VALUE[metric]
    return np.array([x for x in map(value, succeeded) if x is not None], dtype=np.float64)


def _thought(sample: Sample) -> bool:
    return sample.first_answer_ns is not None and sample.first_answer_ns != sample.first_token_ns


def _latency(sample: Sample) -> float:
    return (sample.done_ns - sample.start_ns) / _SECOND


def _ttft(sample: Sample) -> float | None:
    return None if sample.first_token_ns is None else (sample.first_token_ns - sample.start_ns) / _SECOND


def _ttfa(sample: Sample) -> float | None:
    if sample.first_token_ns is None:
        return None
    return math.inf if sample.first_answer_ns is None else (sample.first_answer_ns - sample.start_ns) / _SECOND


def _tpot(sample: Sample) -> float | None:
    count, duration = sample.counters.eval_count or 0, sample.counters.eval_duration_ns
    return duration / _SECOND / (count - 1) if duration and count >= 2 else None


def _queue(sample: Sample) -> float | None:
    counters = sample.counters
    if counters.queue_ns is None or (counters.prompt_eval_duration_ns is None and counters.eval_duration_ns is None):
        return None
    return counters.queue_ns / _SECOND


def _load_time(sample: Sample) -> float | None:
    loading = sample.counters.load_duration_ns
    return None if loading is None else loading / _SECOND


def _tps(sample: Sample) -> float | None:
    tokens, duration = decoded(sample)
    return tokens / duration if tokens >= 2 else None


def _prefill_tps(sample: Sample) -> float | None:
    tokens, duration = prefilled(sample)
    return tokens / duration if tokens else None


def decoded(sample: Sample) -> tuple[int, float]:
    """Return sampled tokens and the seconds they took; ``(0, 0.0)`` where the server told no such pair."""
    count, duration = sample.counters.eval_count, sample.counters.eval_duration_ns
    return (count, duration / _SECOND) if count and duration else (0, 0.0)


def prefilled(sample: Sample) -> tuple[int, float]:
    """Return uncached prompt tokens and the seconds they took; ``(0, 0.0)`` where there are none."""
    counters = sample.counters
    fresh = (counters.prompt_eval_count or 0) - (counters.prompt_eval_cached_count or 0)
    duration = counters.prompt_eval_duration_ns
    return (fresh, duration / _SECOND) if fresh > 0 and duration else (0, 0.0)


_VALUE: MappingProxyType[str, Callable[[Sample], float | None]] = MappingProxyType(
    {
        "latency": _latency,
        "ttft": _ttft,
        "ttfa": _ttfa,
        "tpot": _tpot,
        "queue": _queue,
        "load_time": _load_time,
        "tps": _tps,
        "prefill_tps": _prefill_tps,
    }
)
