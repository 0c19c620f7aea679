"""One run against its limits. A limit without conclusive data is decided by the point estimate and marked unsure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from scipy.special import bdtr, bdtrc

from pytest_ollama_perf.analysis.limits import Limit, find_hints
from pytest_ollama_perf.analysis.validity import find_problems
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.verdict import Problem, Verdict, VerdictRow, VerdictStatus, get_worst_status
from pytest_ollama_perf.metrics import (
    METRICS,
    PERCENTILES,
    TELEMETRY_METRICS,
    Shape,
    format_count,
    format_distinct,
    format_label,
    format_percent,
    format_value,
    meets_bound,
)
from pytest_ollama_perf.metrics.per_request import list_request_values
from pytest_ollama_perf.metrics.summary import MetricSummary, Summary

COUNTING_ALPHA = 0.05


def is_share_met(violations: int, n: int, share: float) -> bool:
    """Whether ``P[Bin(n, share) <= violations] < 0.05``."""
    return n > 0 and bool(bdtr(violations, n, share) < COUNTING_ALPHA)


def is_share_exceeded(violations: int, n: int, share: float) -> bool:
    """Whether ``P[Bin(n, share) >= violations] < 0.05``."""
    return violations > 0 and bool(bdtrc(violations - 1, n, share) < COUNTING_ALPHA)


def count_requests_to_settle(violations: int, n: int, share: float) -> int:
    """Return how many more requests without a violation would show that the limit is met; 0 when it is met.

    ``share`` is above 0: without any tolerated violation nothing can be shown by counting.
    """
    low, high = 0, 1
    while not is_share_met(violations, n + high, share):
        low, high = high, high * 2
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_share_met(violations, n + middle, share) else (middle + 1, high)
    return low


def judge_limit(limit: Limit, run: Run, summary: Summary) -> VerdictRow:
    """Return the row of ``limit``: ``ok``, ``broken``, or ``unsure`` where too few requests speak for it.

    Percentiles over requests are judged by counting violations, shares by counting failures, every other number by its
    95 % interval; an unsure number on the wrong side of its bound is ``broken``. What was not measured is ``broken``.
    """
    found = summary.metrics.get(limit.metric)
    value = found.get(limit.stat) if found else None
    if found is None or value is None:
        why = _explain_absence(limit, run, summary)
        return _build_row(limit, math.nan, VerdictStatus.BROKEN, f"{_format_limit_name(limit)} was not measured: {why}")
    word, because = _judge_value(limit, found, value, run)
    shown, bound = format_distinct(limit.metric, value, limit.bound)
    reason = f"{_format_limit_name(limit)} {shown}, limit {limit.op} {bound}: {because}"
    return _build_row(limit, value, word, reason, found.get_interval(limit.stat))


def _judge_value(limit: Limit, found: MetricSummary, value: float, run: Run) -> tuple[VerdictStatus, str]:
    if limit.metric == "error_rate":
        return _judge_failures(limit, found)
    if limit.metric in TELEMETRY_METRICS or _is_added_per_run(limit.metric):
        return _judge_extreme(limit, value)
    if found.n == found.failed:
        met = _meets(limit, value)
        return VerdictStatus.OK if met else VerdictStatus.BROKEN, f"{format_all_requests(found.n)} failed"
    if limit.stat in PERCENTILES and limit.metric != "itl":
        return _judge_percentile(limit, list_request_values(limit.metric, run.measured), found, value)
    if limit.stat in {"min", "max"}:
        return _judge_extreme(limit, value)
    return _judge_interval(limit, found, value)


def _is_added_per_run(metric: str) -> bool:
    """Whether another plugin adds the metric, as one number per run: it has no interval."""
    return METRICS[metric].compute is not None and METRICS[metric].shape is Shape.PER_RUN


def _judge_failures(limit: Limit, found: MetricSummary) -> tuple[VerdictStatus, str]:
    """No failure meets every limit; one breaks the limit 0; between them the failures are counted."""
    failed, n = found.failed, found.n
    because = f"{failed} of {format_count(n, 'request')} failed"
    if not failed:
        return VerdictStatus.OK, because
    return _judge_count(failed, n, limit.bound, because, met=_meets(limit, failed / n))


def _judge_percentile(
    limit: Limit, values: list[float], found: MetricSummary, value: float
) -> tuple[VerdictStatus, str]:
    quantile = PERCENTILES[limit.stat]
    share = quantile if METRICS[limit.metric].is_higher_better else 1 - quantile
    wrong = sum(not _meets(limit, one) for one in values)
    because = f"{wrong} of {format_count(len(values), 'request')} {_format_side(limit)}"
    if found.failed and wrong:
        because += f", {found.failed} of them failed"
    return _judge_count(wrong, len(values), share, because, met=_meets(limit, value))


def _judge_count(wrong: int, n: int, share: float, because: str, *, met: bool) -> tuple[VerdictStatus, str]:
    if share == 0 or is_share_exceeded(wrong, n, share):
        return VerdictStatus.BROKEN, because
    if share == 1 or is_share_met(wrong, n, share):
        return VerdictStatus.OK, because
    if not met:
        return VerdictStatus.BROKEN, f"{because}, which could be chance"
    more = count_requests_to_settle(wrong, n, share)
    return VerdictStatus.UNSURE, f"{because}; conclusive after {more} more requests without a violation"


def _judge_extreme(limit: Limit, value: float) -> tuple[VerdictStatus, str]:
    """The slowest or fastest request, or what an instrument showed, is what it is: nothing is estimated."""
    return (VerdictStatus.OK, "met") if _meets(limit, value) else (VerdictStatus.BROKEN, _format_distance(limit, value))


def _judge_interval(limit: Limit, found: MetricSummary, value: float) -> tuple[VerdictStatus, str]:
    distance, met = _format_distance(limit, value), _meets(limit, value)
    interval = found.get_interval(limit.stat)
    if math.isinf(value):
        return VerdictStatus.BROKEN, f"{found.failed} of {format_count(found.n, 'value')} failed"
    if interval is None:
        return (
            (VerdictStatus.UNSURE, f"{distance}, but an interval needs more than {format_count(found.n, 'request')}")
            if met
            else (VerdictStatus.BROKEN, distance)
        )
    if _meets(limit, interval[0]) and _meets(limit, interval[1]):
        return VerdictStatus.OK, distance
    low, high = (format_value(limit.metric, end) for end in interval)
    if met:
        return VerdictStatus.UNSURE, f"{distance}, but the 95 % interval {low} .. {high} reaches beyond it"
    sure = not _meets(limit, interval[0]) and not _meets(limit, interval[1])
    return VerdictStatus.BROKEN, distance if sure else f"{distance}, which could be chance ({low} .. {high})"


def _meets(limit: Limit, value: float) -> bool:
    return meets_bound(limit.op, value, limit.bound)


def _format_side(limit: Limit) -> str:
    return "under" if limit.op == ">=" else "over"


def _format_distance(limit: Limit, value: float) -> str:
    """Describe how far the number is from its bound."""
    if meets_bound("<=", value, limit.bound) and meets_bound(">=", value, limit.bound):
        return "exactly met"
    side = "above" if value > limit.bound else "below"
    return f"{format_percent(abs(value / limit.bound - 1))} {side}" if limit.bound else side


def _format_limit_name(limit: Limit) -> str:
    return format_label(limit.metric, limit.stat)


def format_all_requests(n: int) -> str:
    """Return "the only request" or "all N requests"."""
    return "the only request" if n == 1 else f"all {n} requests"


def _explain_absence(limit: Limit, run: Run, summary: Summary) -> str:
    if not summary.requests:
        return "no request was measured"
    if limit.metric in TELEMETRY_METRICS:
        return _explain_missing_telemetry(limit, run, summary)
    if limit.metric == "goodput":
        return (
            "it counts requests that meet the latency limits, and this test has none; add one such as max_p95_latency"
        )
    return f"none of {format_count(summary.requests, 'request')} has it ({METRICS[limit.metric].help})"


def _explain_missing_telemetry(limit: Limit, run: Run, summary: Summary) -> str:
    if run.telemetry is None:
        return "no GPU telemetry was collected for this load"
    if run.telemetry.missing:
        return sanitize(run.telemetry.missing)
    if limit.metric == "joules_per_token" and run.telemetry.energy_j is not None:
        return f"no token was generated in {format_count(summary.requests, 'request')}"
    return "the GPU driver does not report it"


def _build_row(
    limit: Limit, value: float, word: VerdictStatus, reason: str, interval: tuple[float, float] | None = None
) -> VerdictRow:
    low, high = interval or (None, None)
    return VerdictRow(
        metric=limit.metric,
        stat=limit.stat,
        status=word,
        value=value,
        reason=reason,
        op=limit.op,
        bound=limit.bound,
        low=low,
        high=high,
    )


def judge_contract(run: Run, summary: Summary, limits: Sequence[Limit], *, strict: bool = False) -> Verdict:
    """Return the verdict on ``run``: aborted, then failed requests, then invalid, then broken, unsure, ok.

    A failed request is a fact even if the numbers of the others cannot be trusted, so a broken limit on the error rate
    comes before an invalid measurement. ``summary`` is that of ``run``. A run without a measured request, or without a
    successful one, is never ``ok``. With ``strict`` the reason of an unsure verdict says that strict mode fails it.
    """
    rows = tuple(judge_limit(limit, run, summary) for limit in limits)
    found = find_problems(run, summary)
    word, reason = _decide_status(run, summary, rows, found)
    if strict and word is VerdictStatus.UNSURE:
        reason += " (strict: unsure fails)"
    return Verdict(status=word, reason=reason, rows=rows, problems=found, hints=find_hints(run, summary))


def _decide_status(
    run: Run, summary: Summary, rows: Sequence[VerdictRow], found: Iterable[Problem]
) -> tuple[VerdictStatus, str]:
    if run.aborted:
        return (
            VerdictStatus.ABORTED,
            f"stopped after {format_count(summary.requests, 'request')}: {sanitize(run.aborted)}",
        )
    if not summary.requests:
        return VerdictStatus.INVALID, "no requests were measured"
    failures = [row for row in rows if row.metric == "error_rate" and row.status is VerdictStatus.BROKEN]
    if failures:
        return VerdictStatus.BROKEN, _choose_reason(failures, summary)
    invalidating = [problem for problem in found if problem.invalidates]
    if invalidating and summary.ok:
        reason = f"not a valid measurement: {invalidating[0].text}"
        return VerdictStatus.INVALID, reason + _format_remainder(len(invalidating) - 1)
    word = get_worst_status(tuple(row.status for row in rows))
    if word is VerdictStatus.OK and not summary.ok:
        return VerdictStatus.BROKEN, f"{format_all_requests(summary.requests)} failed: {_format_outcomes(summary)}"
    if word is VerdictStatus.OK:
        return word, _format_ok_reason(rows, summary)
    telling = [row for row in rows if row.status is word]
    return word, _choose_reason(telling, summary) + _format_remainder(len(telling) - 1)


def _choose_reason(rows: Sequence[VerdictRow], summary: Summary) -> str:
    """When requests failed, which failures they were says more than what they did to other numbers."""
    first = next((row for row in rows if row.metric == "error_rate" and summary.ok < summary.requests), rows[0])
    return f"{first.reason} ({_format_outcomes(summary)})" if first.metric == "error_rate" else first.reason


def _format_outcomes(summary: Summary) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in summary.outcomes.items() if outcome != "ok")


def _format_ok_reason(rows: Sequence[VerdictRow], summary: Summary) -> str:
    measured = format_count(summary.requests, "request")
    return (
        f"{format_count(len(rows), 'limit')} met over {measured}" if rows else f"{measured} measured, no limits given"
    )


def _format_remainder(number: int) -> str:
    return f" (and {number} more)" if number > 0 else ""
