"""Throughput of short runs: a number and an interval that holds the throughput of a long run of the same load."""

from __future__ import annotations

import functools
import math
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_makers import failure, run_of, sample

sys.path.append(str(Path(__file__).parents[1] / "experiments"))
from virtual import samples_of, settings_of

from pytest_ollama_perf.analysis.limits import find_hints
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.verdict import HintCode
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.metrics.summary import summarise


@functools.cache
def summary_of(slots, clients, requests):
    server = settings_of(slots=slots, tps=100.0, scaling=0.7, prefill_tps=2000.0)
    load = Workload(model="m", concurrency=clients, requests=requests, num_predict=64, prompt_words=64)
    return summarise(Run(id="r", workload=load, samples=samples_of(load, server)))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 3, 5, 8, 20]), st.floats(1.0, 4.0))
def test_the_interval_of_a_short_run_holds_the_throughput_of_a_long_one(slots, clients, waves):
    truth = summary_of(slots, clients, 20 * clients).metrics["throughput"].value
    found = summary_of(slots, clients, int(waves * clients)).metrics["throughput"]
    assert 0.0 < found.value < 1.05 * truth
    if interval := found.get_interval():
        assert interval[0] <= 1.02 * truth
        assert interval[1] >= 0.98 * truth


@pytest.mark.parametrize("clients", [2, 5, 20])
@pytest.mark.parametrize("slots", [1, 4, 20])
def test_as_many_requests_as_clients_are_measured_over_the_whole_run(slots, clients):
    found = summary_of(slots, clients, clients)
    assert found.steady_s == found.wall_s
    assert found.metrics["throughput"].value == pytest.approx(found.metrics["throughput_whole"].value)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 500)), min_size=1, max_size=30))
def test_throughput_is_never_zero_or_nan_if_a_request_succeeded(requests):
    samples = [
        sample(index, client=client, sent=sent) if ok else failure(index, client=client, sent=sent)
        for index, (ok, client, sent) in enumerate(requests)
    ]
    found = summarise(run_of(*samples, workload={"concurrency": 5})).metrics
    assert math.isfinite(found["throughput"].value)
    assert (found["throughput"].value > 0.0) == any(ok for ok, _, _ in requests)


def test_a_run_that_is_too_short_says_so_and_names_what_is_enough():
    load = Workload(model="m", concurrency=20, requests=30, num_predict=64, prompt_words=64)
    run = Run(id="r", workload=load, samples=samples_of(load, settings_of(slots=4, tps=100.0)))
    (hint,) = [hint for hint in find_hints(run, summarise(run)) if hint.code is HintCode.SHORT_STEADY_WINDOW]
    assert hint.text.endswith("use 60 requests or more")
    long = Workload(model="m", concurrency=2, requests=30, num_predict=64, prompt_words=64)
    run = Run(id="r", workload=long, samples=samples_of(long, settings_of(slots=4, tps=100.0)))
    assert not any(hint.code is HintCode.SHORT_STEADY_WINDOW for hint in find_hints(run, summarise(run)))
