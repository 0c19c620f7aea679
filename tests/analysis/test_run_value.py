import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import trim_mean
from scipy.stats.mstats import hdquantiles

from pytest_ollama_perf.analysis.run_value import (
    GATING_METRICS,
    POLICIES,
    compute_run_value,
    estimate_scatter,
    get_policy,
    to_change,
    to_cost,
    to_value,
)
from pytest_ollama_perf.core import ConfigError

TPS, TTFT, P95 = POLICIES["tps"], POLICIES["ttft"], POLICIES["latency.p95"]
times = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=60)


def test_the_cost_of_a_rate_is_minus_its_logarithm_and_of_a_time_its_logarithm():
    assert to_cost(TPS, math.e) == -1.0
    assert to_cost(TTFT, math.e) == 1.0


@pytest.mark.parametrize(("metric", "shown"), [(TPS, 0.0), (TPS, -3.0), (TPS, math.inf), (TPS, math.nan)])
def test_a_rate_that_no_success_can_show_is_infinitely_bad(metric, shown):
    assert to_cost(metric, shown) == math.inf


@pytest.mark.parametrize("shown", [0.0, -1.0, math.inf, math.nan])
def test_a_time_that_no_success_can_show_is_infinitely_bad(shown):
    assert to_cost(TTFT, shown) == math.inf


def test_a_queue_shorter_than_ten_milliseconds_is_no_queue():
    assert to_cost(POLICIES["queue"], 0.0) == to_cost(POLICIES["queue"], 0.009) == math.log(0.010)
    assert to_cost(POLICIES["queue"], 0.020) == math.log(0.020)
    assert to_cost(POLICIES["queue"], math.nan) == math.inf


def test_values_and_changes_are_in_the_metrics_own_terms():
    assert to_value(TPS, to_cost(TPS, 84.0)) == pytest.approx(84.0)
    assert to_value(TTFT, math.inf) == math.inf
    assert to_value(TPS, math.inf) == 0.0
    assert to_change(TPS, math.log(1.25)) == pytest.approx(-0.20)
    assert to_change(TTFT, math.log(1.25)) == pytest.approx(0.25)


@given(times)
def test_a_run_of_times_is_scipys_trimmed_mean_of_their_logarithms(values):
    assert compute_run_value(TTFT, values) == pytest.approx(trim_mean(np.log(values), 0.2), abs=1e-12)


@given(times.filter(lambda values: len(values) > 1))
def test_a_percentile_is_scipys_harrell_davis_quantile(values):
    expected = float(hdquantiles(np.log(values), [0.95])[0])
    assert compute_run_value(P95, values) == pytest.approx(expected, abs=1e-9)


def test_stragglers_up_to_one_in_five_do_not_move_a_run():
    assert compute_run_value(TTFT, [0.1] * 8 + [5.0] * 2) == pytest.approx(math.log(0.1))


def test_a_run_without_requests_has_no_value():
    assert math.isnan(compute_run_value(TTFT, []))
    assert math.isnan(compute_run_value(P95, []))


def test_more_than_one_failed_request_in_five_makes_a_run_infinitely_bad():
    assert compute_run_value(TTFT, [0.1] * 8 + [math.inf] * 2) == pytest.approx(math.log(0.1))
    assert compute_run_value(TTFT, [0.1] * 7 + [math.inf] * 3) == math.inf
    assert compute_run_value(TPS, [80.0] * 7 + [0.0] * 3) == math.inf


@given(times, st.data())
def test_a_failure_never_makes_a_run_look_better(values, data):
    failed = data.draw(st.sets(st.integers(0, len(values) - 1)))
    with_failures = [math.inf if index in failed else value for index, value in enumerate(values)]
    assert compute_run_value(TTFT, with_failures) >= compute_run_value(TTFT, values) - 1e-12


def test_a_percentile_is_infinite_where_failures_carry_it():
    assert compute_run_value(P95, [0.1] * 19 + [math.inf]) == math.inf
    assert compute_run_value(POLICIES["latency.p50"], [0.1] * 19 + [math.inf]) == pytest.approx(math.log(0.1))
    assert compute_run_value(P95, [math.inf] * 3) == math.inf


@given(times, st.randoms(use_true_random=False))
def test_the_order_of_requests_is_irrelevant(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    for one in (TPS, TTFT, P95):
        assert compute_run_value(one, shuffled) == compute_run_value(one, values)


def test_the_scatter_of_requests_in_time_order_is_that_of_five_batches():
    costs = [level + small for level in (0.0, 0.1, -0.1, 0.2, 0.0) for small in (0.0, 0.01, -0.01, 0.0)]
    expected = np.std([0.0, 0.1, -0.1, 0.2, 0.0], ddof=1) / math.sqrt(5)
    assert estimate_scatter(costs, in_time_order=True) == pytest.approx(expected)
    assert estimate_scatter([*costs, math.inf], in_time_order=True) == pytest.approx(expected)


def test_the_scatter_of_requests_in_no_order_is_that_of_their_winsorized_mean():
    costs = [0.3, 0.0, 0.1, -5.0, 0.2]
    expected = np.std([0.0, 0.0, 0.1, 0.2, 0.2], ddof=1) / (0.6 * math.sqrt(5))
    assert estimate_scatter(costs, in_time_order=False) == pytest.approx(expected)
    assert estimate_scatter(costs[::-1], in_time_order=True) == pytest.approx(expected)


def test_requests_too_few_to_tell_have_no_scatter():
    for costs in ([], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0, math.inf]):
        assert estimate_scatter(costs, in_time_order=False) == 0.0


def test_the_batches_of_independent_requests_tell_the_standard_error():
    draws = np.random.default_rng(5).normal(size=(2000, 50))
    by_batch, by_request = (
        math.sqrt(np.mean([estimate_scatter(row, in_time_order=order) ** 2 for row in draws]))
        for order in (True, False)
    )
    true = np.std([compute_run_value(TTFT, np.exp(row)) for row in draws])
    assert by_batch == pytest.approx(true, rel=0.1)
    assert by_request == pytest.approx(true, rel=0.1)


def test_margins_priors_and_least_requests_are_those_of_the_method():
    assert GATING_METRICS == ("tps", "ttft")
    expected = {
        "tps": (0.05, 0.02, 1),
        "latency": (0.05, 0.02, 1),
        "throughput": (0.10, 0.03, 50),
        "ttft": (0.20, 0.05, 1),
        "ttft.p90": (0.25, 0.05, 50),
        "latency.p95": (0.25, 0.05, 200),
    }
    assert {
        name: (one.margin, one.prior_sd, one.least_requests) for name in expected for one in [get_policy(name)]
    } == expected


def test_too_few_requests_are_refused_with_the_number_it_takes():
    assert P95.explain_refusal(200) == ""
    assert P95.explain_refusal(199) == "latency.p95 cannot gate on 199 requests a run: it needs 200"


@pytest.mark.parametrize("name", ["error_rate", "ttft.mean", "throughput.p95", "tsp", ""])
def test_what_has_no_history_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=f"no history is kept of {name!r}; valid are tps, "):
        get_policy(name)


def test_a_misspelt_metric_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean 'ttft\.p95'"):
        get_policy("tttf.p95")
