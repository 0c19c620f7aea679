"""Scripted faults: what they do and whom they strike."""

from __future__ import annotations

import random

import anyio
import pytest
from simkit import MS, Heard, virtual, world

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.simulator.faults import FAULT_HELP, Fault, FaultKind, FaultScript, parse_fault
from pytest_ollama_perf.simulator.job import (
    RUNNER_DIED_MESSAGE,
    DroppedConnectionError,
    ResponseError,
    TransportFaultError,
    TruncatedResponseError,
)


def faults(*texts):
    return tuple(parse_fault(text) for text in texts)


@pytest.mark.parametrize(
    ("text", "error", "status"),
    [
        ("http_500@2", ResponseError, 500),
        ("busy@2", ResponseError, 503),
        ("drop@2", DroppedConnectionError, None),
        ("truncate@2", TruncatedResponseError, None),
    ],
)
def test_a_fault_strikes_its_request_and_no_other(text, error, status):
    @virtual
    async def run():
        async with world(faults=faults(text)) as sim:
            await sim.tell("a")
            with pytest.raises(error) as caught:
                await sim.tell("b")
            assert getattr(caught.value, "status", None) == status
            assert (await sim.tell("c")).answer.reason == "length"
            assert [truth.outcome for truth in sim.engine.ground_truths] == ["ok", error.outcome, "ok"]

    run()


@pytest.mark.parametrize(
    ("text", "error"),
    [("drop:12", DroppedConnectionError), ("truncate:12", TruncatedResponseError), ("error:12", ResponseError)],
)
def test_a_break_after_n_tokens_lets_n_tokens_out_and_frees_the_slot(text, error):
    @virtual
    async def run():
        heard = Heard()
        async with world(slots=1, faults=faults(f"{text}@1")) as sim:
            with pytest.raises(error):
                await sim.tell(limit=40, heard=heard)
            assert len(heard.texts) == 12
            assert sim.engine.ground_truths[0].eval_count == 12
            assert (await sim.tell("b")).truth.queue_ns == 0

    run()


@virtual
async def test_garbage_comes_after_n_tokens_and_the_stream_goes_on():
    async with world(faults=faults("garbage:3")) as sim:
        told = await sim.tell(limit=5)
    assert told.heard.garbled
    assert told.counters.eval_count == 5


@virtual
async def test_a_crash_ends_every_stream_and_the_next_request_loads_again():
    async with world(slots=2, scaling=1.0, load_time_s=0.25, faults=faults("crash:5@2")) as sim:
        failures = []

        async def one(prompt, at):
            try:
                await sim.tell(prompt, limit=100, at=at)
            except ResponseError as failure:
                failures.append((failure.status, failure.message, sim.now_ms))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, "bystander", 0)
            tasks.start_soon(one, "struck", 10)
        assert failures == [(500, RUNNER_DIED_MESSAGE, 257.0)] * 2  # loaded at 250, both read at 252, five steps
        assert (await sim.tell("after")).counters.load_duration_ns == 250 * MS


@virtual
async def test_a_stall_before_the_first_token_shows_in_the_prompt_and_one_after_in_the_decode():
    async with world(faults=faults("stall:2@1", "stall:3:5@2")) as sim:
        before, after = await sim.tell("a"), await sim.tell("b")
    assert before.counters.prompt_eval_duration_ns == 2001 * MS
    assert before.counters.eval_duration_ns == 9 * MS
    assert after.counters.prompt_eval_duration_ns == 1 * MS
    assert after.counters.eval_duration_ns == 3009 * MS
    gaps = [b - a for a, b in zip(after.heard.at_ms, after.heard.at_ms[1:], strict=False)]
    assert gaps[4] == 3001.0


@virtual
async def test_a_stalled_stream_does_not_hold_up_the_others():
    async with world(slots=2, scaling=1.0, faults=faults("stall:5:2@1")) as sim:
        stalled, other = await sim.together({"prompt": "a", "limit": 4}, {"prompt": "b", "limit": 100, "at": 1.5})
    assert other.done_ms < 110
    assert stalled.done_ms > 5000


@virtual
async def test_a_free_slot_is_given_while_all_others_stand_still():
    async with world(slots=2, faults=faults("stall:5@1")) as sim:
        stalled, other = await sim.together({"prompt": "a"}, {"prompt": "b", "at": 100.0})
    assert (other.truth.slot_ns, other.done_ms) == (100 * MS, 110.0)
    assert stalled.heard.at_ms[0] == 5001.0


@virtual
async def test_a_request_in_the_queue_gets_the_slot_of_a_stalled_one_that_is_cancelled():
    async with world(slots=1, faults=faults("stall:5@1")) as sim, anyio.create_task_group() as tasks:

        async def leave():
            with anyio.move_on_after(1):
                await sim.tell("a")

        tasks.start_soon(leave)
        assert (await sim.tell("b", at=10.0)).done_ms == 1010.0


@virtual
async def test_a_regression_from_a_request_on_slows_what_it_names():
    async with world(faults=faults("slow_decode:1.5@2-3", "slow_prefill:4@3-", "slow:2@5")) as sim:
        told = [await sim.tell(f"p{n}") for n in range(5)]
    assert [each.counters.eval_duration_ns / MS for each in told] == [9, 13.5, 13.5, 9, 18]
    assert [each.counters.prompt_eval_duration_ns / MS for each in told] == [1, 1, 4, 4, 8]


