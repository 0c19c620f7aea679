import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ollama_perf.analysis.gate import ErrorBudget, compute_holm_levels
from pytest_ollama_perf.analysis.gate_parameters import GATE_PARAMETERS

p_values = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=40)


def test_few_pairs_share_nothing_and_many_share_the_family_level():
    assert ErrorBudget(0).alpha == ErrorBudget(1).alpha == ErrorBudget(3).alpha == 0.01
    assert ErrorBudget(20).alpha == pytest.approx(0.0015)


def test_every_regression_leaves_more_to_the_others():
    assert ErrorBudget(20).spend(0).alpha == ErrorBudget(20).alpha
    assert ErrorBudget(20).spend(1).spend(2).alpha == pytest.approx(0.03 / 17)
    assert ErrorBudget(2).spend(5).alpha == 0.01


def test_holm_by_hand():
    levels = compute_holm_levels([0.5, 0.001, 0.004, 0.3, 0.02, 0.7, 0.9, 0.8])
    assert levels == pytest.approx((0.03 / 4, 0.03 / 8, 0.03 / 7, 0.03 / 5, 0.03 / 6, 0.01, 0.01, 0.01))
    assert [level > 0.0045 for level in compute_holm_levels([0.5, 0.001, 0.0045])] == [True, True, True]
    assert compute_holm_levels([0.5, 0.001, 0.0045, 0.3, 0.02, 0.7, 0.9, 0.8])[2] == pytest.approx(0.03 / 7)
    assert compute_holm_levels([]) == ()


def test_behind_the_first_that_fails_nothing_passes():
    values = [0.006] * 8
    assert not any(value < level for value, level in zip(values, compute_holm_levels(values), strict=True))
    late = [0.0001, *[0.009] * 7]
    assert [value < level for value, level in zip(late, compute_holm_levels(late), strict=True)] == [True] + [False] * 7


@given(p_values)
def test_no_level_is_above_one_in_a_hundred(values):
    assert max(compute_holm_levels(values)) <= GATE_PARAMETERS.alpha


@given(p_values)
def test_judging_one_after_the_other_finds_no_more_than_holm(values):
    family, found = ErrorBudget(len(values)), 0
    for value in values:
        if value < family.alpha:
            family, found = family.spend(1), found + 1
    assert found <= sum(value < level for value, level in zip(values, compute_holm_levels(values), strict=True))


def test_the_family_level_is_stricter_than_the_usual_one():
    assert GATE_PARAMETERS.family_alpha < 0.05
