import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_makers import MS, failure, one_after_another, run_of, sample, slower

from pytest_ollama_perf.analysis import thresholds
from pytest_ollama_perf.analysis.limits import collect_latency_limits, parse_limit, parse_limit_option
from pytest_ollama_perf.analysis.thresholds import judge_contract
from pytest_ollama_perf.core.sample import Outcome
from pytest_ollama_perf.core.verdict import FAILING_STATUSES, VerdictStatus
from pytest_ollama_perf.metrics.summary import summarise


def judge(samples, *, strict=False, run=None, limits=None, **words):
    run = run or run_of(*samples)
    limits = [parse_limit_option(word, value) for word, value in words.items()]
    return judge_contract(run, summarise(run, collect_latency_limits(limits)), limits, strict=strict)


def spread(*ttfts):
    """Requests one after another that differ in their time to first token (ms)."""
    sent, found = 0, []
    for index, ttft in enumerate(ttfts):
        found.append(sample(index, sent=sent, ttft=ttft))
        sent += ttft + 100
    return found


@pytest.mark.parametrize(
    ("violations", "q", "needed"), [(0, 0.95, 59), (1, 0.95, 93), (0, 0.99, 299), (1, 0.99, 473), (0, 0.5, 5)]
)
def test_how_many_requests_show_that_a_percentile_is_met(violations, q, needed):
    assert thresholds.count_requests_to_settle(violations, 0, 1 - q) == needed
    assert thresholds.is_share_met(violations, needed, 1 - q)
    assert not thresholds.is_share_met(violations, needed - 1, 1 - q)


def test_how_many_violations_show_that_a_percentile_is_broken():
    # P[Bin(20, .05) >= 3] = .0755, P[Bin(20, .05) >= 4] = .0159
    assert not thresholds.is_share_exceeded(3, 20, 0.05)
    assert thresholds.is_share_exceeded(4, 20, 0.05)
    assert not thresholds.is_share_exceeded(0, 0, 0.05)
    assert not thresholds.is_share_met(0, 0, 0.05)


def test_a_percentile_without_a_violation_in_20_is_unsure_and_says_what_would_settle_it():
    verdict = judge(one_after_another(20), max_p95_latency=0.25)
    assert verdict.status is VerdictStatus.UNSURE
    assert verdict.reason == (
        "latency p95 200 ms, limit <= 250 ms: 0 of 20 requests over; "
        "conclusive after 39 more requests without a violation"
    )


def test_a_percentile_without_a_violation_in_59_is_met():
    assert judge(one_after_another(59), max_p95_latency=0.2).status is VerdictStatus.OK
    assert judge(one_after_another(58), max_p95_latency=0.2).status is VerdictStatus.UNSURE


def test_a_percentile_with_many_violations_is_broken():
    verdict = judge(spread(*[100] * 14, *[3000] * 6), max_p95_latency=2.5)
    assert verdict.status is VerdictStatus.BROKEN
    assert verdict.reason == "latency p95 3.1 s, limit <= 2.5 s: 6 of 20 requests over"


def test_an_unsure_percentile_is_decided_by_its_point_estimate():
    broken = judge(spread(*[100] * 18, 3000, 3000), max_p95_latency=2.5)
    assert broken.status is VerdictStatus.BROKEN
    assert broken.reason == "latency p95 3.1 s, limit <= 2.5 s: 2 of 20 requests over, which could be chance"
    assert judge(spread(*[100] * 19, 3000), max_p95_latency=2.5).status is VerdictStatus.UNSURE


def test_a_failed_request_violates_every_limit_on_times():
    verdict = judge([*one_after_another(19), failure(19, sent=3800)], max_p50_ttft=10, max_error_rate=0.5)
    assert [row.status for row in verdict.rows] == [VerdictStatus.OK, VerdictStatus.OK]
    assert verdict.rows[0].reason == "ttft p50 100 ms, limit <= 10 s: 1 of 20 requests over, 1 of them failed"
    tail = judge([*one_after_another(19), failure(19, sent=3800)], max_p95_ttft=10)
    assert tail.status is VerdictStatus.BROKEN
    assert tail.reason == (
        "ttft p95 inf, limit <= 10 s: 1 of 20 requests over, 1 of them failed, which could be chance"
    )


def test_a_rate_below_its_limit_says_by_how_much():
    verdict = judge(one_after_another(20), min_tps=150)
    assert verdict.status is VerdictStatus.BROKEN
    assert verdict.reason == "tps 110 /s, limit >= 150 /s: 26.7 % below"
    (row,) = verdict.rows
    assert (row.metric, row.stat, row.op, row.bound) == ("tps", "", ">=", 150.0)
    assert (row.value, row.low, row.high) == pytest.approx((110.0, 110.0, 110.0))


