"""The gate: is this build slower than its history, as far as a few runs can show?

The gate computes a moderated t prediction interval (Smyth 2004: the variance between runs is shrunk towards the usual
variance of the metric) around the stored runs that pass a Hampel filter. It compares up to three candidate runs with
it, each on a freshly loaded model. ``ok`` is possible after any run. ``regressed`` is possible only after the last run,
and only if every run agrees: a machine that is temporarily slow often stays slow for two runs, and deciding after two
would double the false alarms.

If stored runs differ more than usual, the excess is shared (between-build) variance: other processes, heat or the
placement of a process slow all runs of one build alike. For ``regressed``, three such runs count little more than one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

from scipy.special import stdtr, stdtrit

from pytest_ollama_perf.analysis.gate_parameters import GATE_PARAMETERS, GateParameters
from pytest_ollama_perf.analysis.run_value import MetricPolicy, to_relative_change
from pytest_ollama_perf.core.verdict import VerdictStatus

TWO_MODES_NOTE = "the stored runs form two groups; none was excluded"

_MAD_BIAS = (0.75, 0.79, 0.83, 0.85, 0.87, 0.88)
_MAD_BIAS_COUNTS = (5, 10, 20)
"""The counts of the first and the last value of ``_MAD_BIAS``, and that of ``_MAD_BIAS_LAST``."""
_MAD_BIAS_LAST = 0.94


@dataclass(frozen=True)
class GateRule:
    """How the gate judges one metric. ``margin`` is relative: 0.05 accepts a slowdown of 5 %.

    ``prior_sd`` is the expected standard deviation between runs. ``scatter`` is the standard error of a run's value
    from the variation of its requests (``RunEvidence.estimate_scatter``). If it exceeds ``prior_sd``, the same
    variation is expected between runs.

    Raises:
        ValueError: a negative margin or scatter, a ``prior_sd`` that is not above 0 (it would make the gate certain),
            or no runs at all.
    """

    margin: float
    prior_sd: float
    max_runs: int = GATE_PARAMETERS.max_runs
    scatter: float = 0.0
    parameters: GateParameters = GATE_PARAMETERS

    def __post_init__(self) -> None:
        if not (self.prior_sd > 0.0 and self.margin >= 0.0 and self.scatter >= 0.0 and self.max_runs >= 1):
            raise ValueError(
                f"margin={self.margin:g}, scatter={self.scatter:g}, prior_sd={self.prior_sd:g}, "
                f"max_runs={self.max_runs}: margin and scatter must be 0 or more, prior_sd above 0, max_runs at least 1"
            )

    @classmethod
    def from_policy(
        cls,
        policy: MetricPolicy,
        margin: float | None = None,
        max_runs: int = GATE_PARAMETERS.max_runs,
        scatter: float = 0.0,
    ) -> GateRule:
        """Return the rule of ``policy``; ``margin`` replaces that of the policy."""
        margin = policy.margin if margin is None else margin
        return cls(margin, policy.prior_sd, max_runs=max_runs, scatter=scatter)

    @property
    def expected_sd(self) -> float:
        """The standard deviation between runs that is expected without any history."""
        return max(self.prior_sd, self.scatter)

    @property
    def unshared_sd(self) -> float:
        """The standard deviation between runs up to which the runs of one build count as independent."""
        return self.parameters.unshared_deviations * self.prior_sd

    @property
    def has_shared_variance(self) -> bool:
        """Whether already the requests of one run vary so much that variance is shared."""
        return self.scatter > self.unshared_sd


@dataclass(frozen=True)
class BaselineFit:
    """Mean and standard deviation of the stored runs' costs, with ``df`` degrees of freedom.

    ``shared_sd`` is the part of ``sd`` that the runs of one build share (between-build variance). ``kept`` and
    ``dropped`` are the costs that passed the Hampel filter and those that did not.
    """

    mean: float
    sd: float
    shared_sd: float
    df: float
    kept: tuple[float, ...]
    dropped: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def compute_independent_se(self, runs: int, stored: int | None = None) -> float:
        """Return the standard error of the difference between ``runs`` candidate runs and ``stored`` ones (default: as
        many as there are), if the candidate runs are independent."""
        return self.sd * math.sqrt(1.0 / runs + 1.0 / (stored or len(self.kept)))

    def compute_shared_se(self, runs: int, stored: int | None = None) -> float:
        """Return the same standard error, if the candidate runs share the between-build variance: that part does not
        decrease with more of them."""
        shared = self.shared_sd**2
        return math.sqrt((self.sd**2 - shared) / runs + shared + self.sd**2 / (stored or len(self.kept)))


@dataclass(frozen=True)
class Judgement:
    """The result of the gate. Differences are of costs: above 0 is worse, and ``change`` is ``exp(d) - 1``.

    ``low`` to ``high`` is the 95 % interval of ``change``. ``p`` is the probability of a difference at least this large
    if nothing changed. ``detectable`` is the change that these runs detect with 80 % power. ``more_runs`` or
    ``more_stored`` is the total number of candidate runs, or if more of those would not help of stored runs, with which
    an unsure verdict would become conclusive if the difference stays the same. ``again`` requests one more candidate
    run now. ``suspect`` means that further runs could lead to ``regressed``. Without a baseline or without data the
    numbers are ``NaN``.
    """

    status: VerdictStatus
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
    """Candidate runs and their baseline: the difference and its standard error."""

    baseline: BaselineFit
    runs: tuple[float, ...]
    rule: GateRule
    alpha: float

    @property
    def parameters(self) -> GateParameters:
        return self.rule.parameters

    @property
    def d(self) -> float:
        return math.fsum(self.runs) / len(self.runs) - self.baseline.mean if max(self.runs) < math.inf else math.inf

    @property
    def limit(self) -> float:
        return math.log1p(self.rule.margin)

    @property
    def max_shared_difference(self) -> float:
        """The difference that shared variance cannot explain; infinite if the requests of one run show it already."""
        if self.rule.has_shared_variance:
            return math.inf
        return max(
            self.parameters.shared_margins * self.limit, self.parameters.shared_deviations * self.baseline.shared_sd
        )

    def compute_se(self, runs: int, stored: int | None = None) -> float:
        """Return the standard error for this difference: the shared one, unless the difference is too large for it."""
        if abs(self.d) < self.max_shared_difference:
            return self.baseline.compute_shared_se(runs, stored)
        return self.baseline.compute_independent_se(runs, stored)

    @property
    def se(self) -> float:
        return self.compute_se(len(self.runs))

    @property
    def ok(self) -> bool:
        """Whether a slowdown of the margin is ruled out. Shared variance is no reason to request more runs."""
        return self.can_rule_out(len(self.runs), len(self.baseline.kept), self.baseline.df)

    def can_rule_out(self, runs: int, stored: int, df: float) -> bool:
        """Whether this difference, found in ``runs`` candidate runs, would rule out a slowdown of the margin."""
        quantile = _compute_t_quantile(1.0 - self.parameters.beta, df)
        return self.d + quantile * self.baseline.compute_independent_se(runs, stored) < self.limit

    def compute_p(self, difference: float, se: float) -> float:
        return float(stdtr(self.baseline.df, -difference / se))

    def is_notable(self, difference: float) -> bool:
        return difference >= self.limit / 2

    def has_moved(self, sign: int) -> bool:
        """Whether the cost increased (``sign`` +1) or decreased (-1) by at least half the margin in every run."""
        difference = sign * self.d
        if not (self.is_notable(difference) and self.compute_p(difference, self.se) < self.alpha):
            return False
        se, most = self.baseline.compute_independent_se(1), self.parameters.single_alpha
        return all(self.compute_p(sign * (run - self.baseline.mean), se) < most for run in self.runs)

    def has_enough_runs(self, runs: int) -> bool:
        """Whether ``runs`` are enough for ``regressed``: all that are allowed, or two with a gross difference."""
        return runs >= self.rule.max_runs or (runs >= 2 and self.d >= self.parameters.gross_margins * self.limit)


def judge_runs(
    history: Sequence[float], candidates: Sequence[float], rule: GateRule, alpha: float = math.inf
) -> Judgement:
    """Judge the costs ``candidates`` against those of ``history``, oldest first.

    ``alpha`` is the level that the other tests of the build leave (``ErrorBudget``); it never exceeds
    ``GateParameters.alpha``. An infinite cost is a run that failed: as a candidate it counts as slower than anything,
    as a stored run it is excluded, like a missing one (``NaN``). A missing candidate is never ``ok``.
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
    return _build_judgement(_Comparison(baseline, runs, rule, min(alpha, rule.parameters.alpha)))


