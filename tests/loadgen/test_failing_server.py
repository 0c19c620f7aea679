"""A load against a server that refuses or fails: paced, limited in size, and stopped early where that is asked for."""

from __future__ import annotations

import anyio
import pytest
from scripted import Scripted, closed, fired, in_virtual_time, opened, outcomes, since_start, timed

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.sample import Outcome, Phase
from pytest_ollama_perf.core.workload import Stage
from pytest_ollama_perf.loadgen.engine import execute_load
from pytest_ollama_perf.loadgen.plan import LoadPlan
from pytest_ollama_perf.loadgen.recorder import SampleRecorder
from pytest_ollama_perf.loadgen.runner import run_load


class Failing(Scripted):
    """Fails immediately while ``is_down`` says so of the second since the start."""

    def __init__(self, is_down, outcome=Outcome.REFUSED):
        super().__init__(0.01)
        self.is_down, self.outcome = is_down, outcome

    async def send(self, request, record):
        if not self.is_down(anyio.current_time() - 0.5):
            await super().send(request, record)
            return
        await anyio.lowlevel.checkpoint()
        record(self.sample(request, self.now_ns(), self.outcome))


def always(at_s):
    return True


def test_a_closed_loop_does_not_flood_a_dead_server():
    samples = fired(closed(concurrency=4, **timed(duration_s=100.0)), Failing(always))
    assert 4 * 80 <= len(samples) <= 4 * 110
    assert {sample.outcome for sample in samples} == {Outcome.REFUSED}
    assert since_start(samples)[:12:4] == [0, 0.05, 0.15]


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.HTTP_ERROR])
def test_a_day_without_a_server_produces_a_limited_number_of_failures(outcome):
    samples = fired(closed(concurrency=8, **timed(duration_s=86_400.0)), Failing(always, outcome))
    assert len(samples) <= 8 * 500
    assert max(samples, key=lambda sample: sample.sent_ns).sent_ns > 80_000e9


def test_clients_that_come_and_go_do_not_flood_a_dead_server():
    stages = (Stage(level=4, seconds=50.0),)
    workload = closed(concurrency=4, stages=stages, **timed(duration_s=50.0))
    assert len(fired(workload, Failing(always))) <= 4 * 60


@pytest.mark.parametrize("outcome", [Outcome.CUT_OFF, Outcome.BUSY, Outcome.HTTP_ERROR, Outcome.CLIENT_ERROR])
def test_other_failures_are_paced_after_ten_in_a_row(outcome):
    samples = fired(closed(**timed(duration_s=100.0)), Failing(always, outcome))
    assert since_start(samples)[:12] == [0] * 11 + [0.05]
    assert len(samples) <= 120


def test_a_short_outage_costs_few_requests():
    workload = closed(concurrency=2, **timed(duration_s=10.0))
    samples = fired(workload, Failing(lambda at_s: 4.0 <= at_s < 5.5))
    failed = sum(not sample.ok for sample in samples)
    assert 2 <= failed <= 20
    assert failed / len(samples) < 0.02
    assert any(sample.ok and at > 6.6 for sample, at in zip(samples, since_start(samples), strict=True))


def stopped(workload, backend):
    recorder, reasons = SampleRecorder(), []

    async def main():
        reasons.append(await execute_load(workload, backend, recorder))

    ended = in_virtual_time(main)
    return recorder.get_samples(), reasons[0], ended


@pytest.mark.parametrize(
    "workload",
    [
        closed(concurrency=2, **timed(duration_s=1000.0), abort_error_rate=0.5),
        opened(rate=10.0, **timed(duration_s=1000.0), abort_error_rate=0.5),
        closed(
            concurrency=2, stages=(Stage(level=2, seconds=1000.0),), **timed(duration_s=1000.0), abort_error_rate=0.5
        ),
    ],
)
def test_a_load_stops_when_more_requests_fail_than_it_allows(workload):
    samples, reason, ended = stopped(workload, Failing(always))
    assert reason == "10 of 10 requests failed, more than abort_error_rate=50%"
    assert len(samples) <= 12
    assert ended < 20


def test_a_load_goes_on_while_fewer_requests_fail_than_it_allows():
    workload = closed(requests=100, abort_error_rate=0.5)
    samples, reason, _ = stopped(workload, Failing(lambda at_s: at_s < 0.2))
    assert (len(samples), reason) == (100, "")


def test_warm_up_does_not_stop_a_load():
    class ColdStart(Scripted):
        async def send(self, request, record):
            outcome = Outcome.OK if request.stage is Phase.MEASURED else Outcome.REFUSED
            record(self.sample(request, self.now_ns(), outcome))

    samples, reason, _ = stopped(closed(requests=30, warmup=20, abort_error_rate=0), ColdStart())
    assert (outcomes(samples), reason) == (["refused"] * 20 + ["ok"] * 30, "")


def test_many_clients_of_a_dead_server_produce_a_limited_number_of_failures():
    samples = fired(closed(concurrency=1000, **timed(duration_s=100.0)), Failing(always))
    assert len(samples) <= 1000 * 9 + 100 * 100


def test_requests_in_flight_get_the_time_of_the_drain_when_a_load_stops():
    class Mixed(Failing):
        async def send(self, request, record):
            if request.client:
                await super().send(request, record)
            else:
                await Scripted.send(self, request, record)

    backend = Mixed(always)
    backend.service_s = 500.0
    workload = closed(concurrency=2, **timed(duration_s=1000.0), drain_s=3.0, abort_error_rate=0)
    samples, _, ended = stopped(workload, backend)
    assert outcomes(samples).count("late") == 1
    assert ended < 20


def test_the_measurement_says_why_the_load_stopped():
    class Refusing(Scripted):
        async def send(self, request, record):
            record(self.sample(request, self.now_ns(), Outcome.REFUSED))

    measured = run_load(closed(concurrency=10, requests=500, abort_error_rate=0.1), Refusing)
    assert measured.aborted == "10 of 10 requests failed, more than abort_error_rate=10%"
    assert len(measured.samples) < 30


@pytest.mark.parametrize("limit", [-0.1, 1.5])
def test_an_impossible_share_is_refused(limit):
    with pytest.raises(ConfigError, match="abort_error_rate"):
        LoadPlan(closed(abort_error_rate=limit))