def test_a_rate_is_judged_by_its_interval():
    # tps alternates between 110 and 100 (11 tokens in 100 or 110 ms): 104.8 pooled.
    samples = [sample(index, sent=index * 300, step=10 + index % 2) for index in range(20)]
    low, high = summarise(run_of(*samples)).metrics["tps"].ci["value"]
    assert low < 220 / 2.1 < high
    assert judge(samples, min_tps=low - 0.1).status is VerdictStatus.OK
    assert judge(samples, min_tps=104).status is VerdictStatus.UNSURE
    assert "but the 95 % interval" in judge(samples, min_tps=104).reason
    assert judge(samples, min_tps=105.5).status is VerdictStatus.BROKEN
    assert "which could be chance" in judge(samples, min_tps=105.5).reason
    assert "chance" not in judge(samples, min_tps=high + 1).reason


def test_one_request_cannot_tell_the_spread():
    verdict = judge([sample(0)], min_tps=100)
    assert verdict.status is VerdictStatus.UNSURE
    assert verdict.reason == "tps 110 /s, limit >= 100 /s: 10 % above, but an interval needs more than 1 request"
    assert judge([sample(0)], min_tps=120).reason == "tps 110 /s, limit >= 120 /s: 8.33 % below"


def test_strict_says_that_unsure_fails():
    assert judge([sample(0)], min_tps=100, strict=True).reason.endswith("(strict: unsure fails)")
    assert "strict" not in judge(one_after_another(20), min_tps=100, strict=True).reason


def test_extremes_are_facts():
    assert judge(spread(100, 200), max_max_ttft=0.2).status is VerdictStatus.OK
    verdict = judge(spread(100, 200), max_max_ttft=0.15)
    assert (verdict.status, verdict.reason) == (VerdictStatus.BROKEN, "ttft max 200 ms, limit <= 150 ms: 33.3 % above")


def test_numbers_that_differ_never_read_alike():
    assert judge(one_after_another(20), min_tps=110.04).reason == "tps 110 /s, limit >= 110.04 /s: 0.0364 % below"


def test_any_failure_breaks_the_limit_zero():
    verdict = judge([*one_after_another(20), failure(20, sent=4000, outcome=Outcome.BUSY)], max_error_rate=0, min_tps=1)
    assert verdict.status is VerdictStatus.BROKEN
    assert verdict.reason == "error_rate 4.76 %, limit <= 0 %: 1 of 21 requests failed (1 busy)"


def test_an_error_rate_is_counted():
    samples = one_after_another(20)
    assert judge(samples, max_error_rate=0).status is VerdictStatus.OK
    assert judge(samples, max_error_rate=0.01).status is VerdictStatus.OK
    failures = [failure(20 + index, sent=4000) for index in range(5)]
    assert judge([*samples, *failures], max_error_rate=0.05).status is VerdictStatus.BROKEN
    assert judge([*samples, failures[0]], max_error_rate=0.05).status is VerdictStatus.UNSURE
    assert judge([*samples, failures[0]], max_error_rate=0.5).status is VerdictStatus.OK
    assert judge([*samples, *failures], max_error_rate=1).status is VerdictStatus.OK


def test_no_request_never_passes():
    assert judge([]).status is VerdictStatus.INVALID
    verdict = judge([], max_error_rate=0, min_tps=1)
    assert verdict.status is VerdictStatus.INVALID
    assert verdict.reason == "no requests were measured"
    assert [row.status for row in verdict.rows] == [VerdictStatus.BROKEN, VerdictStatus.BROKEN]
    assert all(math.isnan(row.value) for row in verdict.rows)


def test_all_requests_failed_never_passes():
    verdict = judge([failure(0), failure(1, sent=5, outcome=Outcome.REFUSED)], max_error_rate=1)
    assert verdict.status is VerdictStatus.BROKEN
    assert verdict.reason == "all 2 requests failed: 1 http_error, 1 refused"
    assert judge([failure(0)]).reason == "the only request failed: 1 http_error"


def test_a_metric_that_the_run_does_not_have_breaks_its_limit():
    verdict = judge(one_after_another(20), max_p95_ttfa=5)
    assert verdict.status is VerdictStatus.BROKEN
    assert verdict.reason == (
        "ttfa p95 was not measured: none of 20 requests has it (send to first answer token of a thinking model)"
    )
    assert "this test has none; add one such as max_p95_latency" in judge(one_after_another(20), min_goodput=1).reason


def test_goodput_is_judged_with_the_limits_beside_it():
    verdict = judge(one_after_another(60), min_goodput=4.9, max_p95_latency=0.2)
    assert (verdict.status, verdict.reason) == (VerdictStatus.OK, "2 limits met over 60 requests")