@virtual
async def test_an_eviction_makes_the_next_request_load():
    async with world(load_time_s=0.25, faults=faults("evict@2")) as sim:
        told = [await sim.tell(f"p{n}") for n in range(4)]
    assert [(each.counters.load_duration_ns or 0) / MS for each in told] == [250, 0, 250, 0]


@virtual
async def test_a_short_output_ends_with_a_stop():
    async with world(faults=faults("eos:4@1")) as sim:
        told = await sim.tell(limit=64)
    assert (told.answer.reason, told.counters.eval_count) == ("stop", 4)


@virtual
async def test_a_buffering_proxy_lets_go_in_bursts_and_loses_nothing():
    async with world(faults=faults("buffer:0.02")) as sim:
        told = await sim.tell(limit=50)
    assert len(told.heard.texts) == 50
    assert sorted(set(told.heard.at_ms)) == [20.0, 40.0, 50.0]
    assert told.counters.eval_duration_ns == 49 * MS  # the server knows nothing of it


@virtual
async def test_tokens_that_come_in_bursts_are_all_there():
    async with world(faults=faults("burst:5")) as sim:
        told = await sim.tell(limit=30)
    sizes = [told.heard.at_ms.count(at) for at in dict.fromkeys(told.heard.at_ms)]
    assert sizes == [4, 5, 6, 4, 5, 6]
    assert told.counters.eval_duration_ns == 29 * MS


@virtual
async def test_a_response_that_is_held_back_leaves_late_and_whole():
    async with world(faults=faults("hold:0.62@1")) as sim:
        short = await sim.tell(limit=50)
        assert set(short.heard.at_ms) == {621.0}
        assert len(short.heard.texts) == 50
        assert short.counters.total_duration_ns == 50 * MS
        assert len(set((await sim.tell(limit=50)).heard.at_ms)) == 50


@virtual
async def test_a_response_longer_than_its_hold_goes_on_token_by_token():
    async with world(faults=faults("hold:0.01")) as sim:
        told = await sim.tell(limit=50)
        assert told.heard.at_ms == [11.0] * 11 + list(range(12, 51))


@virtual
async def test_impossible_counters_are_only_reported():
    async with world(faults=faults("counters:100")) as sim:
        told = await sim.tell(limit=11)
    assert len(told.heard.texts) == 11
    assert (told.counters.eval_count, told.counters.eval_duration_ns) == (1100, 0.1 * MS)


@pytest.mark.parametrize("kind", ["html", "reset:0.01", "refuse:1", "trickle:0.1", "echo_key"])
def test_a_fault_of_the_connection_keeps_the_request_from_the_model(kind):
    @virtual
    async def run():
        async with world(faults=faults(f"{kind}@1")) as sim:
            with pytest.raises(TransportFaultError):
                await sim.tell("a")
            assert sim.engine.ground_truths[0].outcome == kind.partition(":")[0]
            assert (await sim.tell("b")).answer.reason == "length"

    run()


@pytest.mark.parametrize(
    ("when", "struck"),
    [
        ("", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ("@3", [3]),
        ("@3+7", [3, 7]),
        ("@5-7", [5, 6, 7]),
        ("@8-", [8, 9, 10]),
        ("@every4", [4, 8]),
    ],
)
def test_when_names_the_requests(when, struck):
    script = FaultScript([parse_fault(f"busy{when}")], seed=1)
    assert [number for number in range(1, 11) if script.draw_faults(number)] == struck


def test_a_probability_strikes_its_share_and_the_same_ones_for_a_seed():
    def struck(seed):
        script = FaultScript([parse_fault("busy@p0.1")], seed)
        return [number for number in range(1, 2001) if script.draw_faults(number)]

    assert struck(1) == struck(1)
    assert struck(1) != struck(2)
    assert 150 < len(struck(1)) < 250


def test_a_certain_fault_draws_nothing():
    chance = random.Random(1)
    state = chance.getstate()
    assert Fault(kind=FaultKind.BUSY).applies_to(1, chance)
    assert chance.getstate() == state


def test_every_kind_has_its_line_of_help():
    assert set(FAULT_HELP) == set(FaultKind)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dorp@3", "unknown fault 'dorp'; did you mean 'drop'?; valid: http_500, busy, drop,"),
        ("drop:x", "tokens 'x' is not a number"),
        ("slow:0", "factor '0' is out of range"),
        ("stall:inf", "seconds 'inf' is out of range"),
        ("stall", "stall needs seconds, for example stall:2"),
        ("burst", "burst needs tokens, for example burst:2"),
        ("busy:3", "busy takes no arguments"),
        ("drop:1:2", "drop takes 1 argument"),
        ("drop@soon", "'soon' names no requests; valid: 3, 3+7, 5-9, 20-, every10, p0.05"),
        ("drop@p1.5", "'p1.5' names no requests"),
        ("@3", "write it as KIND"),
    ],
)
def test_a_wrong_fault_says_what_is_right(text, words):
    with pytest.raises(ConfigError) as caught:
        parse_fault(text)
    assert str(caught.value).startswith(f"simulator: fault {text!r}: ")
    assert words in str(caught.value)
