"""Slots, queue and batches: when tokens come, and what the counters then say."""

from __future__ import annotations

import anyio
import pytest
from simkit import MS, Heard, virtual, world

from pytest_ollama_perf.simulator.faults import parse_fault
from pytest_ollama_perf.simulator.job import DroppedConnectionError, ResponseError


@virtual
async def test_one_stream_reads_its_prompt_then_decodes_at_the_given_rate():
    async with world(tps=80.0, prefill_tps=2000.0) as sim:
        told = await sim.tell("a b c d", limit=5)
    assert told.heard.at_ms == [2.0, 14.5, 27.0, 39.5, 52.0]
    counters = told.counters
    assert (counters.prompt_eval_count, counters.prompt_eval_duration_ns) == (4, 2 * MS)
    assert (counters.eval_count, counters.eval_duration_ns) == (5, 50 * MS)
    assert counters.total_duration_ns == 52 * MS
    assert counters.load_duration_ns is None  # a zero is left out
    assert told.answer.reason == "length"


@virtual
async def test_four_requests_on_one_slot_wait_3_233_504_and_728_ms():
    async with world(slots=1, overhead_s=0.003) as sim:
        told = await sim.together(*({"prompt": f"p{n}", "limit": n} for n in (230, 271, 224, 10)))
    assert [each.queue_ms for each in told] == [3, 233, 504, 728]
    assert [each.counters.eval_duration_ns for each in told] == [229 * MS, 270 * MS, 223 * MS, 9 * MS]


@virtual
async def test_four_slots_start_together_and_share_the_speed():
    async with world(slots=4) as sim:
        told = await sim.together(*({"prompt": f"p{n}", "limit": 11} for n in range(4)))
    assert [each.queue_ms for each in told] == [0, 0, 0, 0]
    # all four prompts are read in one batch of 4 ms; a step of four streams takes 4 ms where batching gains nothing
    assert [each.counters.prompt_eval_duration_ns for each in told] == [4 * MS] * 4
    assert [each.counters.eval_duration_ns for each in told] == [40 * MS] * 4


@virtual
async def test_a_fifth_request_waits_for_the_first_free_slot():
    async with world(slots=4, scaling=1.0, overhead_s=0.001) as sim:
        told = await sim.together(*({"prompt": f"p{n}", "limit": limit} for n, limit in enumerate((30, 20, 5, 40, 10))))
    assert told[4].truth.slot == 2
    assert told[4].queue_ms == told[2].done_ms == 1 + 4 + 4


@pytest.mark.parametrize(
    ("scaling", "step_ms"), [(0.0, 4.0), (0.5, 2.0), (1.0, 1.0)], ids=["no gain", "square root", "ideal"]
)
def test_scaling_says_what_batching_gains(scaling, step_ms):
    @virtual
    async def run():
        async with world(slots=4, scaling=scaling) as sim:
            told = await sim.together(*({"prompt": f"p{n}", "limit": 11} for n in range(4)))
        assert [each.counters.eval_duration_ns / MS for each in told] == [10 * step_ms] * 4

    run()


@virtual
async def test_a_table_of_aggregate_speed_is_met_and_interpolated():
    table = ((1, 100.0), (2, 160.0), (4, 200.0))
    async with world(slots=6, aggregate=table) as sim:
        for streams, total in ((1, 100.0), (2, 160.0), (3, 180.0), (4, 200.0), (6, 200.0)):
            told = await sim.together(*({"prompt": f"p{streams}-{n}", "limit": 101} for n in range(streams)))
            rates = [100 / (each.counters.eval_duration_ns / 1e9) for each in told]
            assert sum(rates) == pytest.approx(total, rel=1e-6)


@virtual
async def test_a_long_prompt_stalls_the_other_streams_batch_by_batch():
    async with world(slots=2, prefill_batch=1024, cache=False) as sim:
        long = " ".join(["w"] * 1400)
        first, second = await sim.together({"prompt": "a", "limit": 20}, {"prompt": long, "at": 5.0, "limit": 2})
    gaps = [later - sooner for sooner, later in zip(first.heard.at_ms, first.heard.at_ms[1:], strict=False)]
    assert gaps[:4] == [1.0] * 4
    assert gaps[4:6] == [1025.0, 377.0]  # a step of 1 ms with 1024 prompt tokens, one with the other 376
    assert gaps[6] == 2.0
    assert second.counters.prompt_eval_duration_ns == 1402 * MS


@virtual
async def test_an_arrival_during_a_step_starts_with_the_next_one():
    async with world(slots=2, tps=100.0) as sim:
        first, second = await sim.together({"prompt": "a", "limit": 5}, {"prompt": "b", "at": 13.0, "limit": 1})
    assert first.heard.at_ms[:3] == [1.0, 11.0, 21.0]
    assert second.truth.slot_ns == 21 * MS
    assert second.truth.queue_ns == 8 * MS


@virtual
async def test_one_token_has_an_eval_duration_of_a_microsecond():
    async with world() as sim:
        told = await sim.tell(limit=1)
    assert told.counters.eval_duration_ns == 1000
    assert told.counters.total_duration_ns == 1 * MS


@virtual
async def test_a_repeated_prompt_is_read_from_the_cache():
    async with world(slots=1) as sim:
        prompt = " ".join(f"w{n}" for n in range(1000))
        cold = await sim.tell(prompt)
        warm = await sim.tell(prompt)
        longer = await sim.tell(prompt + " able x y")
    assert cold.counters.prompt_eval_duration_ns == 1000 * MS
    assert (warm.truth.cached_tokens, warm.counters.prompt_eval_duration_ns) == (999, 1 * MS)
    assert warm.counters.prompt_eval_count == 1000  # the cached ones included
    assert longer.truth.prompt_tokens - longer.truth.cached_tokens < 4


