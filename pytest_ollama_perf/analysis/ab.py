"""Two live servers or models, measured in turn: blocks of A B B A, both sides reloaded for every run.

A disturbance of the machine affects both sides of a block alike, so the difference within a block is the unit of
evidence. A t test with moderated variance (Smyth 2004) looks at it up to four times, each at its share of ``AB_ALPHA``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from scipy.special import stdtr, stdtrit

from pytest_ollama_perf.analysis import Finding
from pytest_ollama_perf.analysis.epochs import compare_counter_meaning
from pytest_ollama_perf.analysis.gate_parameters import GATE_PARAMETERS
from pytest_ollama_perf.analysis.regression import compare_phases, compute_phase_medians, explain_phases
from pytest_ollama_perf.analysis.run_value import (
    GATING_METRICS,
    POLICIES,
    MetricPolicy,
    build_evidence,
    compute_run_value,
    to_change,
    to_metric_change,
    to_relative_change,
    to_value,
)
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.verdict import VerdictRow, VerdictStatus, get_worst_status
from pytest_ollama_perf.metrics import format_count, format_distinct, format_label, format_percent

BLOCK_ORDER = "ABBA"
REQUESTS_PER_SIDE = 8
"""Requests of each side in a block: four in each of its two turns."""

LOOKS = (4, 6, 8, 12)
"""After how many blocks to look."""

AB_ALPHA = 0.02
"""The chance of finding a difference between equal sides: .01 each way, as at the gate."""

DEFAULT_DIFFERENCE = 0.03
"""The smallest difference that matters by default."""

_BETA = 0.02
_WITHIN_BLOCK_SHARE = 0.5
"""How much of the spread between runs the difference within a block keeps: the machine's state is common to both."""

_MIN_FAILED_BLOCKS = 2


@dataclass(frozen=True)
class BlockComparison:
    """The comparison of B with A over all blocks. ``d`` is a difference of costs: above 0, B is worse.

    ``change`` is ``exp(d) - 1``, ``p`` the two-sided chance of a difference this large between equal sides.
    ``status`` is ``regressed`` where B is slower, ``faster``, ``ok`` where they differ by less than what matters, or
    ``unsure``. ``low``..``high`` is the 95 % interval of ``change``. ``more`` says how many blocks to add before the
    next look; 0 when there is nothing left to look for.
    """

    status: VerdictStatus
    blocks: int
    more: int = 0
    d: float = math.nan
    se: float = math.nan
    p: float = math.nan
    change: float = math.nan
    low: float = math.nan
    high: float = math.nan


def compare_costs(
    a: Sequence[float],
    b: Sequence[float],
    prior_sd: float,
    difference: float = DEFAULT_DIFFERENCE,
    alpha: float = AB_ALPHA,
) -> BlockComparison:
    """Compare the block costs (``run_value`` of a side's requests) of two sides, block by block.

    ``prior_sd`` is that of the metric's policy; ``difference`` the smallest share that matters.
    Between two looks the answer is ``unsure``. A block in which one side failed (infinite cost) says nothing of speed:
    two such blocks of the same side decide, otherwise they leave the answer unsure.
    """
    differences = [subtract_costs(right, left) for left, right in zip(a, b, strict=True)]
    blocks = len(differences)
    more = next((look - blocks for look in LOOKS if look > blocks), 0)
    if blocks not in LOOKS:
        return BlockComparison(VerdictStatus.UNSURE, blocks, more)
    if not all(map(math.isfinite, differences)):
        return _judge_failed_blocks(differences, more)
    return _judge_blocks(differences, more, _WITHIN_BLOCK_SHARE * prior_sd, math.log1p(difference), alpha / len(LOOKS))


def subtract_costs(cost: float, other: float) -> float:
    """Return ``cost - other``; NaN if both failed (infinite) or one is missing, since failures have no ratio."""
    return math.nan if math.isinf(cost) and math.isinf(other) else cost - other


def _judge_failed_blocks(differences: Sequence[float], more: int) -> BlockComparison:
    """Judge blocks of which some failed: those in which both sides failed say nothing about the difference."""
    worse, better = differences.count(math.inf), differences.count(-math.inf)
    if worse >= _MIN_FAILED_BLOCKS and not better:
        return BlockComparison(VerdictStatus.REGRESSED, len(differences), d=math.inf, change=math.inf)
    if better >= _MIN_FAILED_BLOCKS and not worse:
        return BlockComparison(VerdictStatus.FASTER, len(differences), d=-math.inf, change=-1.0)
    return BlockComparison(VerdictStatus.UNSURE, len(differences), more)


