import math

import msgspec
import pytest
from record_makers import record
from run_makers import failure, one_after_another, run_of, sample

from pytest_ollama_perf.analysis.run_value import (
    POLICIES,
    build_evidence,
    estimate_scatter,
    parse_minimal_record,
    sort_by_time,
)


def readings(evidence, *names):
    return [evidence.compute_cost(POLICIES[name]) for name in names]


def test_a_minimal_record_is_read_in_the_units_of_its_field_names():
    found = parse_minimal_record(record(7))
    assert (found.test, found.run, found.requests, found.at) == ("chat", "7", 10, 7.0)
    expected = [-math.log(80), math.log(0.2), 0.0, -math.log(300)]
    assert readings(found, "tps", "ttft", "latency", "throughput") == pytest.approx(expected)


def test_a_metric_that_nobody_recorded_has_no_data():
    found = parse_minimal_record({"requests": [{"eval_tps": 80.0}]})
    assert [math.isnan(one) for one in readings(found, "tps", "ttft", "throughput", "queue")] == [
        False,
        True,
        True,
        True,
    ]


@pytest.mark.parametrize(
    "failed", [{}, {"eval_tps": None}, {"eval_tps": math.nan}, {"eval_tps": 0}, {"eval_tps": 80, "outcome": "busy"}]
)
def test_a_request_without_a_value_that_others_have_failed(failed):
    one_in_five = {"requests": [{"eval_tps": 80.0}] * 8 + [failed] * 2}
    one_in_three = {"requests": [{"eval_tps": 80.0}] * 6 + [failed] * 3}
    assert readings(parse_minimal_record(one_in_five), "tps") == [pytest.approx(-math.log(80))]
    assert readings(parse_minimal_record(one_in_three), "tps") == [math.inf]


def test_a_record_in_which_every_request_failed_is_infinitely_slow():
    found = parse_minimal_record({"requests": [{"outcome": "refused"}] * 3})
    assert readings(found, "tps", "ttft") == [math.inf, math.inf]


def test_no_requests_are_no_data_even_with_a_throughput():
    assert all(math.isnan(one) for one in readings(parse_minimal_record(record(requests=0)), "tps", "throughput"))


def test_a_throughput_alone_is_enough_for_throughput():
    found = parse_minimal_record({"throughput_tps": 300.0})
    assert found.requests is None
    assert readings(found, "throughput") == [pytest.approx(-math.log(300))]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"requests": 3}, "requests must be a list, got int"),
        ({"requests": [3]}, "requests[0] must be an object, got int"),
        ({"requests": [{}, {"ttft_s": "1"}]}, "requests[1].ttft_s must be a number or null, got '1'"),
        ({"requests": [{"eval_tps": True}]}, "requests[0].eval_tps must be a number or null, got True"),
        ({"throughput_tps": []}, "throughput_tps must be a number or null, got []"),
        ({"test": {}}, "test must be a text or a number, got dict"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(wrong, message):
    with pytest.raises(TypeError) as caught:
        parse_minimal_record(wrong)
    assert str(caught.value) == message


def test_a_run_is_read_like_its_summary():
    run = run_of(*one_after_another(10, ttft=200, tokens=11, step=10), load_time_s=1.5)
    found = build_evidence(run)
    assert found.requests == 10
    expected = [-math.log(110), math.log(0.2), math.log(0.3), math.log(1.5)]
    assert readings(found, "tps", "ttft", "latency", "load_time") == pytest.approx(expected)
    assert readings(found, "qps") == [pytest.approx(-math.log(10 / 3))]


def test_warm_up_is_no_evidence():
    run = run_of(warmup=3)
    assert build_evidence(run).requests == 0
    assert math.isnan(build_evidence(run).compute_cost(POLICIES["tps"]))


def test_failed_requests_of_a_run_count_as_infinitely_slow():
    run = run_of(*one_after_another(6), *[failure(index, sent=5_000) for index in range(3)])
    assert readings(build_evidence(run), "tps", "ttft") == [math.inf, math.inf]


def test_runs_are_ordered_by_time_or_number_where_all_have_one():
    runs = [parse_minimal_record(record(number)) for number in (3, 1, 2)]
    assert [one.run for one in sort_by_time(runs)] == ["1", "2", "3"]
    mixed = [parse_minimal_record(record(run)) for run in (3, "b", 1)]
    assert [one.run for one in sort_by_time(mixed)] == ["3", "b", "1"]
    times = [build_evidence(msgspec.structs.replace(run_of(), id=str(at), started_at=at)) for at in (5.0, 4.0)]
    assert [one.run for one in sort_by_time(times)] == ["4.0", "5.0"]


def test_a_run_tells_its_scatter_from_its_requests_as_they_were_sent():
    samples = [sample(number, sent=2000 * number, step=10 + number // 4) for number in range(20)]
    run = run_of(*samples)
    expected = estimate_scatter([math.log(10 + number // 4) for number in range(20)], in_time_order=True)
    for shuffled in (samples, samples[::-1], samples[7:] + samples[:7]):
        found = build_evidence(msgspec.structs.replace(run, samples=tuple(shuffled)))
        assert found.estimate_scatter(POLICIES["tps"]) == pytest.approx(expected)
        assert found.estimate_scatter(POLICIES["ttft"]) == 0.0


def test_only_the_usual_value_of_requests_has_a_scatter():
    found = build_evidence(run_of(*[sample(number, sent=2000 * number, step=10 + number) for number in range(20)]))
    assert found.estimate_scatter(POLICIES["tps"]) > 0.0
    assert [found.estimate_scatter(POLICIES[name]) for name in ("throughput", "latency.p95", "load_time", "queue")] == [
        0.0
    ] * 4
