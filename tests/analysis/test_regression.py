import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_makers import record, records

from pytest_ollama_perf.analysis.gate import ErrorBudget
from pytest_ollama_perf.analysis.regression import judge_build, judge_test
from pytest_ollama_perf.analysis.run_value import POLICIES, parse_minimal_record
from pytest_ollama_perf.core.verdict import VerdictStatus


def verdict(history, candidates, *names, **options):
    return judge_test(map(parse_minimal_record, history), map(parse_minimal_record, candidates), names, **options)


STORED = records(10)
factors = st.floats(0.8, 1.3)


def test_an_unchanged_build_is_ok_on_both_gating_metrics():
    found = verdict(STORED, [record(99)])
    assert [(metric.policy.name, metric.status) for metric in found.metrics] == [
        ("tps", VerdictStatus.OK),
        ("ttft", VerdictStatus.OK),
    ]
    assert (found.status, found.test, found.again) == (VerdictStatus.OK, "chat", False)


def test_a_slower_model_is_regressed_after_three_runs_and_unsure_before():
    found = [verdict(STORED, [record(99, 1.1)] * runs) for runs in (1, 2, 3)]
    assert [(one.status, one.again) for one in found] == [
        (VerdictStatus.UNSURE, True),
        (VerdictStatus.UNSURE, True),
        (VerdictStatus.REGRESSED, False),
    ]


def test_the_gravest_metric_speaks_for_the_test():
    slow_start = record(99)
    slow_start["requests"] = [request | {"ttft_s": 0.3} for request in slow_start["requests"]]
    found = verdict(STORED, [slow_start] * 3)
    assert found.status is VerdictStatus.REGRESSED
    assert found.reason.startswith("ttft +")


def test_the_reason_is_one_line_that_stands_alone():
    found = verdict([record(run) for run in range(10)], [record(99, 1.1)] * 3)
    assert found.reason == "tps -9.09 % (80 /s -> 72.7 /s), margin 5 %, 3 runs against 10 stored"
    unsure = verdict([record(run) for run in range(10)], [record(99, 1.1)])
    assert unsure.reason == (
        "tps -9.09 % (80 /s -> 72.7 /s), margin 5 %, 1 run against 10 stored: inconclusive, "
        "changes below 3.8 % cannot be detected yet; conclusive with 3 runs"
    )


def test_a_row_is_in_the_metrics_own_terms():
    found = verdict([record(run) for run in range(10)], [record(99, 1.25)] * 3).metrics[0].row
    assert (found.metric, found.stat, found.status, found.margin) == ("tps", "", VerdictStatus.REGRESSED, 0.05)
    assert (found.baseline, found.value, found.change) == (pytest.approx(80), pytest.approx(64), pytest.approx(-0.2))
    assert found.low < -0.2 < found.high < 0


def test_without_history_a_test_is_new():
    found = verdict([], [record(1)])
    assert (found.status, found.reason) == (VerdictStatus.NEW, "tps: no stored run to compare with")


def test_a_metric_that_history_lacks_is_left_out_as_long_as_another_has_one():
    only_tps = [{"test": "chat", "requests": [{"eval_tps": 80.0}]}] * 6
    assert [metric.policy.name for metric in verdict(only_tps, [record(1)]).metrics] == ["tps"]


def test_a_metric_that_the_candidate_lacks_is_unsure():
    found = verdict(STORED, [{"test": "chat", "requests": [{"eval_tps": 80.0}]}])
    assert [metric.status for metric in found.metrics] == [VerdictStatus.OK, VerdictStatus.UNSURE]
    assert found.status is VerdictStatus.UNSURE


def test_records_without_gating_metrics_are_judged_by_what_they_have():
    latencies = [{"requests": [{"latency_s": 1.0}]}] * 6
    assert [metric.policy.name for metric in verdict(latencies, latencies[:1]).metrics] == ["latency"]


@pytest.mark.parametrize("candidates", [[], [record(1, requests=0)], [record(1), record(2, requests=0)], [{}]])
@pytest.mark.parametrize("history", [[], STORED])
def test_no_requests_never_give_ok(history, candidates):
    assert verdict(history, candidates).status is VerdictStatus.UNSURE


