import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from pytest_ollama_perf.analysis.ab import LOOKS, compare_costs
from pytest_ollama_perf.core.verdict import VerdictStatus

PRIOR_SD = 0.02


def test_the_numbers_are_those_of_the_moderated_t_on_block_differences():
    found = compare_costs([0.0] * 4, [0.05, 0.03, 0.05, 0.03], PRIOR_SD)
    sd = math.sqrt((3 * 0.01**2 + 4 * 0.01**2) / 6)
    se = sd / 2
    assert (found.d, found.se) == (pytest.approx(0.04), pytest.approx(se))
    assert found.p == pytest.approx(2 * t.sf(0.04 / se, 6))
    assert found.low == pytest.approx(math.expm1(0.04 - t.ppf(0.975, 6) * se))
    assert found.status is VerdictStatus.REGRESSED


def test_what_disturbs_both_sides_of_a_block_is_no_difference():
    state = [0.0, 0.3, -0.2, 0.1]
    found = compare_costs(state, [cost + 0.001 for cost in state], PRIOR_SD)
    assert (found.status, found.more) == (VerdictStatus.OK, 0)


@given(st.lists(st.floats(-0.2, 0.2), min_size=4, max_size=4), st.lists(st.floats(-0.2, 0.2), min_size=4, max_size=4))
def test_swapping_the_sides_mirrors_the_answer(a, b):
    mirror = {VerdictStatus.REGRESSED: VerdictStatus.FASTER, VerdictStatus.FASTER: VerdictStatus.REGRESSED}
    there, back = compare_costs(a, b, PRIOR_SD), compare_costs(b, a, PRIOR_SD)
    assert back.status is mirror.get(there.status, there.status)
    assert back.d == pytest.approx(-there.d)


def test_it_looks_after_four_six_eight_and_twelve_blocks_only():
    for blocks in range(13):
        found = compare_costs([0.0] * blocks, [1.0] * blocks, PRIOR_SD)
        assert (found.status is VerdictStatus.REGRESSED) == (blocks in LOOKS)
    assert [compare_costs([0.0] * blocks, [0.02, -0.03] * 6, PRIOR_SD).more for blocks in (12,)] == [0]


def test_an_unclear_difference_asks_for_the_blocks_up_to_the_next_look():
    b = [-0.04, 0.08] * 6
    assert [compare_costs([0.0] * blocks, b[:blocks], 0.06).more for blocks in (0, 3, 4, 6, 8)] == [4, 1, 2, 2, 4]


def test_failed_blocks_decide_only_twice_on_one_side():
    zeros = [0.0] * 4
    assert compare_costs(zeros, [math.inf, 0, 0, 0], PRIOR_SD).status is VerdictStatus.UNSURE
    assert compare_costs(zeros, [math.inf, math.inf, 0, 0], PRIOR_SD).status is VerdictStatus.REGRESSED
    assert compare_costs([math.inf, math.inf, 0, 0], zeros, PRIOR_SD).status is VerdictStatus.FASTER
    assert compare_costs([math.inf, 0, 0, 0], [0, math.inf, math.inf, 0], PRIOR_SD).status is VerdictStatus.UNSURE
    assert compare_costs([math.inf] * 4, [math.inf] * 4, PRIOR_SD).status is VerdictStatus.UNSURE


def test_sides_of_different_length_are_refused():
    with pytest.raises(ValueError, match="zip"):
        compare_costs([0.0] * 4, [0.0] * 5, PRIOR_SD)


def test_equal_sides_are_told_apart_rarely_and_three_percent_mostly():
    rng = np.random.default_rng(4)
    assert sum(_answer(0.0, rng) is not VerdictStatus.OK for _ in range(300)) <= 9
    assert sum(_answer(0.03, rng) is VerdictStatus.REGRESSED for _ in range(300)) >= 270


def _answer(effect, rng):
    a, b = rng.normal(0, 0.008, (2, 12))
    b = b + math.log1p(effect)
    blocks = LOOKS[0]
    while (found := compare_costs(a[:blocks].tolist(), b[:blocks].tolist(), PRIOR_SD)).more:
        blocks += found.more
    return found.status
