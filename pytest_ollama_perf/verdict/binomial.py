"""Percentile limits by counting: how many of n requests violate a bound says whether a percentile meets it.

A percentile limit promises that at most a share of all requests violates the bound: 1 - q for ``p_q <= bound``. With v
violations among n, the promise is met where so few would be rare at exactly that share, broken where so many would be
(the rule of MLPerf LoadGen's early stopping).
"""

from __future__ import annotations

from scipy.special import bdtr, bdtrc

RARE = 0.05


def is_met(violations: int, n: int, share: float) -> bool:
    """Whether ``P[Bin(n, share) <= violations] < 0.05``."""
    return n > 0 and bool(bdtr(violations, n, share) < RARE)


def is_broken(violations: int, n: int, share: float) -> bool:
    """Whether ``P[Bin(n, share) >= violations] < 0.05``."""
    return violations > 0 and bool(bdtrc(violations - 1, n, share) < RARE)


def clean_to_settle(violations: int, n: int, share: float) -> int:
    """Return how many more requests without a violation would show that the limit is met; 0 when it is met.

    ``share`` is above 0: without any tolerated violation nothing can be shown by counting.
    """
    low, high = 0, 1
    while not is_met(violations, n + high, share):
        low, high = high, high * 2
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_met(violations, n + middle, share) else (middle + 1, high)
    return low
