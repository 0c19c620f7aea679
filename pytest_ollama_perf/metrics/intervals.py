"""Quantiles and 95 % confidence intervals over requests. Deterministic; the order of the requests never matters."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import special

from pytest_ollama_perf.metrics.per_request import FloatArray

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
