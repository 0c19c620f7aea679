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

from pytest_ollama_perf.analysis.run_value import PRIOR_DF, MetricPolicy
from pytest_ollama_perf.core.verdict import VerdictStatus

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

_SHARED_SDS = 1.2
"""Between-run deviations beyond this many usual ones are put down to spells."""

_SHARED_MARGINS = 2.5
_SHARED_DEVIATIONS = 2.0
"""A difference that is this many margins and this many deviations of the spells large is put down to none of them."""

_POWER = 0.80
_MAX_RUNS_NAMED = 20

_MIN_FOR_FILTER = 5
_FILTER_DEVIATIONS = 3.5
_MIN_SCALE = 0.01
_MAX_DROPPED_SHARE = 0.2
_MAD_BIAS = (0.75, 0.79, 0.83, 0.85, 0.87, 0.88)
_MAD_BIAS_AT_WINDOW = 0.94

TWO_MODES_NOTE = "the stored runs fall into two groups, none was left out"


@dataclass(frozen=True)
class GateRule:
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
    def from_policy(
        cls, policy: MetricPolicy, margin: float | None = None, max_runs: int = MAX_RUNS, scatter: float = 0.0
    ) -> GateRule:
        """Return the rule of ``policy``, with a ``margin`` of one's own where one is given."""
        margin = policy.margin if margin is None else margin
        return cls(margin, policy.prior_sd, max_runs=max_runs, scatter=scatter)

    @property
    def expected_sd(self) -> float:
        """The deviation between runs to expect before any history is seen."""
        return max(self.prior_sd, self.scatter)

    @property
    def unshared_sd(self) -> float:
        """The deviation between runs beyond which there are spells."""
        return _SHARED_SDS * self.prior_sd

    @property
    def has_shared_variance(self) -> bool:
        """Whether already the requests of one run show spells."""
        return self.scatter > self.unshared_sd


@dataclass(frozen=True)
class BaselineFit:
    """What the stored runs say: mean and standard deviation of a run's cost, with ``df`` degrees of freedom.

    ``spell_sd`` is the part of ``sd`` that the runs of one build share.
    """

    mean: float
    sd: float
    shared_sd: float
    df: float
    kept: tuple[float, ...]
    dropped: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def compute_se(self, runs: int, spell_sd: float = 0.0) -> float:
        """Return the standard error of the difference between ``runs`` candidate runs and the stored ones."""
        return _compute_se(self.sd, spell_sd, runs, len(self.kept))


def _compute_se(sd: float, spell_sd: float, runs: int, stored: int) -> float:
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

    word: VerdictStatus
    runs: int
    d: float = math.nan
    se: float = math.nan
    df: float = math.nan
    p: float = math.nan
    change: float = math.nan
    low: float = math.nan
    high: float = math.nan
    detectable: float = math.nan
    baseline: BaselineFit | None = None
    more_runs: int | None = None
    more_stored: int | None = None
    again: bool = False
    suspect: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Comparison:
    """Candidate runs beside their baseline: a difference and how well it is known."""

    baseline: BaselineFit
    runs: tuple[float, ...]
    rule: GateRule
    alpha: float

    @property
    def d(self) -> float:
        return math.fsum(self.runs) / len(self.runs) - self.baseline.mean if max(self.runs) < math.inf else math.inf

    @property
    def limit(self) -> float:
        return math.log1p(self.rule.margin)

    @property
    def max_shared_difference(self) -> float:
        """The difference that no spell explains: none, where already the requests of one run show them."""
        if self.rule.has_shared_variance:
            return math.inf
        return max(_SHARED_MARGINS * self.limit, _SHARED_DEVIATIONS * self.baseline.shared_sd)

    @property
    def shared_sd(self) -> float:
        """How much of the difference a spell may explain."""
        return self.baseline.shared_sd if abs(self.d) < self.max_shared_difference else 0.0

    @property
    def se(self) -> float:
        return self.baseline.compute_se(len(self.runs), self.shared_sd)

    @property
    def ok(self) -> bool:
        """Whether so large a slow-down as the margin can be ruled out. A spell is no reason to ask for more runs."""
        return self.can_rule_out(len(self.runs), len(self.baseline.kept), self.baseline.df)

    def can_rule_out(self, runs: int, stored: int, df: float) -> bool:
        """Whether this difference, found in so many runs, would rule the margin out."""
        return (
            self.d + _compute_t_quantile(1.0 - _BETA, df) * _compute_se(self.baseline.sd, 0.0, runs, stored)
            < self.limit
        )

    def compute_p(self, difference: float, se: float) -> float:
        return float(stdtr(self.baseline.df, -difference / se))

    def is_notable(self, difference: float) -> bool:
        return difference >= self.limit / 2

    def has_moved(self, sign: int) -> bool:
        """Whether the cost went up (``sign`` +1) or down (-1) by half the margin or more, and every run agrees."""
        difference = sign * self.d
        if not (self.is_notable(difference) and self.compute_p(difference, self.se) < self.alpha):
            return False
        se = self.baseline.compute_se(1)
        return all(self.compute_p(sign * (run - self.baseline.mean), se) < _SINGLE_ALPHA for run in self.runs)

    def has_enough_runs(self, runs: int) -> bool:
        """Whether so many runs are enough for ``regressed``: the last one allowed, or two of a gross difference."""
        return runs >= self.rule.max_runs or (runs >= 2 and self.d >= _GROSS_MARGINS * self.limit)


