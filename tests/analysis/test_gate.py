import dataclasses
import math
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from pytest_ollama_perf.analysis.gate import TWO_MODES_NOTE, GateRule, fit_baseline, get_mad_bias, judge_runs
from pytest_ollama_perf.analysis.gate_parameters import GATE_PARAMETERS, GateParameters
from pytest_ollama_perf.core.verdict import VerdictStatus

RULE = GateRule(margin=0.05, prior_sd=0.02)
FOUR = [-0.01, 0.01, -0.01, 0.01]
FOUR_SD = math.sqrt((3 * 0.02**2 + 4 * 0.01**2) / 6)
costs = st.floats(-0.3, 0.3)
histories = st.lists(costs, min_size=1, max_size=25)
candidates = st.lists(costs, min_size=1, max_size=3)


def steady(count, sd=0.01, seed=1):
    """A history of exactly mean 0 and standard deviation ``sd``, without outliers."""
    values = np.random.default_rng(seed).uniform(-1, 1, count)
    values -= values.mean()
    return (sd * values / values.std(ddof=1)).tolist()


def test_the_numbers_are_those_of_the_moderated_prediction_interval():
    found = judge_runs(FOUR, [0.06, 0.04], RULE)
    se = FOUR_SD * math.sqrt(1 / 2 + 1 / 4)
    assert (found.d, found.df) == (pytest.approx(0.05), 6)
    assert found.se == pytest.approx(se)
    assert found.p == pytest.approx(t.sf(0.05 / se, 6))
    assert found.change == pytest.approx(math.expm1(0.05))
    assert found.low == pytest.approx(math.expm1(0.05 - t.ppf(0.975, 6) * se))
    assert found.high == pytest.approx(math.expm1(0.05 + t.ppf(0.975, 6) * se))
    assert found.detectable == pytest.approx(math.expm1((t.ppf(0.99, 6) + t.ppf(0.80, 6)) * se))


def test_runs_that_differ_more_than_is_usual_share_the_excess_within_a_build():
    history = steady(10, sd=0.06)
    variance = (3 * 0.02**2 + 9 * 0.06**2) / 12
    shared = variance - (1.2 * 0.02) ** 2
    found = [judge_runs(history, [0.10] * runs, RULE) for runs in (1, 2, 3)]
    for runs, one in enumerate(found, 1):
        assert one.se == pytest.approx(math.sqrt((variance - shared) / runs + shared + variance / 10))
    assert found[2].p > 0.01 > t.sf(0.10 / math.sqrt(variance * (1 / 3 + 1 / 10)), 12)
    assert found[2].status is VerdictStatus.UNSURE


def test_runs_that_differ_as_is_usual_count_one_by_one():
    for sd in (0.001, 0.02, 0.023):
        found = judge_runs(steady(10, sd=sd), [0.05] * 3, RULE)
        assert found.se == pytest.approx(found.baseline.sd * math.sqrt(1 / 3 + 1 / 10))


def test_shared_variance_does_not_explain_two_and_a_half_margins():
    history, limit = steady(10, sd=0.057), math.log(1.05)
    below, above = (judge_runs(history, [share * limit] * 3, RULE) for share in (2.49, 2.51))
    assert above.se == pytest.approx(above.baseline.sd * math.sqrt(1 / 3 + 1 / 10))
    assert below.se > 1.3 * above.se
    assert (below.status, above.status) == (VerdictStatus.UNSURE, VerdictStatus.REGRESSED)
    assert math.log1p(above.detectable) == pytest.approx(2.5 * limit)


def test_shared_variance_explains_a_difference_up_to_twice_its_deviation():
    history, limit = steady(20, sd=0.09), math.log(1.05)
    shared_sd = fit_baseline(history, RULE).shared_sd
    assert 2.0 * shared_sd > 2.5 * limit
    below, above = (judge_runs(history, [share * shared_sd] * 3, RULE) for share in (1.99, 2.01))
    assert below.se == pytest.approx(below.baseline.compute_shared_se(3))
    assert above.se == pytest.approx(above.baseline.compute_independent_se(3))
    assert (below.status, above.status) == (VerdictStatus.UNSURE, VerdictStatus.REGRESSED)
    shown = (t.ppf(0.99, 22) + t.ppf(0.80, 22)) * above.se
    assert math.log1p(above.detectable) == pytest.approx(max(2.0 * shared_sd, shown))


