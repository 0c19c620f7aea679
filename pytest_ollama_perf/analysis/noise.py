"""How much a machine's numbers differ with nothing changed, and what the gate can detect there.

The evidence is an A/A campaign: runs of one unchanged load, each on a freshly loaded model. Costs are logarithms
(``run_value``), so a standard deviation of 0.02 is 2 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev

from scipy.special import chdtrc, chdtri, stdtr

from pytest_ollama_perf.analysis.gate import BaselineFit, GateRule, fit_baseline, judge_runs
from pytest_ollama_perf.analysis.gate_parameters import GATE_PARAMETERS
from pytest_ollama_perf.analysis.run_value import MetricPolicy, to_value
from pytest_ollama_perf.core.verdict import Problem, ProblemCode
from pytest_ollama_perf.metrics import format_percent

CAMPAIGN_METRICS = ("tps", "ttft", "latency", "throughput", "load_time")
"""The numbers that a campaign looks at."""

MAX_USEFUL_CHANGE = 0.25
"""A gating metric in which three runs cannot even show a quarter more is worth no gate."""

_MIN_FOR_DRIFT = 5
_MIN_FOR_MODES = 6
_MIN_FOR_AUTOCORRELATION = 8
_SIGNIFICANCE = 0.01
_MIN_EFFECT = 0.02
_MODES_RATIO = 54.0
_AUTOCORRELATION_DEVIATIONS = 2.33


@dataclass(frozen=True)
class Noise:
    """One metric over a campaign. Shares throughout: 0.02 is 2 %.

    ``sd`` is the standard deviation between runs and ``low``..``high`` its 95 % interval (chi-squared). ``detectable``
    holds what the gate detects with 80 % power after one, two and three runs, with this campaign as its history;
    ``margin`` is the smallest one worth setting: whole percents, not below what three runs can show. ``drift`` is the
    change of the cost from the first run to the last and ``gap`` the distance of two modes, each 0 where none was seen;
    ``echo`` is the correlation of a run with the one before (lag 1), ``NaN`` under 8 runs.
    """

    policy: MetricPolicy
    costs: tuple[float, ...]
    sd: float
    low: float
    high: float
    detectable: tuple[float, ...]
    drift: float
    gap: float
    autocorrelation: float

    @property
    def typical(self) -> float:
        """What is usual, in the metric's own unit."""
        return to_value(self.policy, fmean(self.costs))

    @property
    def margin(self) -> float:
        """The recommended margin: the smallest whole per cent above the detectable change."""
        return math.ceil(round(self.detectable[-1] * 100, 6)) / 100

    @property
    def sd_factor(self) -> float:
        """The uncertainty of the deviation with this number of runs: ``high`` divided by ``sd``."""
        return _compute_sd_factor(len(self.costs) - 1)

    @property
    def is_margin_detectable(self) -> bool:
        """Whether a change as large as the default margin can be detected on this machine."""
        return self.margin <= self.policy.margin

    @property
    def is_unusable(self) -> bool:
        """Whether the noise is too large for useful regression checks."""
        return self.detectable[-1] > MAX_USEFUL_CHANGE

    @property
    def is_unusual(self) -> bool:
        """Whether runs differ more than is usual for the metric (chi-squared test at 1 %)."""
        squares = (len(self.costs) - 1) * (self.sd / self.policy.prior_sd) ** 2
        return float(chdtrc(len(self.costs) - 1, squares)) < _SIGNIFICANCE


def measure_noise(policy: MetricPolicy, costs: Iterable[float]) -> Noise | None:
    """Return what the run values ``costs`` of an A/A campaign, in their order, say; ``None`` for fewer than three.

    Runs without data and failed ones are no measurement of noise and left out.
    """
    known = tuple(cost for cost in costs if math.isfinite(cost))
    rule = GateRule.from_policy(policy)
    baseline = fit_baseline(known, rule)
    if baseline is None or len(known) < 3:
        return None
    sd, reach = stdev(known), len(known) - 1
    return Noise(
        policy,
        known,
        sd=sd,
        low=sd * math.sqrt(reach / float(chdtri(reach, 0.025))),
        high=sd * _compute_sd_factor(reach),
        detectable=tuple(
            _compute_detectable(known, baseline, rule, runs) for runs in range(1, GATE_PARAMETERS.max_runs + 1)
        ),
        drift=_compute_drift(known),
        gap=_compute_gap(known),
        autocorrelation=_compute_autocorrelation(known),
    )


def _compute_sd_factor(df: int) -> float:
    return math.sqrt(df / float(chdtri(df, 0.975)))


def _compute_detectable(history: Sequence[float], baseline: BaselineFit, rule: GateRule, runs: int) -> float:
    return judge_runs(history, [baseline.mean] * runs, rule).detectable


