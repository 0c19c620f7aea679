"""What the versions of Ollama do differently."""

from __future__ import annotations

import pytest
from simkit import MS, virtual, world

from pytest_ollama_perf.simulator.settings import SimulatorSettings, get_profile


@pytest.mark.parametrize(("version", "slots"), [("0.5.1", 4), ("0.9.6", 4), ("0.10.0", 1), ("0.32.15", 1)])
def test_an_unset_number_of_slots_means_what_the_version_says(version, slots):
    assert SimulatorSettings(version=version).slot_count == slots
    assert SimulatorSettings(version=version, slots=2).slot_count == 2


def counters_of(version):
    """Return the counters of a first request, of its repetition and of one of a single token."""
    seen = []

    @virtual
    async def run():
        async with world(version=version, slots=1, sampling_share=0.1) as sim:
            for limit in (11, 11, 1):
                seen.append((await sim.tell("a b c d", limit=limit)).counters)

    run()
    return seen


def test_old_runners_leave_sampling_and_the_single_token_out():
    first, _, single = counters_of("0.9.6")
    assert first.eval_duration_ns == 9 * MS
    assert single.eval_duration_ns is None


def test_version_0_30_0_does_not_count_cached_tokens():
    first, again, _ = counters_of("0.30.0")
    assert (first.prompt_eval_count, again.prompt_eval_count) == (4, 1)
    assert again.prompt_eval_cached_count is None


def test_the_default_version_counts_cached_tokens_without_saying_how_many():
    _, again, single = counters_of("0.32.15")
    assert (again.prompt_eval_count, again.prompt_eval_cached_count) == (4, None)
    assert single.eval_duration_ns == 1000


def test_from_0_33_3_the_cached_tokens_are_told():
    first, again, _ = counters_of("0.33.3")
    assert (first.prompt_eval_count, first.prompt_eval_cached_count) == (4, None)
    assert (again.prompt_eval_count, again.prompt_eval_cached_count) == (4, 3)


def test_a_build_suffix_changes_nothing():
    assert get_profile("0.33.3-rc1") == get_profile("0.33.3")
