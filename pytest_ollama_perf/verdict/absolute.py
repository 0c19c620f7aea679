"""One run against one limit. An unsure limit is decided by the point estimate and says that it is unsure."""

from __future__ import annotations

import math

from pytest_ollama_perf.metric import METRICS, PERCENTILES, TELEMETRY
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.summary import MetricSummary, Summary, request_values
from pytest_ollama_perf.text import inert
from pytest_ollama_perf.verdict import binomial
from pytest_ollama_perf.verdict.limits import Limit
from pytest_ollama_perf.verdict.wording import count, label, percent, show, show_apart
from pytest_ollama_perf.verdict.words import Row, Word


def judge_limit(limit: Limit, run: Run, summary: Summary) -> Row:
    """Return the row of ``limit``: ``ok``, ``broken``, or ``unsure`` where too few requests speak for it.

    Percentiles over requests are judged by counting violations, shares by counting failures, every other number by its
    95 % interval; an unsure number on the wrong side of its bound is ``broken``. What was not measured is ``broken``.
    """
    found = summary.metrics.get(limit.metric)
    value = found.get(limit.stat) if found else None
    if found is None or value is None:
        why = _why_absent(limit, run, summary)
        return _row(limit, math.nan, Word.BROKEN, f"{_named(limit)} was not measured: {why}")
    word, because = _judged(limit, found, value, run)
    shown, bound = show_apart(limit.metric, value, limit.bound)
    reason = f"{_named(limit)} {shown}, limit {limit.op} {bound}: {because}"
    return _row(limit, value, word, reason, found.interval(limit.stat))


def _judged(limit: Limit, found: MetricSummary, value: float, run: Run) -> tuple[Word, str]:
    if limit.metric == "error_rate":
        return _of_failures(limit, found)
    if limit.metric in TELEMETRY:
        return _of_extreme(limit, value)
    if found.n == found.failed:
        met = _meets(limit, value)
        return Word.OK if met else Word.BROKEN, f"{everyone(found.n)} failed"
    if limit.stat in PERCENTILES and limit.metric != "itl":
        return _of_percentile(limit, request_values(limit.metric, run.measured), found, value)
    if limit.stat in {"min", "max"}:
        return _of_extreme(limit, value)
    return _of_number(limit, found, value)


def _of_failures(limit: Limit, found: MetricSummary) -> tuple[Word, str]:
    """No failure meets every limit; one breaks the limit 0; between them the failures are counted."""
    failed, n = found.failed, found.n
    because = f"{failed} of {count(n, 'request')} failed"
    if not failed:
        return Word.OK, because
    return _by_counting(failed, n, limit.bound, because, met=_meets(limit, failed / n))


def _of_percentile(limit: Limit, values: list[float], found: MetricSummary, value: float) -> tuple[Word, str]:
    quantile = PERCENTILES[limit.stat]
    share = quantile if METRICS[limit.metric].is_rate else 1 - quantile
    wrong = sum(not _meets(limit, one) for one in values)
    because = f"{wrong} of {count(len(values), 'request')} {_beyond(limit)}"
    if found.failed and wrong:
        because += f", {found.failed} of them failed"
    return _by_counting(wrong, len(values), share, because, met=_meets(limit, value))


def _by_counting(wrong: int, n: int, share: float, because: str, *, met: bool) -> tuple[Word, str]:
    if share == 0 or binomial.is_broken(wrong, n, share):
        return Word.BROKEN, because
    if share == 1 or binomial.is_met(wrong, n, share):
        return Word.OK, because
    if not met:
        return Word.BROKEN, f"{because}, which could be chance"
    more = binomial.clean_to_settle(wrong, n, share)
    return Word.UNSURE, f"{because}; {more} more without one would make it sure"


def _of_extreme(limit: Limit, value: float) -> tuple[Word, str]:
    """The slowest or fastest request, or what an instrument showed, is what it is: nothing is estimated."""
    return (Word.OK, "met") if _meets(limit, value) else (Word.BROKEN, _distance(limit, value))


def _of_number(limit: Limit, found: MetricSummary, value: float) -> tuple[Word, str]:
    distance, met = _distance(limit, value), _meets(limit, value)
    interval = found.interval(limit.stat)
    if math.isinf(value):
        return Word.BROKEN, f"{found.failed} of {count(found.n, 'value')} failed"
    if interval is None:
        return (
            (Word.UNSURE, f"{distance}, but {count(found.n, 'request')} cannot tell the spread")
            if met
            else (Word.BROKEN, distance)
        )
    if _meets(limit, interval[0]) and _meets(limit, interval[1]):
        return Word.OK, distance
    low, high = (show(limit.metric, end) for end in interval)
    if met:
        return Word.UNSURE, f"{distance}, but the 95 % interval {low} .. {high} reaches beyond it"
    sure = not _meets(limit, interval[0]) and not _meets(limit, interval[1])
    return Word.BROKEN, distance if sure else f"{distance}, which could be chance ({low} .. {high})"


_ROUNDING = 1e-9
"""Relative: what arithmetic may cost a number that meets its bound exactly; far below what a clock can tell."""


def _meets(limit: Limit, value: float) -> bool:
    if limit.op == ">=":
        return value >= limit.bound * (1 - _ROUNDING)
    return value <= limit.bound * (1 + _ROUNDING)


def _beyond(limit: Limit) -> str:
    return "under" if limit.op == ">=" else "over"


def _distance(limit: Limit, value: float) -> str:
    """How far the number is from its bound, as a person would say it."""
    if math.isclose(value, limit.bound, rel_tol=_ROUNDING):
        return "exactly met"
    side = "above" if value > limit.bound else "below"
    return f"{percent(abs(value / limit.bound - 1))} {side}" if limit.bound else side


def _named(limit: Limit) -> str:
    return label(limit.metric, limit.stat)


def everyone(n: int) -> str:
    return "the only request" if n == 1 else f"all {n} requests"


def _why_absent(limit: Limit, run: Run, summary: Summary) -> str:
    if not summary.requests:
        return "no request was measured"
    if limit.metric in TELEMETRY:
        return _why_unread(limit, run, summary)
    if limit.metric == "throughput" and "throughput_whole" in summary.metrics:
        return "there was no time in which all clients were busy; it needs more requests than clients"
    if limit.metric == "goodput":
        return "it counts requests that meet the limits on times, and there is none; add one such as max_p95_latency"
    return f"none of {count(summary.requests, 'request')} has it ({METRICS[limit.metric].help})"


def _why_unread(limit: Limit, run: Run, summary: Summary) -> str:
    if run.telemetry is None:
        return "nobody read the GPU beside this load"
    if run.telemetry.missing:
        return inert(run.telemetry.missing)
    if limit.metric == "joules_per_token" and run.telemetry.energy_j is not None:
        return f"no token was generated in {count(summary.requests, 'request')}"
    return "the GPU's driver does not tell"


def _row(limit: Limit, value: float, word: Word, reason: str, interval: tuple[float, float] | None = None) -> Row:
    low, high = interval or (None, None)
    return Row(
        metric=limit.metric,
        stat=limit.stat,
        word=word,
        value=value,
        reason=reason,
        op=limit.op,
        bound=limit.bound,
        low=low,
        high=high,
    )
