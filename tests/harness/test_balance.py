"""How requests are dealt out to several servers, and what four servers do in virtual time."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from functools import cache

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from pytest_ollama_perf.analysis.load_profile import summarise_servers
from pytest_ollama_perf.core.run import Run, ServerInfo
from pytest_ollama_perf.core.workload import Balance, Workload
from pytest_ollama_perf.loadgen import BalancedBackend, Balancer
from pytest_ollama_perf.loadgen.engine import execute_load
from pytest_ollama_perf.loadgen.recorder import SampleRecorder
from pytest_ollama_perf.metrics.summary import summarise
from pytest_ollama_perf.simulator.process import open_simulated_backend
from pytest_ollama_perf.simulator.settings import SimulatedModel, SimulatorSettings

TURNS, CHANCE, LEAST = Balance.ROUND_ROBIN, Balance.RANDOM, Balance.LEAST_IN_FLIGHT


def dealt(balance, weights, requests, **more):
    balancer = Balancer(balance, weights, **more)
    return [balancer.choose() for index in range(requests)]


def test_servers_take_turns():
    assert dealt(TURNS, [1, 1, 1], 7) == [0, 1, 2, 0, 1, 2, 0]


def test_a_heavier_server_has_more_turns_spread_out():
    assert dealt(TURNS, [5, 1, 1], 7) == [0, 0, 1, 0, 2, 0, 0]  # nginx's own example


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_every_cycle_of_turns_is_exactly_by_weight(weights):
    counted = Counter(dealt(TURNS, weights, 3 * sum(weights)))
    assert [counted[target] for target in range(len(weights))] == [3 * weight for weight in weights]


def test_chance_is_by_weight_and_repeatable():
    first = dealt(CHANCE, [3, 1], 4000, seed=7)
    assert first == dealt(CHANCE, [3, 1], 4000, seed=7)
    assert first != dealt(CHANCE, [3, 1], 4000, seed=8)
    assert Counter(first)[0] == pytest.approx(3000, abs=150)


def test_the_server_with_the_fewest_in_flight_gets_the_next():
    balancer = Balancer(LEAST, [1, 1, 1])
    assert [balancer.choose() for index in range(3)] == [0, 1, 2]
    balancer.release(1)
    assert balancer.choose() == 1
    balancer.release(2)
    balancer.release(0)
    assert {balancer.choose(), balancer.choose()} == {0, 2}


def test_a_heavier_server_may_have_more_in_flight():
    assert sorted(dealt(LEAST, [2, 1], 6)) == [0, 0, 0, 0, 1, 1]


class Several:
    """Simulators behind one backend, by target; samples carry their URLs."""

    def __init__(self, backends):
        self.backends = backends

    def now_ns(self):
        return self.backends[0].now_ns()

    async def connect(self, connections): ...

    async def send(self, request, record):
        await self.backends[request.target].send(request, record)

    async def aclose(self): ...


ONE_GPU = {"aggregate": ((1, 40.0), (4, 106.0), (16, 205.0)), "prefill_tps": 3000.0}
URLS = [f"http://gpu{number}:11434" for number in range(4)]


def measured(workload, settings):
    """Fire ``workload`` at a server for each of ``settings`` in virtual time and return the run."""
    recorder = SampleRecorder()

    async def main():
        async with AsyncExitStack() as stack:
            backends = [await stack.enter_async_context(open_simulated_backend(one)) for one in settings]
            for backend, url in zip(backends, URLS, strict=False):
                backend._url = url
            balancer = Balancer(workload.balance, [1.0] * len(backends), workload.random_seed)
            backend = BalancedBackend(Several(backends), balancer)
            await execute_load(workload, backend, recorder, targets=len(backends), choose=balancer.choose)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return Run(
        id="r",
        workload=workload,
        samples=recorder.get_samples(),
        servers={url: ServerInfo() for url in URLS[: len(settings)]},
    )


def gpu(**more):
    fixed = {
        "models": (SimulatedModel(name="m"),),
        "load_time_s": 0.0,
        "run_jitter": 0.0,
        "token_jitter": 0.0,
        "slots": 4,
    }
    return SimulatorSettings(**{**fixed, **ONE_GPU, **more})


USERS = Workload(model="m", concurrency=20, requests=100, warmup=20, num_predict=240)


@pytest.mark.exhaustive
def test_four_servers_for_twenty_users_do_what_was_published():
    """366 tokens/s and a TTFT of 0.75 s, each server with its five users in slots of their own.

    One server of four slots gives 105 tokens/s and lets them wait 36.7 s: ``tests/simulator`` has that one.
    """
    users = msgspec.structs.replace(USERS, prompt_words=150)
    found = summarise(measured(users, [gpu(aggregate=((1, 40.0), (5, 98.0)), prefill_tps=1000.0, slots=5)] * 4))
    assert found.metrics["throughput"].value == pytest.approx(366, rel=0.03)
    assert found.metrics["ttft"].mean == pytest.approx(0.75, rel=0.03)


@cache
def four_alike():
    return measured(USERS, [gpu()] * 4)


@cache
def one_alone():
    return measured(USERS, [gpu()])


@pytest.mark.exhaustive
def test_four_servers_do_four_times_as_much_and_end_the_queue():
    one, four = summarise(one_alone()), summarise(four_alike())
    assert four.metrics["throughput_whole"].value == pytest.approx(4 * one.metrics["throughput_whole"].value, rel=0.2)
    assert four.metrics["ttft"].mean < one.metrics["ttft"].mean / 5


def test_the_numbers_of_each_server_add_up_to_those_of_all():
    run = four_alike()
    summary = summarise(run)
    (found,) = summarise_servers(run, summary)
    assert [one.requests for one in found.servers] == [25] * 4
    assert sum(one.throughput for one in found.servers) == pytest.approx(summary.metrics["throughput_whole"].value)
    assert (found.uneven, found.slow, found.imbalance) == (None, (), pytest.approx(1.0))


def test_one_slow_server_is_named():
    run = measured(USERS, [gpu(), gpu(), gpu(aggregate=((1, 20.0), (4, 53.0))), gpu()])
    (found,) = summarise_servers(run, summarise(run))
    (slow,) = found.slow
    assert slow.startswith("http://gpu2:11434 makes 13.")
    assert "tokens/s, the others 28.4" in slow


def test_least_in_flight_sends_a_slow_server_less():
    workload = Workload(model="m", concurrency=20, requests=100, warmup=20, num_predict=240, balance=LEAST)
    run = measured(workload, [gpu(), gpu(), gpu(aggregate=((1, 10.0), (4, 26.0))), gpu()])
    (found,) = summarise_servers(run, summarise(run))
    shares = [one.share for one in found.servers]
    assert shares[2] < 0.15 < min(shares[:2])


def test_a_single_server_has_no_numbers_of_its_own():
    run = one_alone()
    assert summarise_servers(run, summarise(run)) == ()
