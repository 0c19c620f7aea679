"""Servers that others have measured and published: the simulator, set up like them, gives back their numbers."""

from __future__ import annotations

import anyio
import pytest
from simkit import virtual, world


async def closed_loop(sim, users, requests, limit):
    """Let ``users`` send ``requests`` in all, each the next when the last is done; return what each was told."""
    told, left = [], list(range(requests))

    async def user():
        while left:
            number = left.pop()
            told.append(await sim.tell(f"u{number} " + "w " * 31, limit=limit))

    async with anyio.create_task_group() as tasks:
        for _ in range(users):
            tasks.start_soon(user)
    return told


def throughput(told):
    seconds = max(each.done_ms for each in told) - min(each.truth.arrived_ns / 1e6 for each in told)
    return sum(each.counters.eval_count for each in told) / seconds * 1000


def ttft_s(told):
    return sum(each.truth.first_token_ns - each.truth.arrived_ns for each in told) / len(told) / 1e9


ONE_GPU = {"aggregate": ((1, 40.0), (4, 106.0), (16, 205.0)), "prefill_tps": 3000.0}


@pytest.mark.parametrize(
    ("slots", "users", "total", "first_s"), [(4, 10, 106.0, 13.5), (4, 20, 105.0, 36.7), (16, 20, 205.0, 4.8)]
)
def test_one_gpu_at_its_limit(slots, users, total, first_s):
    @virtual
    async def run():
        async with world(slots=slots, **ONE_GPU) as sim:
            told = await closed_loop(sim, users, requests=users * 10, limit=240)
        steady = sorted(told, key=lambda each: each.truth.arrived_ns)[users:-users]
        assert throughput(told) == pytest.approx(total, rel=0.06)
        assert ttft_s(steady) == pytest.approx(first_s, rel=0.06)

    run()


SMALL = {"aggregate": ((1, 123.0), (2, 184.0), (3, 222.0), (4, 240.0), (5, 265.0)), "prefill_tps": 3000.0}


@pytest.mark.parametrize(("users", "each_tps"), [(1, 123), (2, 92), (3, 74), (4, 60), (5, 53)])
def test_a_small_model_shares_its_speed_as_published(users, each_tps):
    @virtual
    async def run():
        async with world(slots=5, **SMALL) as sim:
            told = await closed_loop(sim, users, requests=users, limit=300)
        for each in told:
            assert 299 / (each.counters.eval_duration_ns / 1e9) == pytest.approx(each_tps, rel=0.01)

    run()


@virtual
async def test_a_large_model_takes_its_time_to_load_and_then_does_not():
    async with world(tps=30.0, load_time_s=180.0, prefill_tps=100.0) as sim:
        cold, warm = await sim.tell("a", limit=300), await sim.tell("b", limit=300)
    assert cold.counters.total_duration_ns / 1e9 == pytest.approx(190, rel=0.01)
    assert warm.counters.total_duration_ns / 1e9 == pytest.approx(10, rel=0.01)