def judge_runs(
    history: Sequence[float], candidates: Sequence[float], rule: GateRule, alpha: float = ALPHA
) -> Judgement:
    """Judge the run values (costs) ``candidates`` against those of ``history``, oldest first.

    ``alpha`` is what the build's other tests leave of the chance of a false alarm (``family``). An infinite candidate
    failed; an infinite or missing (``NaN``) stored run is no baseline and left out; a missing candidate is never ok.
    """
    runs = tuple(candidates)
    baseline = fit_baseline(history, rule)
    notes = baseline.notes if baseline else ()
    if not runs or any(math.isnan(run) for run in runs):
        return Judgement(
            VerdictStatus.UNSURE, len(runs), baseline=baseline, again=len(runs) < rule.max_runs, notes=notes
        )
    if baseline is None:
        return Judgement(VerdictStatus.NEW, len(runs))
    return _build_judgement(_Comparison(baseline, runs, rule, min(alpha, ALPHA)))


def fit_baseline(history: Iterable[float], rule: GateRule) -> BaselineFit | None:
    """Return what the newest ``WINDOW`` usable runs of ``history`` say, or ``None`` when there are none."""
    stored = [run for run in history if math.isfinite(run)][-WINDOW:]
    if not stored:
        return None
    kept, dropped, notes = _split_outliers(stored)
    mean = math.fsum(kept) / len(kept)
    squares = math.fsum((run - mean) ** 2 for run in kept)
    df = rule.prior_df + len(kept) - 1
    variance = (rule.prior_df * rule.expected_sd**2 + squares) / df
    spell_sd = math.sqrt(max(0.0, variance - rule.unshared_sd**2))
    return BaselineFit(mean, math.sqrt(variance), spell_sd, df, kept, dropped, (*notes, *_note_few_runs(len(kept))))


