"""The gate: is this build slower than its history, as far as a few runs can tell?

A moderated t prediction interval (Smyth 2004: the variance between runs is shrunk towards what is usual for the metric)
around the stored runs that pass a Hampel filter, and up to three candidate runs, each on a freshly loaded model. Any
run may show that all is well. That something is wrong is said after the last, and only if every run agrees: a machine
that is slow for a while is slow for two runs as often as not, and two that may convict double the false alarms.

Where stored runs differ more than is usual, what is beyond the usual comes in spells (a busy neighbour, heat, where the
system put a process), and the runs of one build share a spell: to convict, three of them count little more than one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

from scipy.special import stdtr, stdtrit

from pytest_ollama_perf.verdict.run_value import PRIOR_DF, Policy
from pytest_ollama_perf.verdict.words import Word

WINDOW = 20
"""How many stored runs, the newest, make a history."""
ALPHA = 0.01
MAX_RUNS = 3
_BETA = 0.045
"""The chance that one look passes a build that is worse by the whole margin."""

_SINGLE_ALPHA = 0.35
"""A run that looks no worse than this by itself speaks against a change."""

_GROSS_MARGINS = 4.0
"""A regression this many margins large is not asked for its last run."""

_SPELL_SDS = 1.2
"""Between-run deviations beyond this many usual ones are put down to spells."""

_SPELL_MARGINS = 2.5
_SPELL_DEVIATIONS = 2.0
"""A difference that is this many margins and this many deviations of the spells large is put down to none of them."""

_POWER = 0.80
_MOST_RUNS_NAMED = 20

_LEAST_FOR_FILTER = 5
_DEVIATIONS = 3.5
_LEAST_SCALE = 0.01
_MOST_DROPPED = 0.2
_MAD_BIAS = (0.75, 0.79, 0.83, 0.85, 0.87, 0.88)
_MAD_BIAS_AT_WINDOW = 0.94

TWO_MODES = "the stored runs fall into two groups, none was left out"


@dataclass(frozen=True)
class Rule:
    """What the gate needs to know of a metric; ``margin`` is a share (0.05: 5 % worse is accepted).

    ``scatter`` is how much the requests of a run alone let its value vary (``Evidence.scatter``); where that is more
    than the deviation between runs that is usual, it is expected between runs too.

    Raises:
        ValueError: a negative margin or scatter, a prior that is not above 0 (it keeps the gate from certainty), no
            runs at all.
    """

    margin: float
    prior_sd: float
    prior_df: float = PRIOR_DF
    max_runs: int = MAX_RUNS
    scatter: float = 0.0

    def __post_init__(self) -> None:
        priors = self.prior_sd > 0.0 and self.prior_df > 0.0
        if not (priors and self.margin >= 0.0 and self.scatter >= 0.0 and self.max_runs >= 1):
            raise ValueError(
                f"{self}: margin and scatter must be 0 or more, prior_sd and prior_df above 0, max_runs at least 1"
            )

    @classmethod
    def of(cls, policy: Policy, margin: float | None = None, max_runs: int = MAX_RUNS, scatter: float = 0.0) -> Rule:
        """Return the rule of ``policy``, with a ``margin`` of one's own where one is given."""
        margin = policy.margin if margin is None else margin
        return cls(margin, policy.prior_sd, max_runs=max_runs, scatter=scatter)

    @property
    def expected_sd(self) -> float:
        """The deviation between runs to expect before any history is seen."""
        return max(self.prior_sd, self.scatter)

    @property
    def usual_sd(self) -> float:
        """The deviation between runs beyond which there are spells."""
        return _SPELL_SDS * self.prior_sd

    @property
    def scattered(self) -> bool:
        """Whether already the requests of one run show spells."""
        return self.scatter > self.usual_sd


@dataclass(frozen=True)
class Baseline:
    """What the stored runs say: mean and standard deviation of a run's cost, with ``df`` degrees of freedom.

    ``spell_sd`` is the part of ``sd`` that the runs of one build share.
    """

    mean: float
    sd: float
    spell_sd: float
    df: float
    kept: tuple[float, ...]
    dropped: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def se(self, runs: int, spell_sd: float = 0.0) -> float:
        """Return the standard error of the difference between ``runs`` candidate runs and the stored ones."""
        return _se(self.sd, spell_sd, runs, len(self.kept))


def _se(sd: float, spell_sd: float, runs: int, stored: int) -> float:
    shared = spell_sd**2
    return math.sqrt((sd**2 - shared) / runs + shared + sd**2 / stored)


