"""All tests of a build together: how much of the chance of a false alarm each of them may use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_ollama_perf.verdict.gate import ALPHA

FAMILY_ALPHA = 0.03
"""The chance that a build with nothing changed fails any of its gating (test, metric) pairs.

Below the usual .05: consecutive runs resemble each other, and the p values take them for independent.
"""


@dataclass(frozen=True)
class Family:
    """The gating (test, metric) pairs of a build that judges its tests one after the other.

    Every pair judged regressed leaves more to the others. The pairs so found are always among those that Holm 1979
    would find with all p values in hand (the i-th finding had p at most ``FAMILY_ALPHA / (pairs - i + 1)``), so the
    family level holds, though each test is told its verdict before the next one starts.
    """

    pairs: int
    regressed: int = 0

    @property
    def alpha(self) -> float:
        """The level for the next pair, never above .01."""
        return min(ALPHA, FAMILY_ALPHA / max(1, self.pairs - self.regressed))

    def after(self, regressed: int) -> Family:
        """Return the family after a test of which ``regressed`` pairs regressed."""
        return Family(self.pairs, self.regressed + regressed)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return the level for each p value of a build judged as a whole (Holm 1979), each never above .01.

    The i-th smallest of n is held against ``FAMILY_ALPHA / (n - i + 1)``; those behind the first that fails are given a
    level that they fail too, their own p value or less.
    """
    levels = [0.0] * len(p_values)
    open_ = True
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        level = Family(len(p_values), rank).alpha
        open_ = open_ and p_values[index] < level
        levels[index] = level if open_ else min(level, p_values[index])
    return tuple(levels)
