import random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_makers import MS, failure, one_after_another, run_of, sample, slower

from pytest_ollama_perf.metrics import per_request
from pytest_ollama_perf.metrics.summary import summarise


def test_the_interval_of_a_median_of_twenty_runs_from_the_6th_to_the_15th():
    assert per_request.compute_quantile_interval(np.arange(1.0, 21.0), 0.5) == (6.0, 15.0)


def test_a_p95_needs_enough_requests_for_an_interval():
    assert per_request.compute_quantile_interval(np.arange(20.0), 0.95) is None
    assert per_request.compute_quantile_interval(np.arange(71.0), 0.95) is None
    assert per_request.compute_quantile_interval(np.arange(72.0), 0.95) == (63.0, 71.0)
    assert per_request.compute_quantile_interval(np.arange(1.0, 101.0), 0.95) == (90.0, 100.0)


@pytest.mark.parametrize(
    ("failures", "n", "low", "high"),
    [(0, 20, 0.0, 0.1684), (1, 20, 0.0013, 0.2487), (10, 20, 0.2720, 0.7280), (20, 20, 0.8316, 1.0)],
)
def test_the_interval_of_an_error_rate_is_exact(failures, n, low, high):
    assert per_request.compute_share_interval(failures, n) == pytest.approx((low, high), abs=1e-4)


def test_three_requests_get_a_t_interval():
    # mean 2, sd 1, t(2, .975) = 4.3027: 2 +- 4.3027 / sqrt(3), cut at 0.
    assert per_request.compute_ratio_interval(np.array([1.0, 2.0, 3.0]), np.ones(3)) == pytest.approx(
        (0.0, 4.4841), abs=1e-4
    )
    assert per_request.compute_ratio_interval(np.array([1.0]), np.ones(1)) is None


def test_equal_requests_have_an_interval_that_holds_their_value():
    for found in summarise(run_of(*one_after_another(20))).metrics.values():
        for stat, (low, high) in found.ci.items():
            value = found.get("" if stat == "value" else stat)
            assert low <= value <= high


def test_a_metric_with_a_failure_has_no_interval_of_its_mean():
    found = summarise(run_of(*one_after_another(20), failure(20, sent=4000))).metrics["ttft"]
    assert "mean" not in found.ci
    assert found.ci["p50"] == (0.1, 0.1)


@pytest.mark.parametrize("n", [5, 20, 60])
def test_intervals_of_a_pooled_rate_cover_the_truth_as_often_as_they_say(n):
    chance = np.random.default_rng(7)
    covered = 0
    for _ in range(400):
        took = np.exp(chance.normal(0.0, 0.1, n))
        low, high = per_request.compute_ratio_interval(np.ones(n), took)
        covered += low <= np.exp(-0.005) <= high
    assert 0.92 <= covered / 400 <= 0.985


def test_intervals_of_a_median_cover_the_truth_as_often_as_they_say():
    chance = np.random.default_rng(7)
    drawn = (np.sort(chance.exponential(size=30)) for _ in range(400))
    covered = sum(
        low <= np.log(2) <= high for low, high in (per_request.compute_quantile_interval(one, 0.5) for one in drawn)
    )
    assert 0.94 <= covered / 400 <= 0.99


def test_the_linearised_interval_takes_over_where_the_bootstrap_ends_without_a_jump():
    took = np.exp(np.random.default_rng(7).normal(0.0, 0.1, 501))
    sampled, linear = (
        per_request.compute_ratio_interval(np.ones(500), took[:500]),
        per_request.compute_ratio_interval(np.ones(501), took),
    )
    assert sampled == pytest.approx(linear, rel=0.003)


def test_an_open_loop_has_an_interval_from_equal_parts_of_its_time():
    arrivals = [sample(at, sent=at * 100, scheduled_ns=at * 100 * MS) for at in range(40)]
    found = summarise(run_of(*arrivals)).metrics
    for name in ("throughput", "qps"):
        low, high = found[name].ci["value"]
        assert 0.5 * found[name].value < low <= found[name].value <= high < 1.5 * found[name].value
    assert "value" not in summarise(run_of(*arrivals[:19])).metrics["qps"].ci


def test_the_throughput_of_a_closed_loop_has_the_interval_of_its_requests():
    # Requests of 200 and 300 ms in turn: 250 ms on average, sd 51, so about 10 % either way for 20 of them.
    sent, samples = 0, []
    for at in range(20):
        samples.append(sample(at, sent=sent, ttft=100 + at % 2 * 100))
        sent += 200 + at % 2 * 100
    found = summarise(run_of(*samples)).metrics["throughput"]
    assert found.value == pytest.approx(44.0)
    assert found.ci["value"] == pytest.approx((40.3, 48.5), abs=0.5)


def test_gaps_of_one_stream_do_not_count_as_independent():
    # Thirty streams, each with a pace of its own, 200 equal gaps in each: the evidence is thirty, not six thousand.
    chance = np.random.default_rng(7)
    covered = 0
    for _ in range(200):
        found, owner = np.repeat(chance.exponential(size=30), 200), np.repeat(np.arange(30), 200)
        median = per_request.compute_quantile(np.sort(found), 0.5)
        low, high = per_request.compute_clustered_interval(found, owner, median)
        covered += low <= np.log(2) <= high
    assert 0.9 <= covered / 200 <= 0.99


REQUESTS = st.builds(
    dict,
    ttft=st.integers(1, 500),
    tokens=st.integers(2, 8),
    step=st.integers(1, 50),
    queue=st.integers(0, 50),
    sent=st.integers(0, 2000),
    client=st.integers(0, 2),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(REQUESTS, st.none()), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_the_requests_is_irrelevant(requests, chance: random.Random):
    samples = [sample(at, **one) if one else failure(at, sent=at) for at, one in enumerate(requests)]
    shuffled = chance.sample(samples, len(samples))
    assert summarise(run_of(*samples)) == summarise(run_of(*shuffled))


@settings(max_examples=40, deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=12))
def test_ten_times_slower_changes_nothing_but_the_scale(requests):
    samples = [sample(at, **one) for at, one in enumerate(requests)]
    before = summarise(run_of(*samples)).metrics
    after = summarise(run_of(*(slower(one, 10) for one in samples))).metrics
    assert set(before) == set(after)
    for name, found in before.items():
        factor = 10 if found.unit == "s" else 0.1 if found.better == "higher" else 1
        expected = {stat: value * factor for stat, value in found.stats.items()}
        assert after[name].stats == pytest.approx(expected, rel=1e-9)
        # A token on the border of a tenth of the window may fall on either side.
        for stat, ends in found.ci.items():
            assert after[name].ci[stat] == pytest.approx(tuple(end * factor for end in ends), rel=1e-6)


def test_a_summary_can_be_sent_and_read_back():
    summary = summarise(run_of(*one_after_another(20)))
    assert msgspec.json.decode(msgspec.json.encode(summary), type=type(summary)) == summary


def test_the_ends_of_intervals_are_plain_numbers():
    found, owner = np.arange(100.0), np.repeat(np.arange(20), 5)
    ends = per_request.compute_clustered_interval(found, owner, per_request.compute_quantile(found, 0.5))
    assert [type(end) for end in ends] == [float, float]