@dataclass(frozen=True)
class Judgement:
    """What the gate found. Differences are of costs: above 0 is worse, ``change`` is ``exp(d) - 1``.

    ``low``..``high`` is the 95 % interval of ``change``; ``p`` the chance of a difference at least as bad with nothing
    changed; ``detectable`` the change that these runs would show four times in five. ``more_runs`` and ``more_stored``
    say what would settle an unsure verdict if the difference stays as it is: so many candidate runs or, where no number
    of them would, so many stored ones, each in all. ``again`` asks for one more candidate run now; ``suspect`` says
    that the difference is large enough for further runs to convict. Without a baseline or without data the numbers are
    ``NaN``.
    """

    word: Word
    runs: int
    d: float = math.nan
    se: float = math.nan
    df: float = math.nan
    p: float = math.nan
    change: float = math.nan
    low: float = math.nan
    high: float = math.nan
    detectable: float = math.nan
    baseline: Baseline | None = None
    more_runs: int | None = None
    more_stored: int | None = None
    again: bool = False
    suspect: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Evidence:
    """Candidate runs beside their baseline: a difference and how well it is known."""

    baseline: Baseline
    runs: tuple[float, ...]
    rule: Rule
    alpha: float

    @property
    def d(self) -> float:
        return math.fsum(self.runs) / len(self.runs) - self.baseline.mean if max(self.runs) < math.inf else math.inf

    @property
    def limit(self) -> float:
        return math.log1p(self.rule.margin)

    @property
    def beyond_spells(self) -> float:
        """The difference that no spell explains: none, where already the requests of one run show them."""
        if self.rule.scattered:
            return math.inf
        return max(_SPELL_MARGINS * self.limit, _SPELL_DEVIATIONS * self.baseline.spell_sd)

    @property
    def spell_sd(self) -> float:
        """How much of the difference a spell may explain."""
        return self.baseline.spell_sd if abs(self.d) < self.beyond_spells else 0.0

    @property
    def se(self) -> float:
        return self.baseline.se(len(self.runs), self.spell_sd)

    @property
    def ok(self) -> bool:
        """Whether so large a slow-down as the margin can be ruled out. A spell is no reason to ask for more runs."""
        return self.rules_out(len(self.runs), len(self.baseline.kept), self.baseline.df)

    def rules_out(self, runs: int, stored: int, df: float) -> bool:
        """Whether this difference, found in so many runs, would rule the margin out."""
        return self.d + _t(1.0 - _BETA, df) * _se(self.baseline.sd, 0.0, runs, stored) < self.limit

    def p(self, difference: float, se: float) -> float:
        return float(stdtr(self.baseline.df, -difference / se))

    def notable(self, difference: float) -> bool:
        return difference >= self.limit / 2

    def moved(self, sign: int) -> bool:
        """Whether the cost went up (``sign`` +1) or down (-1) by half the margin or more, and every run agrees."""
        difference = sign * self.d
        if not (self.notable(difference) and self.p(difference, self.se) < self.alpha):
            return False
        se = self.baseline.se(1)
        return all(self.p(sign * (run - self.baseline.mean), se) < _SINGLE_ALPHA for run in self.runs)

    def may_regress(self, runs: int) -> bool:
        """Whether so many runs are enough for ``regressed``: the last one allowed, or two of a gross difference."""
        return runs >= self.rule.max_runs or (runs >= 2 and self.d >= _GROSS_MARGINS * self.limit)


def judge(history: Sequence[float], candidates: Sequence[float], rule: Rule, alpha: float = ALPHA) -> Judgement:
    """Judge the run values (costs) ``candidates`` against those of ``history``, oldest first.

    ``alpha`` is what the build's other tests leave of the chance of a false alarm (``family``). An infinite candidate
    failed; an infinite or missing (``NaN``) stored run is no baseline and left out; a missing candidate is never ok.
    """
    runs = tuple(candidates)
    baseline = fit(history, rule)
    notes = baseline.notes if baseline else ()
    if not runs or any(math.isnan(run) for run in runs):
        return Judgement(Word.UNSURE, len(runs), baseline=baseline, again=len(runs) < rule.max_runs, notes=notes)
    if baseline is None:
        return Judgement(Word.NEW, len(runs))
    return _report(_Evidence(baseline, runs, rule, min(alpha, ALPHA)))


def fit(history: Iterable[float], rule: Rule) -> Baseline | None:
    """Return what the newest ``WINDOW`` usable runs of ``history`` say, or ``None`` when there are none."""
    stored = [run for run in history if math.isfinite(run)][-WINDOW:]
    if not stored:
        return None
    kept, dropped, notes = _without_outliers(stored)
    mean = math.fsum(kept) / len(kept)
    squares = math.fsum((run - mean) ** 2 for run in kept)
    df = rule.prior_df + len(kept) - 1
    variance = (rule.prior_df * rule.expected_sd**2 + squares) / df
    spell_sd = math.sqrt(max(0.0, variance - rule.usual_sd**2))
    return Baseline(mean, math.sqrt(variance), spell_sd, df, kept, dropped, (*notes, *_thin(len(kept))))


