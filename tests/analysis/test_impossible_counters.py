"""Counters that contradict the request or the clock of the client invalidate a run, as does a warm-up that failed."""

import msgspec
import pytest
from run_makers import MS, failure, one_after_another, run_of, sample

from pytest_ollama_perf.analysis.limits import parse_limit
from pytest_ollama_perf.analysis.thresholds import judge_contract
from pytest_ollama_perf.analysis.validity import find_problems
from pytest_ollama_perf.core.sample import Phase
from pytest_ollama_perf.core.verdict import ProblemCode, VerdictStatus
from pytest_ollama_perf.metrics.summary import summarise


def problems_of(*samples, **fields):
    run = run_of(*samples, **fields)
    return [(problem.code, problem.invalidates) for problem in find_problems(run, summarise(run))]


def with_counters(one, **counters):
    return msgspec.structs.replace(one, counters=msgspec.structs.replace(one.counters, **counters))


IMPOSSIBLE = (ProblemCode.IMPOSSIBLE_COUNTERS, True)


def test_more_tokens_than_the_request_allows_are_impossible():
    honest = one_after_another(20, tokens=11)
    wrong = [with_counters(each, eval_count=16) for each in honest]
    assert problems_of(*honest, workload={"num_predict": 11}) == []
    assert IMPOSSIBLE in problems_of(*wrong, workload={"num_predict": 11})


def test_an_eval_duration_far_below_the_time_of_the_stream_is_impossible():
    honest = one_after_another(20, tokens=64)
    wrong = [with_counters(each, eval_duration_ns=4) for each in honest]
    assert problems_of(*honest, workload={"num_predict": 64}) == []
    assert IMPOSSIBLE in problems_of(*wrong, workload={"num_predict": 64})


def test_a_rate_that_no_hardware_reaches_is_impossible_without_a_stream():
    wrong = [
        msgspec.structs.replace(with_counters(each, eval_duration_ns=4), chunk_ns=(), line_count=1)
        for each in one_after_another(20, tokens=64)
    ]
    assert IMPOSSIBLE in problems_of(*wrong, workload={"num_predict": 64, "stream": False})


def test_one_response_that_the_network_stalled_is_no_wrong_counter():
    stalled = sample(0, sent=0, tokens=11, step=300)
    slow_network = with_counters(stalled, eval_duration_ns=100 * MS)
    assert IMPOSSIBLE not in problems_of(slow_network, *one_after_another(20)[1:], workload={"num_predict": 11})


@pytest.mark.parametrize(("failed", "invalidates"), [(1, False), (4, True)])
def test_a_warm_up_that_fails_is_named_and_invalidates_the_run_if_all_of_it_failed(failed, invalidates):
    warm_up = [
        msgspec.structs.replace(failure(index) if index < failed else sample(index), stage=Phase.WARMUP)
        for index in range(4)
    ]
    measured = [msgspec.structs.replace(each, index=each.index + 4) for each in one_after_another(20)]
    found = problems_of(*warm_up, *measured, warmup=0)
    assert found == [(ProblemCode.WARMUP_FAILED, invalidates)]


def test_failed_requests_are_not_hidden_by_an_invalid_measurement():
    run = run_of(
        *(failure(index) for index in range(99)),
        with_counters(sample(99), eval_count=500),
        workload={"num_predict": 11},
    )
    verdict = judge_contract(run, summarise(run), [parse_limit("error_rate", "<= 0%")])
    assert verdict.status is VerdictStatus.BROKEN
    assert verdict.reason.startswith("error_rate 99 %, limit <= 0 %: 99 of 100 requests failed")
    assert ProblemCode.IMPOSSIBLE_COUNTERS in {problem.code for problem in verdict.problems}
    assert not verdict.is_usable


def test_tolerated_failures_leave_an_invalid_measurement_invalid():
    wrong = [with_counters(each, eval_count=500) for each in one_after_another(50)]
    run = run_of(failure(50), *wrong, workload={"num_predict": 11})
    verdict = judge_contract(run, summarise(run), [parse_limit("error_rate", "<= 50%")])
    assert verdict.status is VerdictStatus.INVALID