def _split_outliers(stored: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
    """Split ``stored`` into kept and dropped (Hampel 1974, with the small-sample bias of the MAD taken out)."""
    everything = tuple(stored)
    if len(everything) < _MIN_FOR_FILTER:
        return everything, (), ()
    middle = median(everything)
    deviation = median(abs(run - middle) for run in everything)
    reach = _FILTER_DEVIATIONS * max(1.4826 * deviation / get_mad_bias(len(everything)), _MIN_SCALE)
    dropped = tuple(run for run in everything if abs(run - middle) > reach)
    if len(dropped) > _MAX_DROPPED_SHARE * len(everything):
        return everything, (), (TWO_MODES_NOTE,)
    kept = tuple(run for run in everything if abs(run - middle) <= reach)
    return kept, dropped, (f"{len(dropped)} of {len(everything)} stored runs left out as outliers",) if dropped else ()


def get_mad_bias(count: int) -> float:
    """Return the median of 1.4826 MAD / standard deviation for ``count`` normal values, 5 to 20 (simulated)."""
    last = _MIN_FOR_FILTER + len(_MAD_BIAS) - 1
    if count <= last:
        return _MAD_BIAS[count - _MIN_FOR_FILTER]
    way = (1 / last - 1 / count) / (1 / last - 1 / WINDOW)
    return _MAD_BIAS[-1] + (_MAD_BIAS_AT_WINDOW - _MAD_BIAS[-1]) * way


def _note_few_runs(count: int) -> tuple[str, ...]:
    if count == 1:
        return ("one stored run can decide only changes of 20 % and more",)
    return ("two stored runs can decide only changes of 10 % and more",) if count == 2 else ()


def _decide_status(evidence: _Comparison) -> VerdictStatus:
    if evidence.has_moved(-1):
        return VerdictStatus.FASTER
    if evidence.ok:
        return VerdictStatus.OK
    if evidence.has_enough_runs(len(evidence.runs)) and evidence.has_moved(+1):
        return VerdictStatus.REGRESSED
    return VerdictStatus.UNSURE


def _build_judgement(evidence: _Comparison) -> Judgement:
    word, runs = _decide_status(evidence), len(evidence.runs)
    d, se, df = evidence.d, evidence.se, evidence.baseline.df
    reach = _compute_t_quantile(0.975, df) * se
    more_runs, more_stored = _count_runs_to_settle(evidence) if word is VerdictStatus.UNSURE else (None, None)
    return Judgement(
        word,
        runs,
        d=d,
        se=se,
        df=df,
        p=evidence.compute_p(d, se),
        change=_to_relative_change(d),
        low=_to_relative_change(d - reach),
        high=_to_relative_change(d + reach),
        detectable=_to_relative_change(_compute_detectable(evidence)),
        baseline=evidence.baseline,
        more_runs=more_runs,
        more_stored=more_stored,
        again=word is VerdictStatus.UNSURE and runs < evidence.rule.max_runs,
        suspect=evidence.is_notable(d),
        notes=evidence.baseline.notes,
    )


def _compute_detectable(evidence: _Comparison) -> float:
    """Return the difference that these runs would show four times in five."""
    baseline, runs = evidence.baseline, len(evidence.runs)
    deviations = _compute_t_quantile(1.0 - ALPHA, baseline.df) + _compute_t_quantile(_POWER, baseline.df)
    beyond_spells = max(evidence.max_shared_difference, deviations * baseline.compute_se(runs))
    return min(deviations * baseline.compute_se(runs, baseline.shared_sd), beyond_spells)


def _count_runs_to_settle(evidence: _Comparison) -> tuple[int | None, int | None]:
    """Return how many candidate runs, or else how many stored runs, would decide if the difference stayed the same."""
    baseline, most = evidence.baseline, _MAX_RUNS_NAMED
    stored = len(baseline.kept)
    for runs in range(len(evidence.runs) + 1, most + 1):
        if _is_decisive(evidence, runs, stored, baseline.df):
            return runs, None
    for more in range(stored + 1, WINDOW + 1):
        if _is_decisive(evidence, evidence.rule.max_runs, more, baseline.df + more - stored):
            return None, more
    return None, None


def _is_decisive(evidence: _Comparison, runs: int, stored: int, df: float) -> bool:
    if evidence.can_rule_out(runs, stored, df):
        return True
    se = _compute_se(evidence.baseline.sd, evidence.shared_sd, runs, stored)
    significant = evidence.is_notable(evidence.d) and float(stdtr(df, -evidence.d / se)) < evidence.alpha
    return significant and evidence.has_enough_runs(runs)


@lru_cache(maxsize=1024)
def _compute_t_quantile(probability: float, df: float) -> float:
    return float(stdtrit(df, probability))


def _to_relative_change(difference: float) -> float:
    try:
        return math.expm1(difference)
    except OverflowError:
        return math.inf


FAMILY_ALPHA = 0.03
"""The chance that a build with nothing changed fails any of its gating (test, metric) pairs.

Below the usual .05: consecutive runs resemble each other, and the p values take them for independent.
"""


@dataclass(frozen=True)
class ErrorBudget:
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

    def spend(self, regressed: int) -> ErrorBudget:
        """Return the family after a test of which ``regressed`` pairs regressed."""
        return ErrorBudget(self.pairs, self.regressed + regressed)


def compute_holm_levels(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return the level for each p value of a build judged as a whole (Holm 1979), each never above .01.

    The i-th smallest of n is held against ``FAMILY_ALPHA / (n - i + 1)``; those behind the first that fails are given a
    level that they fail too, their own p value or less.
    """
    levels = [0.0] * len(p_values)
    open_ = True
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        level = ErrorBudget(len(p_values), rank).alpha
        open_ = open_ and p_values[index] < level
        levels[index] = level if open_ else min(level, p_values[index])
    return tuple(levels)