def _judge_blocks(
    differences: Sequence[float], more: int, prior_sd: float, limit: float, alpha: float
) -> BlockComparison:
    blocks = len(differences)
    prior_df = GATE_PARAMETERS.prior_df
    d, df = math.fsum(differences) / blocks, prior_df + blocks - 1
    squares = math.fsum((one - d) ** 2 for one in differences)
    se = math.sqrt((prior_df * prior_sd**2 + squares) / df / blocks)
    p = 2.0 * float(stdtr(df, -abs(d) / se))
    reach = float(stdtrit(df, 0.975)) * se
    if p < alpha:
        word = VerdictStatus.REGRESSED if d > 0 else VerdictStatus.FASTER
    else:
        word = VerdictStatus.OK if abs(d) + float(stdtrit(df, 1.0 - _BETA)) * se < limit else VerdictStatus.UNSURE
    more = more if word is VerdictStatus.UNSURE else 0
    change, low, high = (to_relative_change(end) for end in (d, d - reach, d + reach))
    return BlockComparison(word, blocks, more, d, se, p, change, low, high)


Blocks = Sequence[Sequence[Run]]
"""One side: for each block the runs of its turns."""

SHOWN_METRICS = (*GATING_METRICS, "latency", "throughput")
"""Metrics that are shown, but do not decide."""

FALLBACK_METRIC = "latency"
"""What decides for embeddings, which generate no tokens."""

SERVER_TIMED = frozenset({"tps", "prefill_tps", "tpot", "queue", "load_time"})
"""Metrics made of the server's own counters, whose meaning differs between versions of Ollama."""

_MARGIN_RATIO = DEFAULT_DIFFERENCE / POLICIES["tps"].margin


class ABComparison(Finding, frozen=True, kw_only=True, tag="ab_comparison"):
    """Two sides measured in turn. ``baseline`` and ``candidate`` describe how they differ.

    ``requests`` is how many of each side a complete block holds, ``more`` how many blocks the next look asks for (0:
    decided, or the last look is over). ``rows`` has one number each: ``baseline``, the candidate's ``value``, the
    relative ``change`` of the metric and its 95 % interval, which an unfinished comparison lacks.
    """

    status: VerdictStatus
    reason: str
    baseline: str
    candidate: str
    blocks: int
    requests: int
    more: int
    rows: tuple[VerdictRow, ...]


def get_default_margin(one: MetricPolicy) -> float:
    """Return the change that matters for a metric by default: 3 % of tokens/s, and the same fraction of the margin
    against history for every other metric, because both sides are measured within minutes."""
    return one.margin * _MARGIN_RATIO


def compare_sides(
    baseline: Blocks,
    candidate: Blocks,
    margins: Mapping[str, float],
    *,
    requests: int,
    names: tuple[str, str] = ("baseline", "candidate"),
) -> ABComparison:
    """Compare two sides block by block; the numbers named in ``margins`` decide, or tokens/s and TTFT.

    Each deciding metric gets its share of ``AB_ALPHA`` (Bonferroni). A slower candidate is ``regressed`` only if the
    interval reaches the margin; a clear slowdown below the margin is accepted.
    """
    judged = [
        _build_difference(one, baseline, candidate, margins) for one in _select_deciding(margins, baseline, candidate)
    ]
    level = AB_ALPHA / max(1, len(judged))
    rows = [difference.build_row(level, gating=True) for difference in judged]
    beside = [POLICIES[name] for name in SHOWN_METRICS if name not in {difference.name for difference in judged}]
    shown = [_build_difference(one, baseline, candidate, {}) for one in beside]
    word = get_worst_status(tuple(row.status for row in rows)) if rows else VerdictStatus.UNSURE
    undecided = [
        difference.compare(level).more for difference, row in zip(judged, rows, strict=True) if _is_unsure(row)
    ]
    return ABComparison(
        status=word,
        reason=_build_reason(word, rows, baseline, candidate),
        baseline=names[0],
        candidate=names[1],
        blocks=len(baseline),
        requests=requests,
        more=0 if word is VerdictStatus.REGRESSED else max(undecided, default=0),
        rows=(*rows, *(difference.build_row(AB_ALPHA, gating=False) for difference in shown if difference.known)),
    )


def _is_unsure(row: VerdictRow) -> bool:
    return row.status is VerdictStatus.UNSURE


class _MetricDifference(msgspec.Struct, frozen=True):
    """One number of both sides: its cost in every block. ``unlike`` says why it means something else on each side."""

    policy: MetricPolicy
    a: tuple[float, ...]
    b: tuple[float, ...]
    margin: float
    unlike: str

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def known(self) -> bool:
        """Whether both sides have the number in every block."""
        return bool(self.a) and not any(map(math.isnan, (*self.a, *self.b)))

    def compare(self, alpha: float) -> BlockComparison:
        return compare_costs(self.a, self.b, self.policy.prior_sd, self.margin, alpha)

    def build_row(self, alpha: float, *, gating: bool) -> VerdictRow:
        found = self.compare(alpha)
        low, high = self._compute_interval(found)
        before, now = _compute_mean(self.a), _compute_mean(self.b)
        return VerdictRow(
            metric=self.policy.metric.name,
            stat=self.policy.stat,
            status=self._decide_status(found),
            value=to_value(self.policy, now),
            reason=self.unlike,
            baseline=to_value(self.policy, before),
            change=self._compute_change(now, before),
            low=low,
            high=high,
            margin=self.margin,
            gating=gating,
        )

    def _compute_change(self, now: float, before: float) -> float | None:
        difference = subtract_costs(now, before)
        return None if math.isnan(difference) else to_change(self.policy, difference)

    def _decide_status(self, found: BlockComparison) -> VerdictStatus:
        if self.unlike:
            return VerdictStatus.INCOMPARABLE
        return (
            VerdictStatus.OK if found.status is VerdictStatus.REGRESSED and found.high < self.margin else found.status
        )

    def _compute_interval(self, found: BlockComparison) -> tuple[float | None, float | None]:
        if math.isnan(found.low):
            return None, None
        ends = sorted(to_metric_change(self.policy, end) for end in (found.low, found.high))
        return ends[0], ends[1]


