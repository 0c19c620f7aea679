"""The arithmetic of an A/A campaign, held to numbers worked out by hand, by scipy, and by simulation."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pytest_ollama_perf.analysis.gate import GateRule, judge_runs
from pytest_ollama_perf.analysis.noise import find_noise_problems, measure_noise
from pytest_ollama_perf.analysis.run_value import POLICIES

TPS, TTFT, LATENCY = POLICIES["tps"], POLICIES["ttft"], POLICIES["latency"]
STEADY = (0.00, 0.02, -0.01, 0.01, -0.02, 0.015, -0.015, 0.005)


def names(policy, costs):
    return [problem.name for problem in find_noise_problems([measure_noise(policy, costs)])]


def test_the_deviation_between_runs_is_that_of_a_sample_with_its_chi_squared_interval():
    found = measure_noise(TPS, [0.00, 0.02, 0.04])
    assert found.sd == pytest.approx(0.02)
    assert found.low == pytest.approx(0.02 * math.sqrt(2 / stats.chi2.ppf(0.975, 2)))
    assert found.high == pytest.approx(0.02 * math.sqrt(2 / stats.chi2.ppf(0.025, 2)))
    assert found.sd_factor == pytest.approx(found.high / found.sd)


def test_what_is_typical_is_in_the_unit_of_the_metric():
    assert measure_noise(TPS, [-math.log(80.0)] * 3).typical == pytest.approx(80.0)
    assert measure_noise(TTFT, [math.log(0.2)] * 3).typical == pytest.approx(0.2)


def test_what_can_be_detected_is_what_the_gate_says_of_runs_against_this_history():
    found = measure_noise(TPS, STEADY)
    for runs, share in enumerate(found.detectable, start=1):
        assert share == judge_runs(STEADY, [0.0] * runs, GateRule.from_policy(TPS)).detectable
    assert found.detectable[0] > found.detectable[1] > found.detectable[2]


def test_the_smallest_margin_is_the_next_whole_percent_above_what_three_runs_show():
    found = measure_noise(TPS, [0.0] * 6)
    # df 8, s = sqrt(3 * 0.02**2 / 8), se = s sqrt(1/3 + 1/6)
    se = math.sqrt(3 * 0.02**2 / 8) * math.sqrt(1 / 3 + 1 / 6)
    shown = math.expm1((stats.t.ppf(0.99, 8) + stats.t.ppf(0.80, 8)) * se)
    assert found.detectable[2] == pytest.approx(shown)
    assert found.margin == math.ceil(100 * shown) / 100
    assert found.is_margin_detectable


@given(st.lists(st.floats(-0.5, 0.5), min_size=3, max_size=25))
def test_a_margin_worth_setting_is_never_below_what_the_machine_can_tell(costs):
    found = measure_noise(TPS, costs)
    assert found.margin >= found.detectable[2] - 1e-9
    assert round(found.margin * 100) == pytest.approx(found.margin * 100)


def test_a_regression_of_the_margin_worth_setting_is_found_about_four_times_in_five():
    chance = random.Random(5)
    caught = 0
    for _ in range(300):
        history = [chance.gauss(0.0, 0.03) for _ in range(10)]
        margin = measure_noise(TPS, history).margin
        slow = [chance.gauss(math.log1p(margin), 0.03) for _ in range(3)]
        caught += judge_runs(history, slow, GateRule.from_policy(TPS, margin)).status.value == "regressed"
    assert 0.65 <= caught / 300 <= 0.95


@pytest.mark.parametrize("sd", [0.01, 0.05])
def test_the_deviation_that_went_in_comes_out(sd):
    chance = random.Random(1)
    assert measure_noise(TPS, [chance.gauss(-4.0, sd) for _ in range(400)]).sd == pytest.approx(sd, rel=0.1)


def test_fewer_than_three_runs_say_nothing_about_noise():
    assert measure_noise(TPS, [0.0, 0.1]) is None
    assert measure_noise(TPS, [0.0, 0.1, math.nan, math.inf]) is None


def test_runs_without_data_and_failed_ones_are_left_out():
    assert measure_noise(TPS, [0.00, math.nan, 0.02, math.inf, 0.04]) == measure_noise(TPS, [0.00, 0.02, 0.04])


def test_a_steady_machine_gives_no_warning():
    assert names(TPS, STEADY) == []


def test_more_noise_than_usual_is_named_with_both_numbers():
    costs = [0.06, -0.05, 0.03, -0.02, 0.00, -0.06, 0.05, 0.01, -0.03, 0.02]
    [problem] = find_noise_problems([measure_noise(TPS, costs)])
    assert problem.text == "tps differs more from run to run than is usual: by 4.1 %, usual is 2 %"
    assert not problem.invalidates


def test_noise_in_which_a_quarter_more_goes_unseen_is_beyond_use():
    [problem] = find_noise_problems([measure_noise(TPS, [0.3, -0.3, 0.2, -0.2, 0.3, -0.25])])
    assert problem.name == "too noisy"
    assert problem.invalidates
    assert problem.text.startswith("tps is too noisy to gate: runs differ by 29 %, and three of them cannot show")


def test_a_metric_that_does_not_gate_by_default_is_never_beyond_use():
    assert "too noisy" not in names(LATENCY, [0.3, -0.3, 0.2, -0.2, 0.3, -0.25])


def test_two_modes_are_told_from_noise():
    found = measure_noise(TPS, [0.000, 0.061, 0.002, 0.059, 0.001, 0.060, 0.003, 0.058])
    assert found.gap == pytest.approx(0.058, abs=0.001)
    assert "two modes" in names(TPS, found.costs)


def test_one_slow_run_is_no_second_mode():
    assert measure_noise(TPS, [0.000, 0.001, 0.002, 0.1, 0.001, 0.000, 0.003]).gap == 0.0


def test_a_drift_is_told_with_its_direction():
    rising = [0.01 * number + wiggle for number, wiggle in enumerate([0.001, -0.001, 0.0, 0.001, -0.001, 0.0])]
    [slower] = [problem for problem in find_noise_problems([measure_noise(TPS, rising)]) if problem.name == "drift"]
    assert slower.text == "tps drifted: 5.1 % slower from the first session to the last"
    [faster] = [
        problem for problem in find_noise_problems([measure_noise(TPS, rising[::-1])]) if problem.name == "drift"
    ]
    assert "faster" in faster.text


def test_sessions_that_resemble_the_one_before_are_told():
    costs = [0.02 * math.sin(2 * math.pi * place / 12) for place in range(24)]
    found = measure_noise(TPS, costs)
    mean = sum(costs) / len(costs)
    products = sum((one - mean) * (two - mean) for one, two in pairwise(costs))
    assert found.autocorrelation == pytest.approx(products / sum((one - mean) ** 2 for one in costs))
    assert "autocorrelation" in names(TPS, costs)


@pytest.mark.parametrize("runs", [6, 10, 20])
def test_unchanged_runs_seldom_look_like_modes_drift_or_echo(runs):
    chance = random.Random(7)
    campaigns = [[chance.gauss(0.0, 0.016) for _ in range(runs)] for _ in range(300)]
    alarms = sum(bool(names(TPS, costs)) for costs in campaigns)
    assert alarms <= 0.05 * len(campaigns)