def _compute_drift(costs: Sequence[float]) -> float:
    """Return the rise of a straight line through ``costs`` from first to last, 0 where it may be chance (1 %)."""
    count = len(costs)
    if count < _MIN_FOR_DRIFT:
        return 0.0
    middle, mean = (count - 1) / 2, fmean(costs)
    spread = math.fsum((place - middle) ** 2 for place in range(count))
    slope = math.fsum((place - middle) * cost for place, cost in enumerate(costs)) / spread
    rest = math.fsum((cost - mean - slope * (place - middle)) ** 2 for place, cost in enumerate(costs))
    error = math.sqrt(rest / (count - 2) / spread)
    rise = slope * (count - 1)
    seen = abs(rise) >= _MIN_EFFECT and (not error or 2 * float(stdtr(count - 2, -abs(slope) / error)) < _SIGNIFICANCE)
    return rise if seen else 0.0


def _compute_gap(costs: Sequence[float]) -> float:
    """Return the distance of the two groups that ``costs`` fall into, 0 where they do not.

    The widest gap that leaves two runs on either side, against the deviation within the groups; the bound was simulated
    on normal values: at most one campaign in a hundred of 6 to 20 runs seems to have two modes.
    """
    ordered, count = sorted(costs), len(costs)
    if count < _MIN_FOR_MODES:
        return 0.0
    at = max(range(2, count - 1), key=lambda place: ordered[place] - ordered[place - 1])
    gap = ordered[at] - ordered[at - 1]
    squares = math.fsum((cost - fmean(group)) ** 2 for group in (ordered[:at], ordered[at:]) for cost in group)
    seen = gap >= _MIN_EFFECT and gap > _MODES_RATIO / count * math.sqrt(squares / (count - 2))
    return fmean(ordered[at:]) - fmean(ordered[:at]) if seen else 0.0


def _compute_autocorrelation(costs: Sequence[float]) -> float:
    if len(costs) < _MIN_FOR_AUTOCORRELATION:
        return math.nan
    mean = fmean(costs)
    squares = math.fsum((cost - mean) ** 2 for cost in costs)
    products = math.fsum((one - mean) * (next_ - mean) for one, next_ in pairwise(costs))
    return products / squares if squares else 0.0


def find_noise_problems(noises: Sequence[Noise]) -> tuple[Problem, ...]:
    """Return what is wrong or worth knowing about a campaign's noise; what makes the gate useless invalidates."""
    return tuple(problem for noise in noises for problem in _list_problems(noise))


def _list_problems(noise: Noise) -> list[Problem]:
    name, found = noise.policy.name, []
    if noise.policy.gating and noise.is_unusable:
        seen = (
            f"runs differ by {format_percent(round_two_digits(noise.sd))}, and three of them cannot show a change below"
        )
        text = f"{name} is too noisy to gate: {seen} {format_percent(round_two_digits(noise.detectable[-1]))}"
        found.append(Problem(code=ProblemCode.TOO_NOISY, text=text, invalidates=True))
    elif noise.policy.gating and noise.is_unusual:
        by, usual = format_percent(round_two_digits(noise.sd)), format_percent(noise.policy.prior_sd)
        text = f"{name} differs more from run to run than is usual: by {by}, usual is {usual}"
        found.append(Problem(code=ProblemCode.NOISY, text=text, invalidates=False))
    return [*found, *_find_patterns(noise)]


def _find_patterns(noise: Noise) -> list[Problem]:
    name, found = noise.policy.name, []
    if noise.gap:
        apart = format_percent(round_two_digits(math.expm1(noise.gap)))
        text = f"{name} has two modes {apart} apart: a load of the model lands in one or the other"
        found.append(Problem(code=ProblemCode.TWO_MODES, text=text, invalidates=False))
    if noise.drift:
        by = format_percent(round_two_digits(abs(math.expm1(noise.drift))))
        way = "slower" if noise.drift > 0 else "faster"
        text = f"{name} drifted: {by} {way} from the first session to the last"
        found.append(Problem(code=ProblemCode.DRIFT, text=text, invalidates=False))
    elif noise.autocorrelation + 1 / len(noise.costs) > _AUTOCORRELATION_DEVIATIONS / math.sqrt(len(noise.costs)):
        text = (
            f"{name} resembles the session before (correlation {noise.autocorrelation:.2f}): spread stored runs over "
            "days"
        )
        found.append(Problem(code=ProblemCode.AUTOCORRELATION, text=text, invalidates=False))
    return found


def round_two_digits(share: float) -> float:
    """Return ``share`` rounded to the precision that a few runs allow."""
    return float(f"{share:.2g}")