def _compute_mean(costs: Sequence[float]) -> float:
    return math.fsum(costs) / len(costs) if costs else math.nan


def _build_difference(
    one: MetricPolicy, baseline: Blocks, candidate: Blocks, margins: Mapping[str, float]
) -> _MetricDifference:
    margin = margins.get(one.name, get_default_margin(one))
    return _MetricDifference(
        one,
        _compute_block_costs(one, baseline),
        _compute_block_costs(one, candidate),
        margin,
        _explain_incomparable(one, baseline, candidate),
    )


def _compute_block_costs(one: MetricPolicy, blocks: Blocks) -> tuple[float, ...]:
    """Return the cost of each block: that of all its requests together, whichever turn they were sent in."""
    name = one.metric.name
    return tuple(
        compute_run_value(one, [number for run in turns for number in build_evidence(run).values(name)])
        for turns in blocks
    )


def _select_deciding(margins: Mapping[str, float], baseline: Blocks, candidate: Blocks) -> list[MetricPolicy]:
    if margins:
        return [POLICIES[name] for name in margins]
    usual = [POLICIES[name] for name in GATING_METRICS]
    known = [one for one in usual if _build_difference(one, baseline, candidate, {}).known]
    return known or [POLICIES[FALLBACK_METRIC]]


def _explain_incomparable(one: MetricPolicy, baseline: Blocks, candidate: Blocks) -> str:
    if one.metric.name not in SERVER_TIMED or not baseline or not candidate:
        return ""
    return ", ".join(map(str, compare_counter_meaning(baseline[0][0].fingerprint, candidate[0][0].fingerprint)))


def _build_reason(word: VerdictStatus, rows: Sequence[VerdictRow], baseline: Blocks, candidate: Blocks) -> str:
    telling = [row for row in rows if row.status is word]
    if not telling:
        return "no complete block was measured"
    if word is VerdictStatus.OK:
        return f"no change beyond the margin: {', '.join(map(_format_brief, telling))}"
    if word is VerdictStatus.REGRESSED:
        moved = _explain_moved_phases(baseline, candidate)
        return f"{_format_full(telling[0])}: {moved}" if moved else _format_full(telling[0])
    return _REASONS.get(word, _format_all)(telling, len(baseline))


def _explain_moved_phases(baseline: Blocks, candidate: Blocks) -> str:
    sides = [
        [compute_phase_medians(run.measured) for turns in blocks for run in turns] for blocks in (baseline, candidate)
    ]
    return explain_phases(compare_phases(*sides))


def _format_unsure(telling: Sequence[VerdictRow], blocks: int) -> str:
    row = telling[0]
    if row.low is None or row.high is None:
        return f"{_format_brief(row)}: inconclusive after {format_count(blocks, 'block')}"
    interval = f"95 % between {format_percent(row.low, signed=True)} and {format_percent(row.high, signed=True)}"
    return f"{_format_brief(row)}: inconclusive after {format_count(blocks, 'block')}, {interval}"


def _format_incomparable(telling: Sequence[VerdictRow], blocks: int) -> str:
    return f"{format_label(telling[0].metric, telling[0].stat)} cannot be compared: {telling[0].reason}"


def _format_all(telling: Sequence[VerdictRow], blocks: int) -> str:
    return ", ".join(map(_format_full, telling))


def _format_brief(row: VerdictRow) -> str:
    return f"{format_label(row.metric, row.stat)} {_format_change(row)} (margin {format_percent(row.margin or 0.0)})"


def _format_full(row: VerdictRow) -> str:
    before, after = format_distinct(row.metric, row.baseline or 0.0, row.value)
    return (
        f"{format_label(row.metric, row.stat)} {_format_change(row)} ({before} -> {after}), margin "
        f"{format_percent(row.margin or 0.0)}"
    )


def _format_change(row: VerdictRow) -> str:
    return "-" if row.change is None else format_percent(row.change, signed=True)


_REASONS: Mapping[VerdictStatus, Callable[[Sequence[VerdictRow], int], str]] = {
    VerdictStatus.UNSURE: _format_unsure,
    VerdictStatus.INCOMPARABLE: _format_incomparable,
}
