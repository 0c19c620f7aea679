import math

import numpy as np
import pytest

from pytest_ollama_perf.verdict.gate import Rule, fit
from pytest_ollama_perf.verdict.trend import Point, trend

RULE = Rule(margin=0.05, prior_sd=0.02)
REFERENCE = [0.02, -0.02] * 10
DAY = 86_400.0


def points(*costs):
    return [Point(day * DAY, cost) for day, cost in enumerate((*REFERENCE, *costs))]


def sd():
    return fit(REFERENCE, RULE).sd


def test_before_the_reference_is_whole_there_is_no_trend():
    found = trend(points()[:13], RULE)
    assert (found.warns, found.missing, found.sums) == (False, 7, ())
    assert trend([], RULE).missing == 20


def test_right_after_the_reference_nothing_has_happened():
    assert trend(points(), RULE).missing == 0
    assert not trend(points(), RULE).warns


def test_the_sum_grows_by_what_exceeds_one_deviation_and_never_falls_below_zero():
    s = sd()
    found = trend(points(1.5 * s, 1.25 * s, 0.0, -5 * s, 2 * s), RULE)
    assert found.sums == pytest.approx((0.5, 0.75, 0.0, 0.0, 1.0), abs=1e-9)


def test_one_bad_run_counts_for_two_deviations_at_most():
    assert trend(points(math.inf), RULE).sums == trend(points(1.0), RULE).sums == (1.0,)


def test_seven_slow_runs_warn_with_the_start_date_and_the_slowdown():
    s = sd()
    found = trend(points(0.0, *[3 * s] * 6), RULE)
    assert (found.warns, found.sums[-1]) == (False, 6.0)
    found = trend(points(0.0, *[3 * s] * 7), RULE)
    assert found.warns
    assert found.since == 21 * DAY
    assert found.slowdown == pytest.approx(math.expm1(3 * s))


def test_a_steady_machine_is_followed_without_a_warning():
    found = trend(points(*REFERENCE * 5), RULE)
    assert not found.warns
    assert len(found.sums) == 100


def test_runs_without_data_are_passed_over():
    with_gaps = points(math.nan, 0.05, math.nan, 0.05)
    assert trend(with_gaps, RULE).sums == trend(points(0.05, 0.05), RULE).sums


def test_drift_of_one_percent_a_week_is_found_where_every_single_run_would_pass():
    rng = np.random.default_rng(5)
    weeks = []
    for _ in range(40):
        costs = rng.normal(0, 0.016, 20 + 10 * 14)
        costs[20:] += 0.01 * np.arange(140) / 14
        sums = trend([Point(float(at), cost) for at, cost in enumerate(costs.tolist())], RULE).sums
        weeks.append(next(run for run, total in enumerate(sums) if total > 6.0) / 14)
    assert np.mean(weeks) < 3.3


def test_without_drift_half_a_year_passes_without_a_warning():
    rng = np.random.default_rng(6)
    warned = 0
    for _ in range(40):
        costs = rng.normal(0, 0.016, 20 + 26 * 14).tolist()
        warned += any(total > 6.0 for total in trend([Point(0.0, cost) for cost in costs], RULE).sums)
    assert warned <= 3