def fit_baseline(history: Iterable[float], rule: GateRule) -> BaselineFit | None:
    """Return the fit of the newest usable runs of ``history``; ``None`` without any."""
    stored = [run for run in history if math.isfinite(run)][-rule.parameters.window :]
    if not stored:
        return None
    prior_df = rule.parameters.prior_df
    kept, dropped, notes = _split_outliers(stored, rule.parameters)
    mean = math.fsum(kept) / len(kept)
    squares = math.fsum((run - mean) ** 2 for run in kept)
    df = prior_df + len(kept) - 1
    variance = (prior_df * rule.expected_sd**2 + squares) / df
    shared_sd = math.sqrt(max(0.0, variance - rule.unshared_sd**2))
    return BaselineFit(mean, math.sqrt(variance), shared_sd, df, kept, dropped, (*notes, *_note_few_runs(len(kept))))


def _split_outliers(
    stored: Sequence[float], parameters: GateParameters
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
    """Return the kept costs, the dropped ones and notes (Hampel 1974, corrected for the small-sample bias)."""
    everything = tuple(stored)
    if len(everything) < parameters.filter_min_runs:
        return everything, (), ()
    middle = median(everything)
    deviation = median(abs(run - middle) for run in everything)
    scale = max(1.4826 * deviation / get_mad_bias(len(everything)), parameters.filter_min_scale)
    reach = parameters.filter_deviations * scale
    dropped = tuple(run for run in everything if abs(run - middle) > reach)
    if len(dropped) > parameters.filter_max_dropped * len(everything):
        return everything, (), (TWO_MODES_NOTE,)
    kept = tuple(run for run in everything if abs(run - middle) <= reach)
    return kept, dropped, (f"{len(dropped)} of {len(everything)} stored runs excluded as outliers",) if dropped else ()


def get_mad_bias(count: int) -> float:
    """Return the median of 1.4826 MAD / standard deviation for ``count`` normal values, 5 to 20 (simulated)."""
    first, last, most = _MAD_BIAS_COUNTS
    if count <= last:
        return _MAD_BIAS[max(count, first) - first]
    share = (1 / last - 1 / count) / (1 / last - 1 / most)
    return _MAD_BIAS[-1] + (_MAD_BIAS_LAST - _MAD_BIAS[-1]) * share


def _note_few_runs(count: int) -> tuple[str, ...]:
    if count == 1:
        return ("with one stored run only changes of 20 % and more are detectable",)
    return ("with two stored runs only changes of 10 % and more are detectable",) if count == 2 else ()


def _decide_status(evidence: _Comparison) -> VerdictStatus:
    if evidence.has_moved(-1):
        return VerdictStatus.FASTER
    if evidence.ok:
        return VerdictStatus.OK
    if evidence.has_enough_runs(len(evidence.runs)) and evidence.has_moved(+1):
        return VerdictStatus.REGRESSED
    return VerdictStatus.UNSURE


def _build_judgement(evidence: _Comparison) -> Judgement:
    status, runs = _decide_status(evidence), len(evidence.runs)
    d, se, df = evidence.d, evidence.se, evidence.baseline.df
    reach = _compute_t_quantile(0.975, df) * se
    more_runs, more_stored = _count_runs_to_settle(evidence) if status is VerdictStatus.UNSURE else (None, None)
    return Judgement(
        status,
        runs,
        d=d,
        se=se,
        df=df,
        p=evidence.compute_p(d, se),
        change=to_relative_change(d),
        low=to_relative_change(d - reach),
        high=to_relative_change(d + reach),
        detectable=to_relative_change(_compute_detectable(evidence)),
        baseline=evidence.baseline,
        more_runs=more_runs,
        more_stored=more_stored,
        again=status is VerdictStatus.UNSURE and runs < evidence.rule.max_runs,
        suspect=evidence.is_notable(d),
        notes=evidence.baseline.notes,
    )


def _compute_detectable(evidence: _Comparison) -> float:
    """Return the difference that these runs detect with 80 % power."""
    baseline, runs, parameters = evidence.baseline, len(evidence.runs), evidence.parameters
    deviations = _compute_t_quantile(1.0 - parameters.alpha, baseline.df)
    deviations += _compute_t_quantile(parameters.power, baseline.df)
    independent = max(evidence.max_shared_difference, deviations * baseline.compute_independent_se(runs))
    return min(deviations * baseline.compute_shared_se(runs), independent)


def _count_runs_to_settle(evidence: _Comparison) -> tuple[int | None, int | None]:
    """Return how many candidate runs, or otherwise stored runs, would decide if the difference stayed the same."""
    baseline, parameters = evidence.baseline, evidence.parameters
    stored = len(baseline.kept)
    for runs in range(len(evidence.runs) + 1, parameters.max_named_runs + 1):
        if _is_decisive(evidence, runs, stored, baseline.df):
            return runs, None
    for more in range(stored + 1, parameters.window + 1):
        if _is_decisive(evidence, evidence.rule.max_runs, more, baseline.df + more - stored):
            return None, more
    return None, None


def _is_decisive(evidence: _Comparison, runs: int, stored: int, df: float) -> bool:
    if evidence.can_rule_out(runs, stored, df):
        return True
    p = float(stdtr(df, -evidence.d / evidence.compute_se(runs, stored)))
    return evidence.is_notable(evidence.d) and p < evidence.alpha and evidence.has_enough_runs(runs)


@lru_cache(maxsize=1024)
def _compute_t_quantile(probability: float, df: float) -> float:
    return float(stdtrit(df, probability))


@dataclass(frozen=True)
class ErrorBudget:
    """The gating (test, metric) pairs of a build that judges its tests one after the other.

    Every pair judged ``regressed`` leaves a higher level for the others. The pairs found this way are always among
    those that Holm 1979 would find with all p values known (the i-th finding had p at most
    ``family_alpha / (pairs - i + 1)``), so the level of the build holds, although each test gets its verdict before the
    next one starts.
    """

    pairs: int
    regressed: int = 0
    parameters: GateParameters = GATE_PARAMETERS

    @property
    def alpha(self) -> float:
        """The level for the next pair, never above ``GateParameters.alpha``."""
        remaining = max(1, self.pairs - self.regressed)
        return min(self.parameters.alpha, self.parameters.family_alpha / remaining)

    def spend(self, regressed: int) -> ErrorBudget:
        """Return the budget after a test of which ``regressed`` pairs regressed."""
        return ErrorBudget(self.pairs, self.regressed + regressed, self.parameters)


def compute_holm_levels(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return the level for each p value of a build that is judged as a whole (Holm 1979), each never above .01.

    The i-th smallest of n p values is compared with ``family_alpha / (n - i + 1)``. All after the first that does not
    pass get a level that they do not pass either: at most their own p value.
    """
    levels = [0.0] * len(p_values)
    open_ = True
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        level = ErrorBudget(len(p_values), rank).alpha
        open_ = open_ and p_values[index] < level
        levels[index] = level if open_ else min(level, p_values[index])
    return tuple(levels)