def _without_outliers(stored: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
    """Split ``stored`` into kept and dropped (Hampel 1974, with the small-sample bias of the MAD taken out)."""
    everything = tuple(stored)
    if len(everything) < _LEAST_FOR_FILTER:
        return everything, (), ()
    middle = median(everything)
    deviation = median(abs(run - middle) for run in everything)
    reach = _DEVIATIONS * max(1.4826 * deviation / mad_bias(len(everything)), _LEAST_SCALE)
    dropped = tuple(run for run in everything if abs(run - middle) > reach)
    if len(dropped) > _MOST_DROPPED * len(everything):
        return everything, (), (TWO_MODES,)
    kept = tuple(run for run in everything if abs(run - middle) <= reach)
    return kept, dropped, (f"{len(dropped)} of {len(everything)} stored runs left out as outliers",) if dropped else ()


def mad_bias(count: int) -> float:
    """Return the median of 1.4826 MAD / standard deviation for ``count`` normal values, 5 to 20 (simulated)."""
    last = _LEAST_FOR_FILTER + len(_MAD_BIAS) - 1
    if count <= last:
        return _MAD_BIAS[count - _LEAST_FOR_FILTER]
    way = (1 / last - 1 / count) / (1 / last - 1 / WINDOW)
    return _MAD_BIAS[-1] + (_MAD_BIAS_AT_WINDOW - _MAD_BIAS[-1]) * way


def _thin(count: int) -> tuple[str, ...]:
    if count == 1:
        return ("one stored run can decide only changes of 20 % and more",)
    return ("two stored runs can decide only changes of 10 % and more",) if count == 2 else ()


def _word(evidence: _Evidence) -> Word:
    if evidence.moved(-1):
        return Word.FASTER
    if evidence.ok:
        return Word.OK
    if evidence.may_regress(len(evidence.runs)) and evidence.moved(+1):
        return Word.REGRESSED
    return Word.UNSURE


def _report(evidence: _Evidence) -> Judgement:
    word, runs = _word(evidence), len(evidence.runs)
    d, se, df = evidence.d, evidence.se, evidence.baseline.df
    reach = _t(0.975, df) * se
    more_runs, more_stored = _settling(evidence) if word is Word.UNSURE else (None, None)
    return Judgement(
        word,
        runs,
        d=d,
        se=se,
        df=df,
        p=evidence.p(d, se),
        change=_relative(d),
        low=_relative(d - reach),
        high=_relative(d + reach),
        detectable=_relative(_detectable(evidence)),
        baseline=evidence.baseline,
        more_runs=more_runs,
        more_stored=more_stored,
        again=word is Word.UNSURE and runs < evidence.rule.max_runs,
        suspect=evidence.notable(d),
        notes=evidence.baseline.notes,
    )


def _detectable(evidence: _Evidence) -> float:
    """Return the difference that these runs would show four times in five."""
    baseline, runs = evidence.baseline, len(evidence.runs)
    deviations = _t(1.0 - ALPHA, baseline.df) + _t(_POWER, baseline.df)
    beyond_spells = max(evidence.beyond_spells, deviations * baseline.se(runs))
    return min(deviations * baseline.se(runs, baseline.spell_sd), beyond_spells)


def _settling(evidence: _Evidence) -> tuple[int | None, int | None]:
    """Return how many candidate runs, or else how many stored runs, would decide if the difference stayed the same."""
    baseline, most = evidence.baseline, _MOST_RUNS_NAMED
    stored = len(baseline.kept)
    for runs in range(len(evidence.runs) + 1, most + 1):
        if _decides(evidence, runs, stored, baseline.df):
            return runs, None
    for more in range(stored + 1, WINDOW + 1):
        if _decides(evidence, evidence.rule.max_runs, more, baseline.df + more - stored):
            return None, more
    return None, None


def _decides(evidence: _Evidence, runs: int, stored: int, df: float) -> bool:
    if evidence.rules_out(runs, stored, df):
        return True
    se = _se(evidence.baseline.sd, evidence.spell_sd, runs, stored)
    significant = evidence.notable(evidence.d) and float(stdtr(df, -evidence.d / se)) < evidence.alpha
    return significant and evidence.may_regress(runs)


@lru_cache(maxsize=1024)
def _t(probability: float, df: float) -> float:
    return float(stdtrit(df, probability))


def _relative(difference: float) -> float:
    try:
        return math.expm1(difference)
    except OverflowError:
        return math.inf
