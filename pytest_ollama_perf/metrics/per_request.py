"""The value each request contributes to a metric. A failed request is infinitely slow, never absent.

What each metric counts for one successful request (all from one clock or from the server's own counters):

========== ============================================================ ===========================================
metric     value                                                        does not exist for
========== ============================================================ ===========================================
latency    done minus start; an open loop starts at the scheduled time  -
ttft       first token minus start                                      embed; responses in one piece, without text
ttfa       first answer token minus start; inf when it only thought     runs in which no model thought first
tpot       eval_duration / (eval_count - 1)                             fewer than two tokens
itl        every gap between two chunks, several values per request     fewer than two chunks; failed requests
queue      total - load - prompt_eval - eval                            embed, whose work no counter covers
load_time  load_duration                                                servers that sent none
tps        eval_count / eval_duration                                   fewer than two tokens
prefill    (prompt_eval_count - cached) / prompt_eval_duration          prompts that were cached whole
========== ============================================================ ===========================================
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import median
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from scipy import special

from pytest_ollama_perf.core.sample import Sample
from pytest_ollama_perf.metrics import METRICS

FloatArray = npt.NDArray[np.float64]
_NS_PER_SECOND = 1e9  # ns; divided by, so that 300 ms are 0.3 s exactly, as a limit has it


def list_request_values(metric: str, samples: Sequence[Sample]) -> list[float]:
    """Return one value for each of ``samples`` (for ``itl`` one for each gap), in the metric's own unit.

    A failed request counts as ``inf`` for a time and 0.0 for a rate; for ``itl`` it adds no gap, unless all requests
    failed. A request for which the metric does not exist is omitted; if it exists for none of the successful ones, the
    metric has no values at all.

    Raises:
        KeyError: ``metric`` has one value per run, such as ``throughput`` or ``qps``.
    """
    return [float(value) for value in compute_values(metric, samples)]


def compute_values(metric: str, samples: Sequence[Sample]) -> FloatArray:
    """Return ``request_values`` as an array."""
    succeeded = [sample for sample in samples if sample.ok]
    found = compute_gaps(succeeded)[0] if metric == "itl" else _compute_each(metric, succeeded)
    if succeeded and (metric == "itl" or not len(found)):
        return found
    worst = 0.0 if METRICS[metric].is_higher_better else math.inf
    return np.concatenate([found, np.full(len(samples) - len(succeeded), worst)])


def compute_gaps(succeeded: Sequence[Sample]) -> tuple[FloatArray, npt.NDArray[np.intp]]:
    """Return all gaps between chunks in seconds, and for each the position of its request in ``succeeded``."""
    sizes = np.array([max(0, len(sample.chunk_ns) - 1) for sample in succeeded], dtype=np.intp)
    if not sizes.sum():
        return np.empty(0), np.empty(0, dtype=np.intp)
    found = np.concatenate([np.diff(np.array(sample.chunk_ns, dtype=np.int64)) for sample in succeeded])
    return found / _NS_PER_SECOND, np.repeat(np.arange(len(succeeded)), sizes)


def _compute_each(metric: str, succeeded: Sequence[Sample]) -> FloatArray:
    if metric == "ttfa" and not any(map(_has_thought, succeeded)):
        return np.empty(0)
    value = METRICS[metric].compute or _VALUE_FUNCTIONS[metric]
    return np.array([x for x in map(value, succeeded) if x is not None], dtype=np.float64)


def _has_thought(sample: Sample) -> bool:
    return sample.first_answer_ns is not None and sample.first_answer_ns != sample.first_token_ns


def _compute_latency(sample: Sample) -> float:
    return (sample.done_ns - sample.start_ns) / _NS_PER_SECOND


def _compute_ttft(sample: Sample) -> float | None:
    return None if sample.first_token_ns is None else (sample.first_token_ns - sample.start_ns) / _NS_PER_SECOND


def _compute_ttfa(sample: Sample) -> float | None:
    if sample.first_token_ns is None:
        return None
    return math.inf if sample.first_answer_ns is None else (sample.first_answer_ns - sample.start_ns) / _NS_PER_SECOND


def _compute_tpot(sample: Sample) -> float | None:
    count, duration = sample.counters.eval_count or 0, sample.counters.eval_duration_ns
    return duration / _NS_PER_SECOND / (count - 1) if duration and count >= 2 else None


def _compute_queue(sample: Sample) -> float | None:
    counters = sample.counters
    if counters.queue_ns is None or (counters.prompt_eval_duration_ns is None and counters.eval_duration_ns is None):
        return None
    return counters.queue_ns / _NS_PER_SECOND


def _compute_load_time(sample: Sample) -> float | None:
    loading = sample.counters.load_duration_ns
    return None if loading is None else loading / _NS_PER_SECOND


def _compute_tps(sample: Sample) -> float | None:
    tokens, duration = read_decode(sample)
    return tokens / duration if tokens >= 2 else None


def _compute_prefill_tps(sample: Sample) -> float | None:
    tokens, duration = read_prefill(sample)
    return tokens / duration if tokens else None


def read_decode(sample: Sample) -> tuple[int, float]:
    """Return sampled tokens and the seconds they took; ``(0, 0.0)`` if the server did not report both."""
    count, duration = sample.counters.eval_count, sample.counters.eval_duration_ns
    return (count, duration / _NS_PER_SECOND) if count and duration else (0, 0.0)


def read_prefill(sample: Sample) -> tuple[int, float]:
    """Return uncached prompt tokens and the seconds they took; ``(0, 0.0)`` where there are none."""
    counters = sample.counters
    fresh = (counters.prompt_eval_count or 0) - (counters.prompt_eval_cached_count or 0)
    duration = counters.prompt_eval_duration_ns
    return (fresh, duration / _NS_PER_SECOND) if fresh > 0 and duration else (0, 0.0)


_VALUE_FUNCTIONS: MappingProxyType[str, Callable[[Sample], float | None]] = MappingProxyType(
    {
        "latency": _compute_latency,
        "ttft": _compute_ttft,
        "ttfa": _compute_ttfa,
        "tpot": _compute_tpot,
        "queue": _compute_queue,
        "load_time": _compute_load_time,
        "tps": _compute_tps,
        "prefill_tps": _compute_prefill_tps,
    }
)


EdgeArray = npt.NDArray[np.int64]
Window = tuple[int, int]
"""From and until, in nanoseconds of the samples' clock; empty where until is not after from."""