def test_the_scatter_of_requests_is_the_least_deviation_that_is_expected():
    history, rule = steady(10, sd=0.01), GateRule(margin=0.05, prior_sd=0.02, scatter=0.05)
    found = fit_baseline(history, rule)
    assert found.sd == pytest.approx(math.sqrt((3 * 0.05**2 + 9 * 0.01**2) / 12))
    assert found.shared_sd == pytest.approx(math.sqrt(found.sd**2 - 0.024**2))
    little = GateRule(margin=0.05, prior_sd=0.02, scatter=0.019)
    assert fit_baseline(history, little) == fit_baseline(history, RULE)


def test_shared_variance_within_one_run_explains_any_difference():
    history = steady(10, sd=0.04)
    rule = GateRule(margin=0.05, prior_sd=0.02, scatter=0.025)
    assert fit_baseline(history, RULE).shared_sd > 0.02
    for rule_of, shared in ((RULE, False), (rule, True)):
        found = judge_runs(history, [0.30] * 3, rule_of)
        fit = found.baseline
        assert found.se == pytest.approx(fit.compute_shared_se(3) if shared else fit.compute_independent_se(3))


@pytest.mark.parametrize(("difference", "suspect"), [(-0.2, False), (0.024, False), (0.025, True), (math.inf, True)])
def test_a_build_is_suspect_from_half_the_margin(difference, suspect):
    assert judge_runs(steady(10), [difference], RULE).suspect is suspect


def test_shared_variance_does_not_delay_ok():
    history = steady(20, sd=0.028)
    found = judge_runs(history, [0.0] * 3, RULE)
    assert found.baseline.shared_sd > 0.01
    assert t.ppf(0.955, 22) * found.se > math.log(1.05) - 0.015
    assert found.status is VerdictStatus.OK


def test_without_a_stored_run_everything_is_new():
    assert judge_runs([], [0.0], RULE).status is VerdictStatus.NEW
    assert judge_runs([math.inf, math.nan], [0.0], RULE).status is VerdictStatus.NEW


def test_an_unchanged_build_is_ok_after_one_run():
    found = judge_runs(steady(10), [0.0], RULE)
    assert (found.status, found.runs, found.again) == (VerdictStatus.OK, 1, False)


def test_a_slow_first_run_asks_for_another():
    found = judge_runs(steady(10), [0.10], RULE)
    assert (found.status, found.again) == (VerdictStatus.UNSURE, True)


def test_a_regression_is_said_after_the_third_run():
    assert [judge_runs(steady(10), [0.10] * runs, RULE).status for runs in (1, 2, 3)] == [
        VerdictStatus.UNSURE,
        VerdictStatus.UNSURE,
        VerdictStatus.REGRESSED,
    ]


def test_a_gross_regression_is_said_after_the_second_run():
    assert [judge_runs(steady(10), [0.30] * runs, RULE).status for runs in (1, 2)] == [
        VerdictStatus.UNSURE,
        VerdictStatus.REGRESSED,
    ]


def test_one_run_that_disagrees_saves_a_build():
    found = judge_runs(steady(10), [0.15, 0.15, 0.0], RULE)
    assert (found.status, found.again) == (VerdictStatus.UNSURE, False)


def test_with_reruns_off_one_run_decides():
    once = GateRule(margin=0.05, prior_sd=0.02, max_runs=1)
    assert judge_runs(steady(10), [0.10], once).status is VerdictStatus.REGRESSED
    assert judge_runs(steady(10), [0.03], once).status is VerdictStatus.UNSURE
    assert not judge_runs(steady(10), [0.03], once).again


def test_a_difference_below_half_the_margin_is_no_news_however_certain():
    certain = GateRule(margin=0.05, prior_sd=0.001)
    history = steady(20, sd=0.001)
    for difference in (-0.0240, 0.0240):
        found = judge_runs(history, [difference] * 3, certain)
        assert found.status is VerdictStatus.OK
        assert abs(found.d / found.se) > 10
    assert judge_runs(history, [-0.0250] * 3, certain).status is VerdictStatus.FASTER


def test_faster_stops_after_one_run():
    assert judge_runs(steady(10), [-0.10], RULE).status is VerdictStatus.FASTER


