"""What must hold for every load: nothing lost, nobody overtaken, the sums right."""

from __future__ import annotations

import itertools

import anyio
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from simkit import Heard, world

from pytest_ollama_perf.simulator.job import PromptCache, count_common_prefix

REQUEST = st.fixed_dictionaries(
    {
        "at": st.integers(0, 400).map(float),
        "words": st.integers(1, 60),
        "limit": st.integers(1, 40),
        "leave_after": st.one_of(st.none(), st.integers(1, 300)),
    }
)


def play(requests, **words):
    """Send all requests and return what each heard, with its truth and counters."""
    played = []

    async def run():
        async with world(overhead_s=0.002, load_time_s=0.25, **words) as sim, anyio.create_task_group() as tasks:

            async def one(index, request):
                heard = Heard()
                with anyio.move_on_after((request["at"] + (request["leave_after"] or 1e9)) / 1000):
                    prompt = " ".join([f"n{index}"] * request["words"])
                    told = await sim.tell(prompt, at=request["at"], limit=request["limit"], heard=heard)
                    played.append((request, told.truth, told.counters, heard))
                    return
                played.append((request, None, None, heard))

            for index, request in enumerate(requests):
                tasks.start_soon(one, index, request)

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
    return played


LOAD = given(
    requests=st.lists(REQUEST, min_size=1, max_size=12), slots=st.integers(1, 4), jitter=st.sampled_from([0, 0.2])
)


@settings(max_examples=40, deadline=None, derandomize=True)
@LOAD
def test_every_token_arrives_once_and_the_identities_hold(requests, slots, jitter):
    played = play(requests, slots=slots, token_jitter=jitter)
    assert len(played) == len(requests)
    for request, truth, counters, heard in played:
        if truth is None:
            continue
        assert counters.eval_count == len(heard.texts) == request["limit"]
        assert counters.prompt_eval_count == request["words"]
        total, load = counters.total_duration_ns, counters.load_duration_ns or 0
        spent = load + counters.prompt_eval_duration_ns + counters.eval_duration_ns
        assert total - spent == truth.slot_ns - truth.loaded_ns - (1000 if request["limit"] == 1 else 0)
        assert heard.at_ms == sorted(heard.at_ms)
        assert truth.first_token_ns == round(heard.at_ms[0] * 1e6)
        assert truth.done_ns == round(heard.at_ms[-1] * 1e6)


@settings(max_examples=40, deadline=None, derandomize=True)
@LOAD
def test_slots_are_given_in_order_of_arrival_and_never_to_two(requests, slots, jitter):
    truths = [truth for _, truth, _, _ in play(requests, slots=slots, token_jitter=jitter) if truth is not None]
    by_arrival = sorted(truths, key=lambda truth: (truth.queued_ns, truth.number))
    assert [truth.slot_ns for truth in by_arrival] == sorted(truth.slot_ns for truth in truths)
    for slot in range(slots):
        held = sorted((truth.slot_ns, truth.done_ns) for truth in truths if truth.slot == slot)
        assert all(done <= start for (_, done), (start, _) in itertools.pairwise(held))


@given(st.lists(st.integers(0, 3), max_size=200), st.lists(st.integers(0, 3), max_size=200), st.integers(0, 150))
def test_a_common_prefix_is_common_and_ends_where_they_differ(one, other, shared):
    one, other = [1] * shared + one, [1] * shared + other
    length = count_common_prefix(one, other)
    assert one[:length] == other[:length]
    assert length in (len(one), len(other)) or one[length] != other[length]


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=30), max_size=20), st.integers(0, 100))
def test_the_cache_never_holds_more_than_it_may(sequences, capacity):
    cache = PromptCache(capacity)
    for tokens in sequences:
        cache.add(tokens)
        assert cache.token_count <= capacity
        assert cache.count_reusable(tokens) in (0, *range(len(tokens)))
