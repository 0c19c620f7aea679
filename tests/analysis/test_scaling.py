"""What the levels of a sweep show: the knee, the saturation, the slots. Pure values in, pure values out."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_makers import one_after_another, run_of

from pytest_ollama_perf.analysis.scaling import (
    SweepPoint,
    build_curve,
    build_sweep_point,
    find_knee,
    find_saturation,
    format_position,
)
from pytest_ollama_perf.core.verdict import VerdictStatus
from pytest_ollama_perf.metrics.summary import summarise


def level(load, throughput=None, *, ttft=None, axis="concurrency", spread=0.0, **fields):
    """One level whose numbers have a 95 % interval of ``spread`` on both sides."""
    around = None if not throughput or not spread else (throughput * (1 - spread), throughput * (1 + spread))
    values = {"requests": 20, "ok": 20, "output_tokens": 1000, "wall_s": 1.0, "status": VerdictStatus.OK, "reason": ""}
    values |= {"at": {axis: load}, "run_id": str(load), "throughput": throughput, "throughput_ci": around}
    return SweepPoint(**{**values, "ttft_mean_s": ttft, **fields})


def levels(*pairs, **fields):
    return [level(load, throughput, **fields) for load, throughput in pairs]


def test_the_knee_is_the_lowest_level_that_no_later_one_clearly_exceeds():
    knee = find_knee("concurrency", levels((1, 80), (2, 120), (4, 200), (8, 205), (16, 203)))
    assert (knee.concurrency, knee.after, knee.throughput, knee.reached) == (4, 2.0, 200, True)


def test_a_level_a_tenth_better_is_no_growth_and_a_little_more_is():
    assert find_knee("concurrency", levels((1, 100), (2, 110))).concurrency == 1
    assert find_knee("concurrency", levels((1, 100), (2, 110.1))).concurrency == 2


def test_slow_growth_over_many_levels_is_growth():
    knee = find_knee("concurrency", levels((1, 100), (2, 106), (3, 112), (4, 118)))
    assert (knee.concurrency, knee.reached) == (3, True)


def test_growth_up_to_the_last_level_leaves_the_knee_beyond_it():
    knee = find_knee("concurrency", levels((1, 80), (2, 160), (4, 320)))
    assert (knee.concurrency, knee.reached) == (4, False)


def test_a_difference_within_its_uncertainty_is_no_growth():
    assert find_knee("concurrency", levels((1, 100), (2, 130), spread=0.4)).concurrency == 1
    assert find_knee("concurrency", levels((1, 100), (2, 130), spread=0.1)).concurrency == 2


def test_tokens_of_a_short_moment_without_more_finished_requests_are_no_growth():
    made = [level(4, 203.0, qps=6.35), level(8, 259.0, qps=6.53)]
    assert find_knee("concurrency", made).concurrency == 4
    made = [level(4, 203.0, qps=6.35), level(8, 259.0, qps=7.5)]
    assert find_knee("concurrency", made).concurrency == 8


def test_levels_that_all_failed_end_the_growth_and_are_no_knee():
    knee = find_knee("concurrency", [*levels((1, 80), (2, 160)), level(4, 0.0, ok=0)])
    assert (knee.concurrency, knee.reached) == (2, True)
    assert find_knee("concurrency", [level(1, 0.0, ok=0)]) is None


def test_embeddings_have_their_knee_in_requests_per_second():
    made = [level(load, None, qps=qps) for load, qps in ((1, 10.0), (2, 19.0), (4, 19.5))]
    assert (find_knee("concurrency", made).concurrency, find_knee("concurrency", made).throughput) == (2, 19.0)


def test_a_knee_answers_for_its_own_axis_only():
    knee = find_knee("rate", levels((0.5, 50), (1.0, 90), (2.0, 91), axis="rate"))
    assert knee.rate == 1.0
    with pytest.raises(AttributeError, match=r"over rate: use knee\.rate"):
        _ = knee.concurrency


def test_noise_of_three_percent_hardly_ever_moves_the_knee():
    chance = random.Random(1)
    truth = {1: 50, 2: 95, 4: 170, 8: 200, 16: 202, 32: 201}
    moved = sum(
        find_knee("concurrency", levels(*((x, y * math.exp(chance.gauss(0, 0.03))) for x, y in truth.items()))).at != 8
        for _ in range(1000)
    )
    assert moved <= 40


@given(st.lists(st.floats(1, 1000), min_size=1, max_size=8), st.floats(0.01, 100))
def test_the_knee_does_not_depend_on_the_unit(speeds, factor):
    plain = find_knee("concurrency", levels(*enumerate(speeds, 1)))
    scaled = find_knee("concurrency", levels(*((load, speed * factor) for load, speed in enumerate(speeds, 1))))
    assert abs(plain.at - scaled.at) in {0, *range(len(speeds))}
    assert plain.at == scaled.at or any(math.isclose(a, 1.1 * b, rel_tol=1e-9) for a in speeds for b in speeds)


def test_the_saturation_is_where_ttft_outgrows_the_load_past_the_knee():
    made = [level(4, 200, ttft=0.1), level(8, 205, ttft=2.0), level(16, 204, ttft=6.0)]
    found = find_saturation("concurrency", made, find_knee("concurrency", made))
    assert (found.concurrency, found.after, found.load_growth, found.ttft_s) == (8, 4, 2.0, 2.0)
    assert found.ttft_growth == pytest.approx(20)


def test_ttft_that_grows_before_the_knee_or_with_the_load_is_no_saturation():
    early = [level(1, 50, ttft=0.1), level(2, 100, ttft=0.5), level(4, 101, ttft=0.9)]
    assert find_saturation("concurrency", early, find_knee("concurrency", early)) is None


def test_an_saturation_that_the_interval_of_ttft_does_not_confirm_is_none():
    made = [level(4, 200, ttft=1.0), level(8, 200, ttft=2.5, ttft_mean_ci_s=(1.9, 3.1))]
    assert find_saturation("concurrency", made, find_knee("concurrency", made)) is None


def test_efficiency_is_what_a_level_makes_over_what_its_clients_would_make_alone():
    found = build_curve("concurrency", {}, levels((2, 120), (4, 160)), single=level(1, 80, single=True))
    assert [one.efficiency for one in found.levels] == [0.75, 0.5]
    assert found.speedup == 2.0
    assert found.best.at == {"concurrency": 4}


def test_a_level_of_one_client_is_the_single_one():
    found = build_curve("concurrency", {}, levels((1, 80), (2, 120)))
    assert [one.efficiency for one in found.levels] == [1.0, 0.75]
    assert found.single is found.levels[0] or found.single == level(1, 80)


def test_an_axis_that_is_no_load_has_neither_knee_nor_saturation():
    found = build_curve("num_ctx", {}, levels((2048, 80), (8192, 70), axis="num_ctx"))
    assert (found.knee, found.saturation, found.slots) == (None, None, None)


def test_a_row_has_the_numbers_of_its_run():
    run = run_of(*one_after_another(10, tokens=11, step=10, ttft=100))
    row = build_sweep_point({"concurrency": 1}, run, summarise(run), VerdictStatus.OK, "fine")
    assert (row.requests, row.ok, row.success_rate, row.output_tokens) == (10, 10, 1.0, 110)
    assert (row.wall_s, row.tps, row.qps) == (2.0, pytest.approx(110), 5.0)
    assert (row.ttft_p50_s, row.ttft_p95_s, row.latency_p95_s) == (0.1, 0.1, 0.2)
    assert row.throughput == pytest.approx(55, rel=0.02)


def test_places_read_as_a_person_says_them():
    assert format_position({"model": "m", "num_ctx": 8192, "concurrency": 4}) == "m, num_ctx 8192, concurrency 4"
    assert format_position({"rate": 0.5}) == "0.5 requests/s"