def test_too_few_requests_for_a_percentile_are_never_ok():
    found = verdict(STORED, [record(1)], "ttft.p95")
    assert (found.status, found.again) == (VerdictStatus.UNSURE, False)
    assert found.reason == "ttft.p95 cannot gate on 10 requests a run: it needs 200"
    many = records(10, requests=200)
    assert verdict(many, [record(1, requests=200)], "ttft.p95").status is VerdictStatus.OK


def test_margins_of_ones_own_are_used():
    slower = [record(99, 1.08)] * 3
    assert verdict(STORED, slower).status is VerdictStatus.REGRESSED
    assert verdict(STORED, slower, margins={"tps": 0.15}).status is VerdictStatus.OK


def test_with_one_run_at_most_the_first_decides():
    assert verdict(STORED, [record(99, 1.1)], max_runs=1).status is VerdictStatus.REGRESSED


def test_a_big_build_asks_for_more_certainty():
    slower = [record(99, 1.0)] * 3
    history = records(10, sd=0.03)
    weak = [record(99, 1.055)] * 3
    alone = verdict(history, weak, "tps")
    assert alone.status is VerdictStatus.REGRESSED
    assert verdict(history, weak, "tps", family=ErrorBudget(10_000)).status is VerdictStatus.UNSURE
    unchanged = verdict(history, slower, "tps")
    build = judge_build([alone] + [unchanged] * 400)
    assert build[0].status is VerdictStatus.UNSURE
    assert {one.status for one in build[1:]} == {unchanged.status}
    assert judge_build([alone])[0].status is VerdictStatus.REGRESSED


@settings(max_examples=40)
@given(
    st.lists(factors, min_size=1, max_size=12), st.lists(factors, min_size=1, max_size=3), st.sampled_from([10.0, 0.1])
)
def test_all_values_times_ten_change_nothing(history, candidates, scale):
    def scaled(factor, by):
        request = {"eval_tps": 80.0 / factor * by, "ttft_s": 0.2 * factor * by, "latency_s": factor * by}
        return {"requests": [request] * 3, "throughput_tps": 300.0 * by / factor}

    names = ("tps", "ttft", "latency")
    plain, big = (
        verdict([scaled(one, by) for one in history], [scaled(one, by) for one in candidates], *names)
        for by in (1.0, scale)
    )
    for one, other in zip(plain.metrics, big.metrics, strict=True):
        assert other.judgement.d == pytest.approx(one.judgement.d, abs=1e-9)
        assert other.judgement.p == pytest.approx(one.judgement.p, abs=1e-6)
        assert other.status is one.status


@settings(max_examples=40)
@given(st.lists(factors, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_requests_and_records_is_irrelevant(history, random):
    stored = [record(run, factor, requests=3) for run, factor in enumerate(history)]
    for one in stored:
        one["requests"] = [request | {"ttft_s": 0.2 + random.random()} for request in one["requests"]]
    mixed = [one | {"requests": one["requests"][::-1]} for one in random.sample(stored, len(stored))]
    assert verdict(stored, [record(99)]).metrics == verdict(mixed, [record(99)]).metrics


def uneven(run, factor=1.0):
    """A run whose requests differ widely."""
    steps = (0.6, 1.0, 1.7, 0.8, 1.3, 0.5, 2.0, 1.0, 0.7, 1.5)
    return {"run": run, "requests": [{"eval_tps": 80.0 / (factor * step)} for step in steps]}


def test_requests_that_differ_widely_make_runs_that_may_differ():
    found = [verdict([build(0)], [build(1, 1.25)] * 3) for build in (record, uneven)]
    assert [one.status for one in found] == [VerdictStatus.REGRESSED, VerdictStatus.UNSURE]
    expected = parse_minimal_record(uneven(0)).estimate_scatter(POLICIES["tps"])
    assert found[1].metrics[0].rule.scatter == pytest.approx(expected)
    assert expected > 0.1
    assert found[0].metrics[0].rule.scatter == pytest.approx(0.0)


def test_one_stalled_run_does_not_blunt_the_gate():
    stalled = [*(record(run) for run in range(9)), uneven(9)]
    assert verdict(stalled, [record(99, 1.1)] * 3, "tps").metrics[0].rule.scatter == pytest.approx(0.0)


def test_failures_are_reported_as_they_are():
    broken = record(99) | {"requests": [{"eval_tps": None, "ttft_s": None}] * 5}
    found = verdict(STORED, [broken] * 3)
    assert found.status is VerdictStatus.REGRESSED
    assert found.metrics[0].now == 0.0
    assert found.metrics[1].change == math.inf