def get_whole_window(samples: Sequence[Sample]) -> Window:
    """Return first start (scheduled time of an open loop) to last done."""
    return min(sample.start_ns for sample in samples), max(sample.done_ns for sample in samples)


def get_steady_window(samples: Sequence[Sample]) -> Window:
    """Return the time in which all clients were busy; it may be empty (``has_steady_window``).

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


def has_steady_window(samples: Sequence[Sample], clients: int) -> bool:
    """Whether the steady window is long enough to represent the load.

    Closed loop of several clients: each of them sent at least two requests, and the window lasts as long as a typical
    (median) request. Open loop: the scheduled times differ. A window without tokens never represents a load that made
    some.
    """
    window = get_steady_window(samples)
    if not compute_window_s(window) or not _has_tokens(samples, window):
        return False
    if samples[0].scheduled_ns is not None or clients == 1:
        return True
    sent = Counter(sample.client for sample in samples)
    typical_ns = median(sample.done_ns - sample.sent_ns for sample in samples)
    return len(sent) >= clients and min(sent.values()) >= _MIN_WAVES and window[1] - window[0] >= typical_ns


def _has_tokens(samples: Sequence[Sample], window: Window) -> bool:
    made = any(sample.ok and sample.counters.eval_count for sample in samples)
    return not made or bool(count_tokens(samples, split_window(window)).any())


_MIN_WAVES = 2


def compute_utilization(samples: Sequence[Sample], clients: int) -> float:
    """Return the share of the whole run, 0 to 1, in which the clients of a closed loop had a request in flight."""
    busy = sum(sample.done_ns - sample.sent_ns for sample in samples)
    return min(1.0, busy / _NS_PER_SECOND / clients / compute_window_s(get_whole_window(samples)))


_MIN_WAITING_SHARE = 0.2


def count_parallel_streams(samples: Sequence[Sample], clients: int) -> int:
    """Return how many requests of a closed loop can run at the same time: as many as there are clients or, if requests
    waited for a slot for a fifth of their running time, as many as did."""
    spans = [(sample.done_ns - _get_running_ns(sample), sample.done_ns) for sample in samples if sample.ok]
    waited = sum(sample.counters.queue_ns or 0 for sample in samples if sample.ok)
    if waited < _MIN_WAITING_SHARE * sum(done - start for start, done in spans):
        return clients
    return min(clients, max(sum(start <= done < end for start, end in spans) + 1 for _, done in spans))


def _get_running_ns(sample: Sample) -> int:
    return (sample.counters.prompt_eval_duration_ns or 0) + (sample.counters.eval_duration_ns or 0)


def compute_window_s(window: Window) -> float:
    """Return the length of a window in seconds."""
    return max(0, window[1] - window[0]) / 1e9


def count_tokens(samples: Sequence[Sample], edges: EdgeArray) -> FloatArray:
    """Return how many tokens arrived from each of ``edges`` (ns, itself not counted) up to the next.

    A streamed request's eval_count is spread evenly over its chunks; one that came in a single piece evenly over its
    eval_duration, which ended when it was done. Failed requests made none.
    """
    return np.asarray(np.diff(_count_tokens_before(samples, edges)))


def count_completed(samples: Sequence[Sample], edges: EdgeArray) -> FloatArray:
    """Return how many requests succeeded between each pair of neighbouring ``edges`` (ns)."""
    done = np.sort(np.array([sample.done_ns for sample in samples if sample.ok], dtype=np.int64))
    return np.diff(np.searchsorted(done, edges, side="right")).astype(float)


def split_window(window: Window, parts: int = 1) -> EdgeArray:
    """Return the ``parts + 1`` borders of equal parts of ``window``."""
    return np.linspace(window[0], window[1], parts + 1).astype(np.int64)


def _count_tokens_before(samples: Sequence[Sample], edges: EdgeArray) -> FloatArray:
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


Interval = tuple[float, float]

CONFIDENCE = 0.95
_TAIL = (1 - CONFIDENCE) / 2
_RESAMPLES = 1000
_SEED = 20190425
_BOOTSTRAP_MIN_N, _BOOTSTRAP_MAX_N = 10, 500
_MIN_GROUPS = 5


def compute_quantile(ordered: FloatArray, q: float) -> float:
    """Return the ``q`` quantile of sorted values, linearly interpolated (Hyndman & Fan 1996, type 7).

    Between a finite and an infinite value lies ``inf``: a failed request pulls the percentile it touches with it.
    """
    position = (len(ordered) - 1) * q
    below = math.floor(position + 1e-9)
    low, share = float(ordered[below]), position - below
    if share < 1e-9 or math.isinf(low):
        return low
    return low + share * (float(ordered[below + 1]) - low)


def compute_quantile_interval(ordered: FloatArray, q: float) -> Interval | None:
    """Return the distribution-free interval of a quantile from order statistics; ``None`` where n is too small.

    The 95 % interval runs from the l-th to the u-th smallest value, with at most 2.5 % of Bin(n, q) below l and at or
    above u (Hahn & Meeker 1991, section 5.2).
    """
    n = len(ordered)
    cumulative = special.bdtr(np.arange(n + 1, dtype=float), n, q)
    low = int(np.searchsorted(cumulative, _TAIL, side="right"))
    high = int(np.searchsorted(cumulative, 1 - _TAIL, side="left")) + 1
    return (float(ordered[low - 1]), float(ordered[high - 1])) if low >= 1 and high <= n else None


def compute_clustered_interval(found: FloatArray, owner: npt.NDArray[np.intp], value: float) -> Interval | None:
    """Return the interval of the quantile ``value`` of values that come in groups, such as the gaps of one stream.

    The share of values at or below ``value`` gets the variance of a ratio over groups; the interval of that share is
    read back through the quantiles (Woodruff 1952). ``None`` below five groups.
    """
    sizes = np.bincount(owner).astype(np.float64)
    below = np.bincount(owner, found <= value).astype(np.float64)[sizes > 0]
    sizes = sizes[sizes > 0]
    if len(sizes) < _MIN_GROUPS:
        return None
    share = float(below.sum() / sizes.sum())
    spread = _compute_half_width(below, sizes)
    ordered = np.sort(found)
    low, high = share - spread, share + spread
    return (compute_quantile(ordered, low), compute_quantile(ordered, high)) if low >= 0 and high <= 1 else None


def compute_ratio_interval(above: FloatArray, below: FloatArray) -> Interval | None:
    """Return the interval of ``sum(above) / sum(below)`` over requests; a mean is a ratio to ones.

    From 10 to 500 requests a seeded bootstrap, its percentiles moved outwards as a t interval of that n asks for
    (Hesterberg 2015, expanded percentile); outside that range the linearised ratio with Student's t. ``None`` below two
    requests and where a value is infinite.
    """
    n = len(above)
    if n < 2 or not np.isfinite(above).all():
        return None
    if not _BOOTSTRAP_MIN_N <= n <= _BOOTSTRAP_MAX_N:
        middle, spread = above.sum() / below.sum(), _compute_half_width(above, below)
        return max(0.0, float(middle - spread)), float(middle + spread)
    order = np.lexsort((above, below))
    weights = _draw_resamples(n)
    ratios = np.sort((weights @ above[order]) / (weights @ below[order]))
    tail = float(special.ndtr(special.stdtrit(n - 1, _TAIL) * math.sqrt(n / (n - 1))))
    return compute_quantile(ratios, tail), compute_quantile(ratios, 1 - tail)


def compute_share_interval(failures: int, n: int) -> Interval:
    """Return the exact interval of a share (Clopper & Pearson 1934)."""
    low = 0.0 if failures == 0 else float(special.betaincinv(failures, n - failures + 1, _TAIL))
    high = 1.0 if failures == n else float(special.betaincinv(failures + 1, n - failures, 1 - _TAIL))
    return low, high


def _compute_half_width(above: FloatArray, below: FloatArray) -> float:
    """Half the t interval of ``sum(above) / sum(below)``, linearised (Cochran 1977, section 6.3)."""
    n = len(above)
    rest = above - below * (above.sum() / below.sum())
    deviation = math.sqrt(float(rest @ rest) / (n - 1) / n) / float(below.mean())
    return float(-special.stdtrit(n - 1, _TAIL)) * deviation


@lru_cache(maxsize=4)
def _draw_resamples(n: int) -> FloatArray:
    """How often each of ``n`` requests is drawn in each resample."""
    drawn = np.random.default_rng(_SEED).integers(0, n, size=(_RESAMPLES, n))
    drawn += np.arange(_RESAMPLES)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=_RESAMPLES * n).reshape(_RESAMPLES, n).astype(float)