def test_alpha_can_only_be_made_stricter():
    history, runs = steady(10, sd=0.02), [0.052, 0.05, 0.051]
    p = judge_runs(history, runs, RULE).p
    assert p < 0.01
    assert judge_runs(history, runs, RULE, alpha=1.0).status is VerdictStatus.REGRESSED
    assert judge_runs(history, runs, RULE, alpha=p / 2).status is VerdictStatus.UNSURE
    weak = [0.04, 0.035, 0.036]
    assert judge_runs(steady(4, sd=0.03), weak, RULE, alpha=0.9).status is VerdictStatus.UNSURE


def test_the_newest_twenty_stored_runs_count():
    assert fit_baseline([9.0] * 5 + [0.0] * 20, RULE).mean == 0.0


def test_an_outlier_in_the_history_is_left_out_and_named():
    found = fit_baseline([*steady(9), 0.15], RULE)
    assert found.dropped == (0.15,)
    assert found.notes == ("1 of 10 stored runs excluded as outliers",)


def test_in_a_very_quiet_history_three_percent_are_no_outlier():
    assert fit_baseline([*steady(9, sd=0.0001), 0.034], RULE).dropped == ()
    assert fit_baseline([*steady(9, sd=0.0001), 0.036], RULE).dropped == (0.036,)


def test_below_five_stored_runs_nothing_is_left_out():
    assert fit_baseline([0.0, 0.0, 0.0, 0.5], RULE).dropped == ()


def test_two_modes_are_kept_and_named():
    found = fit_baseline([*steady(7, sd=0.001), 0.1, 0.1, 0.1], RULE)
    assert (len(found.kept), found.dropped, found.notes) == (10, (), (TWO_MODES_NOTE,))


def test_equal_stored_runs_do_not_make_the_gate_certain():
    found = judge_runs([1.0] * 8, [1.03], RULE)
    assert found.se == pytest.approx(math.sqrt(3 * 0.02**2 / 10 * (1 + 1 / 8)))


def test_the_bias_of_the_mad_is_as_simulated():
    draws = np.random.default_rng(3).normal(size=(20_000, 20))
    for count in (5, 6, 8, 10, 15, 20):
        some = draws[:, :count]
        mads = np.median(abs(some - np.median(some, axis=1, keepdims=True)), axis=1)
        assert 1.4826 * np.median(mads) == pytest.approx(get_mad_bias(count), abs=0.015)


@pytest.mark.parametrize(("stored", "note"), [(1, "20 %"), (2, "10 %")])
def test_one_and_two_stored_runs_say_what_they_can_decide(stored, note):
    found = judge_runs([0.0] * stored, [0.0] * 3, RULE)
    assert any(note in one for one in found.notes)


def test_one_stored_run_decides_a_fifth_and_two_a_tenth():
    assert judge_runs([0.0], [math.log(1.05)] * 3, RULE).status is VerdictStatus.UNSURE
    assert judge_runs([0.0], [math.log(1.20)] * 3, RULE).status is VerdictStatus.REGRESSED
    assert judge_runs([0.0] * 2, [math.log(1.10)] * 3, RULE).status is VerdictStatus.REGRESSED


def test_runs_that_failed_regress_after_the_second():
    assert judge_runs(steady(10), [math.inf], RULE).status is VerdictStatus.UNSURE
    found = judge_runs(steady(10), [math.inf] * 2, RULE)
    assert (found.status, found.change, found.p) == (VerdictStatus.REGRESSED, math.inf, 0.0)
    assert judge_runs(steady(10), [0.0, math.inf, 0.0], RULE).status is VerdictStatus.UNSURE


def test_a_failed_stored_run_is_no_baseline():
    assert judge_runs([*steady(6), math.inf, math.nan], [0.0], RULE) == judge_runs(steady(6), [0.0], RULE)


@pytest.mark.parametrize("runs", [[], [math.nan], [0.0, math.nan], [math.nan, math.inf]])
@pytest.mark.parametrize("history", [[], steady(10)])
def test_a_candidate_without_data_is_never_ok(history, runs):
    assert judge_runs(history, runs, RULE).status is VerdictStatus.UNSURE


def test_an_unsure_verdict_says_how_many_runs_would_settle_it():
    history = [0.0, 0.0]
    settled = [
        runs for runs in range(1, 21) if judge_runs(history, [0.012] * runs, RULE).status is not VerdictStatus.UNSURE
    ]
    found = judge_runs(history, [0.012], RULE)
    assert settled[0] > 2
    assert (found.status, found.more_runs, found.more_stored) == (VerdictStatus.UNSURE, settled[0], None)


