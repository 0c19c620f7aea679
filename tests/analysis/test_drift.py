import math

import numpy as np
import pytest

from pytest_ollama_perf.analysis.drift import DriftPoint, detect_drift
from pytest_ollama_perf.analysis.gate import GateRule, fit_baseline

RULE = GateRule(margin=0.05, prior_sd=0.02)
REFERENCE = [0.02, -0.02] * 10
DAY = 86_400.0


def points(*costs):
    return [DriftPoint(day * DAY, cost) for day, cost in enumerate((*REFERENCE, *costs))]


def sd():
    return fit_baseline(REFERENCE, RULE).sd


def test_before_the_reference_is_whole_there_is_no_trend():
    found = detect_drift(points()[:13], RULE)
    assert (found.warns, found.missing, found.sums) == (False, 7, ())
    assert detect_drift([], RULE).missing == 20


def test_right_after_the_reference_nothing_has_happened():
    assert detect_drift(points(), RULE).missing == 0
    assert not detect_drift(points(), RULE).warns


def test_the_sum_grows_by_what_exceeds_one_deviation_and_never_falls_below_zero():
    s = sd()
    found = detect_drift(points(1.5 * s, 1.25 * s, 0.0, -5 * s, 2 * s), RULE)
    assert found.sums == pytest.approx((0.5, 0.75, 0.0, 0.0, 1.0), abs=1e-9)


def test_one_bad_run_counts_for_two_deviations_at_most():
    assert detect_drift(points(math.inf), RULE).sums == detect_drift(points(1.0), RULE).sums == (1.0,)


def test_seven_slow_runs_warn_with_the_start_date_and_the_slowdown():
    s = sd()
    found = detect_drift(points(0.0, *[3 * s] * 6), RULE)
    assert (found.warns, found.sums[-1]) == (False, 6.0)
    found = detect_drift(points(0.0, *[3 * s] * 7), RULE)
    assert found.warns
    assert found.since == 21 * DAY
    assert found.slowdown == pytest.approx(math.expm1(3 * s))


def test_a_steady_machine_is_followed_without_a_warning():
    found = detect_drift(points(*REFERENCE * 5), RULE)
    assert not found.warns
    assert len(found.sums) == 100


def test_runs_without_data_are_passed_over():
    with_gaps = points(math.nan, 0.05, math.nan, 0.05)
    assert detect_drift(with_gaps, RULE).sums == detect_drift(points(0.05, 0.05), RULE).sums


def build_rising(count, step=0.01, noise=0.004, seed=1):
    rng = np.random.default_rng(seed)
    return [
        DriftPoint(run * DAY, cost)
        for run, cost in enumerate((step * np.arange(count) + rng.normal(0, noise, count)).tolist())
    ]


def test_a_reference_that_drifts_itself_warns_long_before_it_is_complete():
    found = detect_drift(build_rising(12), RULE)
    assert found.warns
    assert found.since == 0.0
    assert found.missing == 8
    assert 0.05 < found.slowdown < 0.12
    assert detect_drift(build_rising(40), RULE).slowdown > 0.35
    assert not detect_drift(build_rising(12, step=-0.01), RULE).warns, "faster is no drift"


def test_steady_runs_that_are_too_few_are_undecided():
    assert [detect_drift(points()[:count], RULE).undecided for count in (0, 13, 20)] == [27, 14, 7]
    assert [detect_drift(points(*[0.0] * count), RULE).undecided for count in (6, 7, 30)] == [1, 0, 0]


def test_what_would_have_been_detected_is_two_deviations_of_the_reference():
    assert detect_drift(points(*[0.0] * 7), RULE).detectable == pytest.approx(math.expm1(2 * sd()))
    shifted = detect_drift(points(*[2 * sd()] * 7), RULE)
    assert shifted.warns


def test_independent_runs_rarely_look_like_a_drifting_reference():
    rng = np.random.default_rng(7)
    warned = 0
    for _ in range(1000):
        costs = rng.normal(0, 0.016, 20).tolist()
        early = [detect_drift([DriftPoint(0.0, cost) for cost in costs[:count]], RULE) for count in range(8, 21)]
        warned += any(found.warns for found in early)
    assert warned <= 10


def test_drift_of_one_percent_a_week_is_found_where_every_single_run_would_pass():
    rng = np.random.default_rng(5)
    weeks = []
    for _ in range(40):
        costs = rng.normal(0, 0.016, 20 + 10 * 14)
        costs[20:] += 0.01 * np.arange(140) / 14
        sums = detect_drift([DriftPoint(float(at), cost) for at, cost in enumerate(costs.tolist())], RULE).sums
        weeks.append(next(run for run, total in enumerate(sums) if total > 6.0) / 14)
    assert np.mean(weeks) < 3.3


def test_without_drift_half_a_year_passes_without_a_warning():
    rng = np.random.default_rng(6)
    warned = 0
    for _ in range(40):
        costs = rng.normal(0, 0.016, 20 + 26 * 14).tolist()
        warned += any(total > 6.0 for total in detect_drift([DriftPoint(0.0, cost) for cost in costs], RULE).sums)
    assert warned <= 3
