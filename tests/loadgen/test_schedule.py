"""Stages over time: levels, when clients join, when requests are due; and loads that follow them in virtual time."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import SECOND, Scripted, fired

from pytest_ollama_perf.config.load_spec import build_load_spec
from pytest_ollama_perf.core.sample import Phase
from pytest_ollama_perf.core.workload import Stage, StageSchedule, Workload
from pytest_ollama_perf.loadgen.plan import LoadPlan


def level(number: float, seconds: float, *, ramp: bool = False) -> Stage:
    return Stage(level=number, seconds=seconds, ramp=ramp)


RAMP_HOLD_SPIKE = (level(4, 8, ramp=True), level(4, 10), level(12, 2), level(0, 4, ramp=True))


def staged(*stages: dict, **words) -> Workload:
    return build_load_spec({"model": "m", "stages": list(stages), "warmup": 0, **words}).workload


def begins(samples, workload: Workload) -> list[float]:
    """Return when the measured requests were sent, in seconds after the connections were open, half a second in."""
    return [round(sample.sent_ns / SECOND - 0.5, 6) for sample in samples if sample.stage is Phase.MEASURED]


@pytest.mark.parametrize(
    ("at", "expected"),
    [(0, 0), (2, 1), (7, 3.5), (8, 4), (17.9, 4), (18, 12), (19.9, 12), (20, 12), (22, 6), (23, 3), (24, 0), (99, 0)],
)
def test_the_level_follows_ramp_hold_and_spike(at: float, expected: float) -> None:
    assert StageSchedule(RAMP_HOLD_SPIKE).compute_level(at) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("client", "after", "expected"),
    [
        (0, 0, 2),
        (3, 0, 8),
        (4, 0, 18),
        (0, 5, 5),
        (0, 23.5, 23.5),
        (0, 23.7, math.inf),
        (11, 0, 18),
        (11, 20, 20),
        (11, 20.5, math.inf),
    ],
)
def test_a_client_joins_when_there_is_room_for_it(client: int, after: float, expected: float) -> None:
    assert StageSchedule(RAMP_HOLD_SPIKE).compute_join_time(client, after) == pytest.approx(expected)


def test_requests_are_due_where_the_integral_of_the_rate_reaches_them() -> None:
    course = StageSchedule((level(10, 2, ramp=True), level(5, 2)))
    # the ramp makes t^2 * 2.5 requests, 10 in all; the hold five a second
    assert [course.compute_arrival_time(number) for number in (0, 2.5, 10, 15, 19.999)] == pytest.approx(
        [0, 1, 2, 3, 3.9998]
    )
    assert course.compute_arrival_time(20) == math.inf


LEVELS = st.builds(level, st.integers(0, 50), st.floats(0.1, 100), ramp=st.booleans())


@given(st.lists(LEVELS, min_size=1, max_size=5), st.floats(0, 300), st.integers(0, 50))
def test_a_client_that_joins_has_room_and_had_none_before(stages, after, client) -> None:
    course = StageSchedule(stages)
    joins = course.compute_join_time(client, after)
    if joins < math.inf:
        assert joins >= after
        assert course.compute_level(joins) >= client + 1 - 1e-6
    before = [after + (min(joins, course.seconds) - after) * part / 7 for part in range(7)]
    assert all(course.compute_level(at) < client + 1 + 1e-6 for at in before if after < at < joins - 1e-6)


@given(st.lists(LEVELS, min_size=1, max_size=5), st.lists(st.floats(0, 500), min_size=2, max_size=8))
def test_arrivals_come_in_their_order_and_within_the_course(stages, arrivals) -> None:
    course = StageSchedule(stages)
    times = [course.compute_arrival_time(number) for number in sorted(arrivals)]
    assert all(earlier <= later for earlier, later in pairwise(times))
    assert all(0 <= at <= course.seconds + 1e-6 for at in times if at < math.inf)


def test_clients_come_and_go_and_finish_what_they_began() -> None:
    workload = staged({"concurrency": 2, "ramp": 4}, {"concurrency": 2, "for": 2}, {"concurrency": 1, "for": 3})
    samples = fired(workload, Scripted(1.5))
    # client 0 joins at 2 s, client 1 at 4 s; client 1's last request begins at 5.5 s, before its time ends at 6 s
    assert sorted(begins(samples, workload)) == [2.0, 3.5, 4.0, 5.0, 5.5, 6.5, 8.0]
    assert sorted((sample.client, round(sample.sent_ns / SECOND - 0.5, 6)) for sample in samples if sample.client) == [
        (1, 4.0),
        (1, 5.5),
    ]


def test_a_spike_is_over_at_once() -> None:
    stages = ({"concurrency": 1, "for": 2}, {"concurrency": 5, "for": 1}, {"concurrency": 1, "for": 2})
    workload = staged(*stages)
    backend = Scripted(1.0)
    samples = fired(workload, backend)
    assert backend.peak == 5
    assert sorted(begins(samples, workload)) == [0, 1, 2, 2, 2, 2, 2, 3, 4]


def test_a_constant_rate_climbs_as_the_stages_say() -> None:
    workload = staged({"rate": 4, "ramp": 2}, {"rate": 2, "for": 2}, arrival="constant")
    samples = fired(workload, Scripted(0.1))
    # the ramp makes t^2 requests: number k is due at its root; then two a second from number 4 on
    assert begins(samples, workload) == pytest.approx([0, 1, math.sqrt(2), math.sqrt(3), 2, 2.5, 3, 3.5], abs=1e-5)
    assert [sample.start_ns for sample in samples] == [sample.scheduled_ns for sample in samples]


def test_a_poisson_rate_makes_as_many_requests_as_the_integral_says() -> None:
    workload = staged({"rate": 40, "ramp": 20}, {"rate": 40, "for": 10}, {"rate": 0, "ramp": 20})
    due = list(LoadPlan(workload).iter_arrivals_ns())
    # 400 + 400 + 400, with a standard deviation of 35
    assert len(due) == pytest.approx(1200, abs=105)
    halves = [sum(low <= at / SECOND < low + 10 for at in due) for low in (0, 10, 20, 30, 40)]
    assert halves == pytest.approx([100, 300, 400, 300, 100], abs=65)


def test_warm_up_comes_before_the_stages_and_counts_for_nothing() -> None:
    workload = staged({"concurrency": 2, "for": 2}, warmup=5)
    samples = fired(workload, Scripted(1.0))
    warm = [sample for sample in samples if sample.stage is Phase.WARMUP]
    assert [round(sample.sent_ns / SECOND - 0.5, 6) for sample in warm] == [0, 0, 1, 1, 2]
    # the stages begin when the warm-up is over, after 3 s
    assert begins(samples, workload) == [3, 3, 4, 4]
    assert [sample.index for sample in samples] == list(range(9))


def test_a_request_that_outlives_stages_and_drain_is_late() -> None:
    samples = fired(staged({"concurrency": 1, "for": 1}, drain=2), Scripted(100.0))
    assert [(sample.outcome.value, sample.done_ns / SECOND - 0.5) for sample in samples] == [("late", 3.0)]


def test_think_time_lies_between_requests_of_a_client() -> None:
    workload = staged({"concurrency": 1, "for": 6}, think_time=1)
    assert begins(fired(workload, Scripted(1.0)), workload) == [0, 2, 4]