@virtual
async def test_a_prompt_comes_back_from_ram_after_others_used_the_slot():
    async with world(slots=1) as sim:
        await sim.tell("a b c d e")
        for other in ("x y", "u v", "r s"):
            await sim.tell(other)
        again = await sim.tell("a b c d e")
    assert again.truth.cached_tokens == 4


@virtual
async def test_a_request_cancelled_while_it_reads_its_prompt_caches_only_what_it_read():
    prompt = " ".join(f"w{number}" for number in range(1000))
    async with world(prefill_batch=100) as sim:
        with anyio.move_on_after(0.25):
            await sim.tell(prompt)
        await anyio.sleep(1)
        again = await sim.tell(prompt)
        assert again.truth.cached_tokens == 200


@virtual
async def test_a_first_token_of_its_own_defeats_the_cache():
    async with world(slots=1) as sim:
        await sim.tell("nonce1 a b c d")
        other = await sim.tell("nonce2 a b c d")
    assert other.truth.cached_tokens == 0


@virtual
async def test_without_a_cache_every_prompt_is_read_whole():
    async with world(cache=False) as sim:
        await sim.tell("a b c")
        again = await sim.tell("a b c")
    assert again.counters.prompt_eval_duration_ns == 3 * MS


@virtual
async def test_a_cancelled_stream_frees_its_slot_for_the_next():
    async with world(slots=1) as sim:
        async with anyio.create_task_group() as tasks:

            async def hang_up():
                with anyio.move_on_after(0.0205):
                    await sim.tell("a", limit=400)

            tasks.start_soon(hang_up)
            await anyio.sleep(0.001)
            told = await sim.tell("b", at=1.0, limit=5)
        assert sim.engine.ground_truths[0].outcome == "cancelled"
        assert sim.engine.ground_truths[0].eval_count == 20
    assert told.truth.slot_ns == 21 * MS  # the step under way ends first


@virtual
async def test_a_request_cancelled_in_the_queue_never_gets_a_slot():
    async with world(slots=1) as sim:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sim.tell, "a")
            await anyio.sleep(0.001)
            with anyio.move_on_after(0.002):
                await sim.tell("b", at=1.0)
        third = await sim.tell("c")
        assert sim.engine.ground_truths[1].slot_ns is None
        assert sim.engine.ground_truths[1].outcome == "cancelled"
    assert third.answer.reason == "length"


@virtual
async def test_output_never_ends_by_itself_unless_told_to():
    async with world() as sim:
        endless = await sim.tell("life", limit=300)
    assert endless.counters.eval_count == 300
    assert endless.heard.texts[:3] == [" able", " acid", " also"]
    async with world(eos_after=5) as sim:
        short = await sim.tell(limit=300)
    assert (short.answer.reason, short.counters.eval_count, len(short.heard.texts)) == ("stop", 5, 4)


@virtual
async def test_a_stop_word_ends_the_text_and_counts_as_a_token():
    async with world() as sim:
        told = await sim.tell("form", stop=(" gold",), limit=40)
    assert told.heard.texts == [" four", " free", " frog", " full", " game", " gate"]
    assert (told.answer.reason, told.counters.eval_count) == ("stop", 7)


@virtual
async def test_lines_may_hold_several_tokens_and_none_is_lost():
    async with world(tokens_per_line=4) as sim:
        told = await sim.tell("life", limit=10)
    assert [text.count(" ") for text in told.heard.texts] == [4, 4, 2]
    assert told.counters.eval_count == 10


@virtual
async def test_a_prompt_longer_than_the_context_is_cut_silently():
    async with world(num_ctx=2048) as sim:
        told = await sim.tell(" ".join(["w"] * 3000))
        assert told.counters.prompt_eval_count == 1026
        with pytest.raises(ResponseError, match=r"request \(3000 tokens\) exceeds the available context size"):
            await sim.tell(" ".join(["w"] * 3000), truncate=False)


@virtual
async def test_noise_comes_from_the_seed_alone():
    async def duration(**words):
        async with world(**words) as sim:
            return (await sim.tell(limit=50)).counters.eval_duration_ns

    calm = await duration()
    one, again, other = [await duration(token_jitter=0.1, seed=seed) for seed in (1, 1, 2)]
    assert one == again
    assert len({calm, one, other}) == 3


@virtual
async def test_noise_between_loads_moves_whole_runs():
    async with world(run_jitter=0.1) as sim:
        first, same = [(await sim.tell(f"a{n}")).counters.eval_duration_ns for n in range(2)]
        sim.engine.unload(sim.engine.settings.models[0])
        later = (await sim.tell("b")).counters.eval_duration_ns
    assert abs(first - same) <= 9  # each step is rounded to a nanosecond
    assert abs(first - later) > 1000


@virtual
async def test_the_ground_truth_holds_the_times_of_every_request():
    async with world(overhead_s=0.002, warm_load_s=0.001, load_time_s=0.25) as sim:
        await sim.tell("a b", limit=3, request_id="r-1")
        truth = sim.engine.ground_truths[0]
    assert truth.request_id == "r-1"
    times = (truth.arrived_ns, truth.loaded_ns, truth.queued_ns, truth.slot_ns, truth.first_token_ns, truth.done_ns)
    assert [time / MS for time in times] == [0, 251, 253, 253, 255, 257]
    assert (truth.outcome, truth.prompt_tokens, truth.eval_count, truth.queue_ns) == ("ok", 2, 3, 0)


@virtual
async def test_what_was_heard_before_a_break_stays_heard():
    heard = Heard()
    async with world(faults=(parse_fault("drop:3"),)) as sim:
        with pytest.raises(DroppedConnectionError):
            await sim.tell(heard=heard)
    assert len(heard.texts) == 3