def test_where_no_candidate_runs_would_settle_it_stored_runs_are_asked_for():
    found = judge_runs([0.0], [0.02] * 3, RULE)
    assert (found.status, found.more_runs, found.more_stored) == (VerdictStatus.UNSURE, None, 5)
    reach = {stored: t.ppf(0.955, 2 + stored) * 0.02 * math.sqrt(1 / 3 + 1 / stored) for stored in (4, 5)}
    assert 0.02 + reach[5] < math.log(1.05) < 0.02 + reach[4]


@pytest.mark.parametrize("wrong", [{"margin": -0.1}, {"prior_sd": 0.0}, {"max_runs": 0}, {"scatter": -0.1}])
def test_an_impossible_rule_is_refused(wrong):
    with pytest.raises(ValueError, match="prior_sd above 0"):
        GateRule(**{"margin": 0.05, "prior_sd": 0.02} | wrong)


@pytest.mark.parametrize("wrong", [{"alpha": 1.0}, {"beta": 0.0}, {"prior_df": 0.0}, {"window": 0}])
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match="between 0 and 1, everything else above 0"):
        GateParameters(**wrong)


def test_every_parameter_is_described():
    described = GATE_PARAMETERS.describe()
    assert [each.name for each in described] == [each.name for each in dataclasses.fields(GateParameters)]
    assert all(each.meaning and each.origin for each in described)


def test_other_parameters_change_the_verdict():
    history, slow = steady(10), [0.10, 0.10]
    eager = GateRule(margin=0.05, prior_sd=0.02, parameters=GateParameters(gross_margins=1.0))
    assert judge_runs(history, slow, RULE).status is VerdictStatus.UNSURE
    assert judge_runs(history, slow, eager).status is VerdictStatus.REGRESSED


@given(histories, candidates)
def test_the_same_input_gives_the_same_verdict(history, runs):
    assert judge_runs(history, runs, RULE) == judge_runs(list(history), list(runs), RULE)


@given(histories, candidates, st.randoms(use_true_random=False))
def test_the_order_of_the_runs_in_the_window_is_irrelevant(history, runs, random):
    window = history[-20:]
    shuffled = random.sample(window, len(window))
    assert judge_runs(shuffled, runs[::-1], RULE).status is judge_runs(window, runs, RULE).status


@given(histories, candidates, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_more_margin_never_turns_ok_into_regressed(history, runs, one, other):
    narrow, wide = sorted((one, other))
    if judge_runs(history, runs, GateRule(narrow, 0.02)).status is VerdictStatus.OK:
        assert judge_runs(history, runs, GateRule(wide, 0.02)).status is not VerdictStatus.REGRESSED


@given(histories, candidates, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_more_margin_never_makes_a_regression(history, runs, one, other):
    narrow, wide = sorted((one, other))
    if judge_runs(history, runs, GateRule(wide, 0.02)).status is VerdictStatus.REGRESSED:
        assert judge_runs(history, runs, GateRule(narrow, 0.02)).status is VerdictStatus.REGRESSED


any_cost = st.floats(-745, 745) | st.just(math.inf) | st.just(math.nan)


@given(st.lists(any_cost, max_size=25), st.lists(any_cost, max_size=4))
def test_no_costs_break_the_gate(history, runs):
    found = judge_runs(history, runs, RULE)
    assert found.status in VerdictStatus
    if found.status in {VerdictStatus.OK, VerdictStatus.FASTER, VerdictStatus.REGRESSED}:
        assert 0.0 <= found.p <= 1.0


@given(histories, candidates, st.floats(0.0, 0.3))
def test_slower_candidates_never_turn_regressed_into_ok(history, runs, slower):
    if judge_runs(history, runs, RULE).status is VerdictStatus.REGRESSED:
        assert judge_runs(history, [run + slower for run in runs], RULE).status is VerdictStatus.REGRESSED


def test_one_slow_run_in_the_history_costs_little_power():
    random = Random(7)
    caught = {False: 0, True: 0}
    for _ in range(400):
        history = [random.gauss(0.0, 0.016) for _ in range(10)]
        runs = [random.gauss(math.log(1.10), 0.016) for _ in range(3)]
        for slow in caught:
            stored = [history[0] + 0.12, *history[1:]] if slow else history
            caught[slow] += judge_runs(stored, runs, RULE).status is VerdictStatus.REGRESSED
    assert caught[False] >= 392
    assert caught[False] - caught[True] < 0.05 * 400
