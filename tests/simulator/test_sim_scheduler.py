"""Loading, reloading, making room, keep-alive, and the only reason for a 503."""

from __future__ import annotations

import anyio
import pytest
from simkit import MS, virtual, world

from pytest_ollama_perf.simulator.job import ResponseError


def names(sim):
    return [held.model.name for held in sim.engine.list_loaded()]


@virtual
async def test_the_first_request_pays_for_the_load_and_the_second_does_not():
    async with world(load_time_s=0.5, warm_load_s=0.001) as sim:
        cold, warm = await sim.tell("a"), await sim.tell("b")
    assert cold.counters.load_duration_ns == 501 * MS
    assert warm.counters.load_duration_ns == 1 * MS


@pytest.mark.parametrize(("asked_s", "taken_ms"), [(0.0, 0), (0.1, 250), (0.25, 250), (0.26, 500), (190.0, 190_000)])
def test_a_load_takes_whole_polls_of_250_ms(asked_s, taken_ms):
    @virtual
    async def run():
        async with world(load_time_s=asked_s) as sim:
            told = await sim.tell()
        assert (told.counters.load_duration_ns or 0) == taken_ms * MS

    run()


@virtual
async def test_requests_that_wait_for_a_load_all_count_it():
    async with world(load_time_s=0.25, slots=1) as sim:
        told = await sim.together(*({"prompt": f"p{n}", "at": 10.0 * n, "limit": 1} for n in range(3)))
    assert [each.counters.load_duration_ns / MS for each in told] == [250, 240, 230]


@virtual
async def test_a_new_num_ctx_loads_the_model_again():
    async with world(load_time_s=0.25) as sim:
        await sim.tell("a", options={"num_ctx": 2048})
        same = await sim.tell("b", options={"num_ctx": 2048, "temperature": 0.7})
        other = await sim.tell("c", options={"num_ctx": 1024})
        assert [held.runner.num_ctx for held in sim.engine.list_loaded()] == [1024]
    assert same.counters.load_duration_ns is None
    assert other.counters.load_duration_ns == 250 * MS


@pytest.mark.parametrize(
    ("options", "reloads"),
    [
        ({"num_batch": 64}, True),
        ({"num_thread": 2}, True),
        ({"use_mmap": False}, True),
        ({"main_gpu": 1}, True),
        ({"draft_num_predict": 4}, True),
        ({"num_gpu": 0}, True),
        ({"shift": False}, True),
        ({"num_gpu": -1}, False),
        ({"top_k": 3, "foo": 1}, False),
    ],
    ids=lambda value: str(value),
)
def test_only_the_options_of_the_engine_force_a_reload(options, reloads):
    @virtual
    async def run():
        async with world(load_time_s=0.25) as sim:
            await sim.tell("a")
            told = await sim.tell("b", options=options)
        assert (told.counters.load_duration_ns == 250 * MS) is reloads

    run()


@virtual
async def test_a_reload_waits_for_the_streams_and_lets_matching_requests_pass():
    async with world(load_time_s=0.25, slots=2, scaling=1.0) as sim:
        await sim.tell("warm", limit=1)
        start = sim.now_ms
        old, changed, passing = await sim.together(
            {"prompt": "a", "limit": 101, "at": start},
            {"prompt": "b", "limit": 1, "at": start + 10, "options": {"num_ctx": 8}},
            {"prompt": "c", "limit": 150, "at": start + 20},
        )
    assert old.done_ms == start + 101 + 1  # a step more: the batch that reads the third prompt
    assert passing.counters.load_duration_ns is None
    assert changed.truth.loaded_ns == passing.truth.done_ns + 250 * MS


@virtual
async def test_two_models_that_do_not_fit_take_turns():
    async with world(names=("mid", "small"), max_loaded=1, load_time_s=0.25, slots=1) as sim:
        await sim.tell("one", model="mid", limit=1)
        start = sim.now_ms
        long, small = await sim.together(
            {"prompt": "two", "model": "mid", "limit": 400, "at": start},
            {"prompt": "three", "model": "small", "limit": 20, "at": start + 50},
        )
        assert names(sim) == ["small"]
    assert long.counters.eval_count == 400
    assert small.counters.load_duration_ns == (400 - 50 + 250) * MS


@virtual
async def test_room_is_made_by_the_model_longest_unused():
    async with world(names=("a", "b", "c"), max_loaded=2) as sim:
        for model in ("a", "b", "a", "c"):
            await sim.tell(model=model)
            await anyio.sleep(1)
        assert names(sim) == ["c", "a"]


@virtual
async def test_an_idle_model_leaves_when_its_keep_alive_is_over():
    async with world(keep_alive_s=300.0) as sim:
        told = await sim.tell()
        await anyio.sleep_until(told.done_ms / 1000 + 299.9)
        assert names(sim) == ["m"]
        await anyio.sleep(0.2)
        assert names(sim) == []


@virtual
async def test_the_last_request_decides_how_long_a_model_stays():
    async with world() as sim:
        await sim.tell("a", keep_alive_s=600.0)
        await sim.tell("b", keep_alive_s=10.0)
        await anyio.sleep(11)
        assert names(sim) == []
        await sim.tell("c", keep_alive_s=-1.0)
        await anyio.sleep(80_000)
        assert names(sim) == ["m"]
        await sim.tell("d", keep_alive_s=0.0)
        assert names(sim) == []


@virtual
async def test_a_model_in_use_outlives_its_keep_alive():
    async with world(keep_alive_s=0.01) as sim:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: sim.tell(limit=1000))
            await anyio.sleep(0.5)
            assert names(sim) == ["m"]
        await anyio.sleep(0.02)
        assert names(sim) == []


@virtual
async def test_an_unload_lets_the_streams_finish():
    async with world() as sim:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: sim.tell(limit=100))
            await anyio.sleep(0.01)
            sim.engine.unload(sim.engine.settings.models[0])
            assert names(sim) == ["m"]
        assert names(sim) == []
        assert sim.engine.ground_truths[0].outcome == "ok"


@virtual
async def test_503_comes_only_while_a_load_is_pending_and_the_queue_is_full():
    outcomes, messages = [], set()
    async with world(load_time_s=0.25, max_queue=2, slots=1) as sim:

        async def one(index):
            try:
                await sim.tell(f"p{index}", at=index * 10.0)
                outcomes.append((index, 200))
            except ResponseError as failure:
                outcomes.append((index, failure.status))
                messages.add(failure.message)

        async with anyio.create_task_group() as tasks:
            for index in range(8):
                tasks.start_soon(one, index)
        assert messages == {"server busy, please try again.  maximum pending requests exceeded"}
        assert sorted(outcomes) == [(0, 200), (1, 200), (2, 200), *((index, 503) for index in range(3, 8))]
        told = await sim.together(*({"prompt": f"q{n}"} for n in range(20)))
    assert len(told) == 20  # a loaded model's queue has no limit


@virtual
async def test_a_request_that_gives_up_while_its_model_loads_holds_nothing():
    async with world(load_time_s=1.0, keep_alive_s=5.0) as sim:
        with anyio.move_on_after(0.5):
            await sim.tell()
        await anyio.sleep(1)
        assert names(sim) == ["m"]
        assert [held.users for held in sim.engine.list_loaded()] == [0]
        assert (await sim.tell()).counters.load_duration_ns is None


@virtual
async def test_a_missing_model_is_named():
    async with world() as sim:
        with pytest.raises(ResponseError, match=r"^model 'nope' not found$") as caught:
            await sim.tell(model="nope")
    assert caught.value.status == 404
