"""Maximum concurrency: one probe judged with its uncertainty, and the search over probes. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from scipy import special

from pytest_ollama_perf.analysis import BoundCheck, Finding, thresholds
from pytest_ollama_perf.analysis.limits import Limit
from pytest_ollama_perf.analysis.thresholds import judge_limit
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.verdict import VerdictRow, VerdictStatus
from pytest_ollama_perf.metrics import METRICS, PERCENTILES, meets_bound
from pytest_ollama_perf.metrics.per_request import list_request_values
from pytest_ollama_perf.metrics.summary import Summary, summarise


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """One concurrency that was tried, with all its runs together.

    ``sustained`` is the decision. ``conclusive`` is false if there were too few requests for that: then the measured
    value alone decided. ``metric``, ``stat``, ``value``, ``op``, ``bound`` (in the metric's unit) and ``reason`` are
    those of the limit that decided: the first broken one, or the one that is closest to its bound.
    """

    concurrency: int
    sustained: bool
    conclusive: bool
    runs: int
    requests: int
    ok: int
    metric: str
    stat: str
    value: float | None
    op: str
    bound: float
    reason: str
    tps: float | None = None
    throughput: float | None = None
    ttft_p95_s: float | None = None
    latency_p95_s: float | None = None

    @property
    def success_rate(self) -> float:
        """Successful requests over all, 0..1."""
        return self.ok / self.requests if self.requests else 0.0


class MaxConcurrency(Finding, frozen=True, kw_only=True, tag="max_concurrency"):
    """The highest ``concurrency`` whose requests met every limit of ``criteria``; 0 if not even one client did.

    ``breach`` is the probe of the lowest concurrency that broke a limit, ``None`` if ``maximum`` met them all.
    ``probes`` are in the order in which they ran.
    """

    concurrency: int
    maximum: int
    criteria: tuple[str, ...]
    probes: tuple[Probe, ...]
    breach: Probe | None = None
    checks: tuple[BoundCheck, ...] = ()

    @property
    def conclusive(self) -> bool:
        """Whether the results on both sides of the border are conclusive."""
        border = [probe for probe in self.probes if probe.concurrency == self.concurrency]
        return all(probe.conclusive for probe in (*border, *([self.breach] if self.breach else ())))


class LimitCheck(msgspec.Struct, frozen=True):
    """One limit against one probe: whether its number meets it, and whether that is conclusive."""

    row: VerdictRow
    met: bool
    conclusive: bool


def search_concurrency(start: int, maximum: int, is_sustained: Callable[[int], bool]) -> int:
    """Return the highest concurrency up to ``maximum`` that ``is_sustained``, assumed to be monotone; 0 if none is.

    The concurrency is doubled from ``start`` until one is not sustained, then bisected between the highest sustained
    and the lowest that is not. Each is probed once, about 2 log2 of the result in all.
    """
    sustained, broken, step = 0, maximum + 1, min(start, maximum)
    while sustained < step < broken:
        if is_sustained(step):
            sustained, step = step, min(2 * step, maximum)
        else:
            broken = step
    while broken - sustained > 1 and broken <= maximum:
        middle = (sustained + broken) // 2
        sustained, broken = (middle, broken) if is_sustained(middle) else (sustained, middle)
    return sustained


def pool_runs(runs: Sequence[Run]) -> tuple[Run, Summary]:
    """Return the runs of one probe as one: their samples together, for metrics that each request has."""
    samples = tuple(sample for run in runs for sample in run.samples)
    whole = msgspec.structs.replace(runs[-1], samples=samples)
    return whole, summarise(whole)


def judge_probe(limits: Sequence[Limit], run: Run, summary: Summary) -> tuple[LimitCheck, ...]:
    """Judge a probe's run against every limit, each with whether it is conclusive."""
    return tuple(_check_limit(limit, run, summary) for limit in limits)


def is_settled(found: Sequence[LimitCheck]) -> bool:
    """Whether a probe needs no further run: a limit is broken beyond chance, or all are met beyond chance."""
    return any(not each.met and each.conclusive for each in found) or all(
        each.met and each.conclusive for each in found
    )


def build_probe(
    concurrency: int, runs: Sequence[Run], whole: tuple[Run, Summary], found: Sequence[LimitCheck]
) -> Probe:
    """Return the decision on one concurrency and what decided it."""
    summary = whole[1]
    broken = sorted((each for each in found if not each.met), key=_rank_reason)
    decides = broken[0] if broken else min(found, key=_compute_headroom)
    return Probe(
        concurrency=concurrency,
        sustained=not broken,
        conclusive=decides.conclusive if broken else all(each.conclusive for each in found),
        runs=len(runs),
        requests=summary.requests,
        ok=summary.ok,
        metric=decides.row.metric,
        stat=decides.row.stat,
        value=None if math.isnan(decides.row.value) else decides.row.value,
        op=decides.row.op,
        bound=decides.row.bound or 0.0,
        reason=decides.row.reason,
        tps=_get_stat(summary, "tps"),
        throughput=_get_stat(summarise(runs[-1]), "throughput"),
        ttft_p95_s=_get_stat(summary, "ttft", "p95"),
        latency_p95_s=_get_stat(summary, "latency", "p95"),
    )


def _rank_reason(each: LimitCheck) -> tuple[bool, bool]:
    """Conclusive limits come first, and failed requests before the percentiles that they changed."""
    return not each.conclusive, each.row.metric != "error_rate"


def _compute_headroom(each: LimitCheck) -> float:
    """How far a met number is from its bound, as a ratio; conclusive ones rank behind the others."""
    bound, value = each.row.bound or 0.0, each.row.value
    near = 1.0 if not bound or not value else (value / bound if each.row.op == ">=" else bound / value)
    return near + (0.0 if not each.conclusive else 1e6 if each.row.metric == "error_rate" else 1e3)


def _check_limit(limit: Limit, run: Run, summary: Summary) -> LimitCheck:
    row = judge_limit(limit, run, summary)
    met = row.status is not VerdictStatus.BROKEN
    if math.isnan(row.value) or limit.stat in {"min", "max"}:
        return LimitCheck(row, met, conclusive=True)
    if limit.metric == "error_rate":
        failed, n = summary.requests - summary.ok, summary.requests
        return LimitCheck(row, met, _is_count_sure(failed, n, limit.bound, met=met))
    if limit.stat in PERCENTILES:
        sure = _is_percentile_sure(limit, run, met=met)
        return LimitCheck(_confirm(row) if sure else row, met, sure)
    return LimitCheck(row, met, _is_outside_interval(row, met=met))


def _confirm(row: VerdictRow) -> VerdictRow:
    """Return the row of a limit that too few requests confirm by counting, but that their distance to it confirms."""
    if row.status is not VerdictStatus.UNSURE:
        return row
    reason = f"{row.reason.partition(';')[0]}; conclusive, because all requests are far from the limit"
    return msgspec.structs.replace(row, status=VerdictStatus.OK, reason=reason)


def _is_count_sure(wrong: int, n: int, share: float, *, met: bool) -> bool:
    if not met:
        return share == 0 or thresholds.is_share_exceeded(wrong, n, share)
    return wrong == 0 or share == 1 or thresholds.is_share_met(wrong, n, share)


def _is_percentile_sure(limit: Limit, run: Run, *, met: bool) -> bool:
    values = list_request_values(limit.metric, run.measured)
    wrong = sum(not meets_bound(limit.op, value, limit.bound) for value in values)
    quantile = PERCENTILES[limit.stat]
    share = quantile if METRICS[limit.metric].is_higher_better else 1 - quantile
    if not met:
        return thresholds.is_share_exceeded(wrong, len(values), share)
    return thresholds.is_share_met(wrong, len(values), share) or (
        wrong == 0 and _is_far_from_bound(limit, values, quantile)
    )


def _is_far_from_bound(limit: Limit, values: Sequence[float], quantile: float) -> bool:
    """Whether the bound lies beyond the one-sided 95 % tolerance bound of the quantile.

    For logarithms that are about normal: mean + k s with k from the non-central t distribution (Hahn & Meeker 1991,
    section 4.4). Counting alone would need 59 requests where 10 that are far from the bound suffice.
    """
    if len(values) < _MIN_FOR_TOLERANCE or min(values) <= 0 or math.isinf(max(values)):
        return False
    logs = np.log(np.array(values))
    upper = limit.op == "<="
    z = float(special.ndtri(quantile if upper else 1 - quantile))
    n = len(values)
    k = float(special.nctdtrit(n - 1, abs(z) * math.sqrt(n), 1 - thresholds.COUNTING_ALPHA)) / math.sqrt(n)
    reach = k * float(logs.std(ddof=1))
    middle, bound = float(logs.mean()), math.log(limit.bound) if limit.bound > 0 else -math.inf
    return middle + reach <= bound if upper else middle - reach >= bound


_MIN_FOR_TOLERANCE = 8


def _is_outside_interval(row: VerdictRow, *, met: bool) -> bool:
    """Whether the whole 95 % interval lies on the side of the number."""
    if math.isinf(row.value):
        return True
    if row.low is None or row.high is None or row.bound is None:
        return False
    inside = row.low <= row.bound <= row.high
    return not inside or (met and row.low == row.high)


def _get_stat(summary: Summary, metric: str, stat: str = "") -> float | None:
    found = summary.metrics.get(metric)
    return found.get(stat) if found else None