def test_aborted_before_invalid_before_broken():
    samples = [*one_after_another(20), failure(20, sent=4000, outcome=Outcome.CANCELLED)]
    stopped = run_of(*samples, aborted="Ctrl-C\x1b[31m")
    verdict = judge((), run=stopped, max_error_rate=0)
    assert (verdict.status, verdict.reason) == (VerdictStatus.ABORTED, "stopped after 20 requests: Ctrl-C[31m")
    reloaded = run_of(*one_after_another(20), sample(20, sent=4000, load=900))
    verdict = judge((), run=reloaded, min_tps=999)
    assert verdict.status is VerdictStatus.INVALID
    assert verdict.reason == (
        "not a valid measurement: the model was loaded again inside the window: "
        "1 of 21 requests waited up to 900 ms for it"
    )
    assert verdict.rows[0].status is VerdictStatus.BROKEN


def test_the_first_broken_limit_speaks_for_the_others():
    verdict = judge(one_after_another(20), min_tps=150, max_p50_ttft=0.05)
    assert verdict.reason == "tps 110 /s, limit >= 150 /s: 26.7 % below (and 1 more)"


ORDER = [VerdictStatus.OK, VerdictStatus.UNSURE, VerdictStatus.BROKEN]
SAMPLES = st.lists(st.one_of(st.tuples(st.integers(50, 400), st.integers(5, 15)), st.none()), min_size=0, max_size=30)
LIMITS = st.sampled_from(
    [
        ("ttft.p50", "<=", "ms", 50, 400),
        ("latency.p95", "<=", "ms", 100, 550),
        ("ttft.mean", "<=", "ms", 50, 400),
        ("latency.max", "<=", "ms", 100, 550),
        ("tps.p50", ">=", "", 50, 200),
        ("tps", ">=", "", 50, 200),
        ("error_rate", "<=", "%", 0, 100),
    ]
)


def built(drawn):
    samples, sent = [], 0
    for index, one in enumerate(drawn):
        ttft, step = one or (0, 0)
        samples.append(sample(index, sent=sent, ttft=ttft, step=step) if one else failure(index, sent=sent))
        sent += ttft + 10 * step if one else 5
    return samples


def word_of(samples, limit):
    run = run_of(*samples)
    return judge_contract(run, summarise(run), [limit]).status


@settings(max_examples=150, deadline=None)
@given(SAMPLES, LIMITS, st.floats(0, 1))
def test_one_more_failure_never_improves_a_verdict(drawn, kind, at):
    key, op, unit, low, high = kind
    limit = parse_limit(key, f"{op} {low + at * (high - low)}{unit}")
    samples = built(drawn)
    more = [*samples, failure(99, sent=10_000)]
    if samples:
        assert ORDER.index(word_of(more, limit)) >= ORDER.index(word_of(samples, limit))


@settings(max_examples=150, deadline=None)
@given(SAMPLES, LIMITS, st.floats(0, 1), st.floats(0, 1))
def test_a_tighter_limit_never_improves_a_verdict(drawn, kind, one, other):
    key, op, unit, low, high = kind
    bounds = sorted((low + at * (high - low) for at in (one, other)), reverse=op == ">=")
    samples = built(drawn) or [sample(0)]
    tight, loose = (word_of(samples, parse_limit(key, f"{op} {bound}{unit}")) for bound in bounds)
    assert ORDER.index(tight) >= ORDER.index(loose)


@settings(max_examples=80, deadline=None)
@given(SAMPLES, LIMITS, st.floats(0, 1))
def test_order_and_scale_change_no_verdict(drawn, kind, at):
    key, op, unit, low, high = kind
    bound = low + at * (high - low)
    samples = built(drawn) or [sample(0)]
    scale = {"ms": 10, "": 0.1, "%": 1}[unit]
    word = word_of(samples, parse_limit(key, f"{op} {bound}{unit}"))
    assert word_of(samples[::-1], parse_limit(key, f"{op} {bound}{unit}")) is word
    assert word_of([slower(one, 10) for one in samples], parse_limit(key, f"{op} {bound * scale}{unit}")) is word


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from([one for one in Outcome if one is not Outcome.OK]), max_size=5), LIMITS)
def test_without_a_success_nothing_is_ever_green(outcomes, kind):
    key, op, unit, _, high = kind
    run = run_of(*(failure(index, outcome=outcome, sent=index * MS) for index, outcome in enumerate(outcomes)))
    for limits in ([], [parse_limit(key, f"{op} {high if op == '<=' else 0}{unit}")]):
        assert judge_contract(run, summarise(run), limits).status in FAILING_STATUSES


def test_a_number_that_meets_its_limit_exactly_is_met():
    verdict = judge(one_after_another(20), min_tps=110, max_mean_ttft="100ms", max_max_latency=0.2)
    assert [row.status for row in verdict.rows] == [VerdictStatus.OK, VerdictStatus.OK, VerdictStatus.OK]
    assert verdict.rows[0].reason == "tps 110 /s, limit >= 110 /s: exactly met"
