"""Two live servers or models, side by side: blocks of A B B A, both sides loaded anew in every block.

What disturbs the machine disturbs both sides of a block alike, so the difference within a block is the unit of
evidence. A t test with moderated variance (Smyth 2004) looks at it a few times, each at its share of ``ALPHA``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit

from pytest_ollama_perf.verdict.run_value import PRIOR_DF
from pytest_ollama_perf.verdict.words import Word

ORDER = "ABBA"
REQUESTS_PER_SIDE = 8
"""Requests of each side in a block: four in each of its two turns."""

LOOKS = (4, 6, 8, 12)
"""After how many blocks to look."""

ALPHA = 0.02
"""The chance of finding a difference between equal sides: .01 each way, as at the gate."""

DIFFERENCE = 0.03
"""The smallest difference that matters unless told otherwise."""

_BETA = 0.02
_OWN_SHARE = 0.5
"""How much of the spread between runs the difference within a block keeps: the machine's state is common to both."""

_LEAST_FAILED = 2


@dataclass(frozen=True)
class Comparison:
    """What the blocks say of B against A. ``d`` is a difference of costs: above 0, B is worse.

    ``change`` is ``exp(d) - 1``, ``p`` the two-sided chance of a difference this large between equal sides.
    ``word`` is ``regressed`` where B is slower, ``faster``, ``ok`` where they differ by less than what matters, or
    ``unsure``. ``low``..``high`` is the 95 % interval of ``change``. ``more`` says how many blocks to add before the
    next look; 0 when there is nothing left to look for.
    """

    word: Word
    blocks: int
    more: int = 0
    d: float = math.nan
    se: float = math.nan
    p: float = math.nan
    change: float = math.nan
    low: float = math.nan
    high: float = math.nan


def compare(
    a: Sequence[float], b: Sequence[float], prior_sd: float, difference: float = DIFFERENCE, alpha: float = ALPHA
) -> Comparison:
    """Compare the block costs (``run_value`` of a side's requests) of two sides, block by block.

    ``prior_sd`` is that of the metric's policy; ``difference`` the smallest share that matters.
    Between two looks the answer is ``unsure``. A block in which one side failed (infinite cost) says nothing of speed:
    two such blocks of the same side decide, otherwise they leave the answer unsure.
    """
    differences = [right - left for left, right in zip(a, b, strict=True)]
    blocks = len(differences)
    more = next((look - blocks for look in LOOKS if look > blocks), 0)
    if blocks not in LOOKS:
        return Comparison(Word.UNSURE, blocks, more)
    if not all(map(math.isfinite, differences)):
        return _failed(differences, more)
    return _look(differences, more, _OWN_SHARE * prior_sd, math.log1p(difference), alpha / len(LOOKS))


def _failed(differences: Sequence[float], more: int) -> Comparison:
    words = {math.inf: Word.REGRESSED, -math.inf: Word.FASTER}
    one_sided = {one for one in differences if not math.isfinite(one)}
    only = one_sided.pop()
    if not one_sided and differences.count(only) >= _LEAST_FAILED:
        return Comparison(words[only], len(differences), d=only, change=math.inf if only > 0 else -1.0)
    return Comparison(Word.UNSURE, len(differences), more)


def _look(differences: Sequence[float], more: int, prior_sd: float, limit: float, alpha: float) -> Comparison:
    blocks = len(differences)
    d, df = math.fsum(differences) / blocks, PRIOR_DF + blocks - 1
    squares = math.fsum((one - d) ** 2 for one in differences)
    se = math.sqrt((PRIOR_DF * prior_sd**2 + squares) / df / blocks)
    p = 2.0 * float(stdtr(df, -abs(d) / se))
    reach = float(stdtrit(df, 0.975)) * se
    if p < alpha:
        word = Word.REGRESSED if d > 0 else Word.FASTER
    else:
        word = Word.OK if abs(d) + float(stdtrit(df, 1.0 - _BETA)) * se < limit else Word.UNSURE
    more = more if word is Word.UNSURE else 0
    return Comparison(word, blocks, more, d, se, p, math.expm1(d), math.expm1(d - reach), math.expm1(d + reach))
