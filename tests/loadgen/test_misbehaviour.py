from __future__ import annotations

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import Scripted, closed, fired, in_virtual_time, opened, outcomes, since_start, timed

from pytest_ollama_perf.core.sample import Outcome
from pytest_ollama_perf.loadgen.engine import execute_load
from pytest_ollama_perf.loadgen.recorder import SampleRecorder


class Faulty(Scripted):
    """Misbehaves as scripted for each request."""

    def __init__(self, faults: dict[int, str]) -> None:
        super().__init__(1.0)
        self.faults = faults

    async def send(self, request, record):
        fault = self.faults.get(request.index, "")
        if fault == "raises at once":
            raise ValueError("no such thing")
        if fault == "raises later":
            await anyio.sleep(0.5)
            raise OSError("gone")
        if fault == "raises a group":
            async with anyio.create_task_group() as group:
                group.start_soon(self._fail)
        if fault == "records nothing":
            return
        await super().send(request, record)
        if fault == "records twice":
            record(self.sample(request, 0, Outcome.MALFORMED))
        if fault == "raises after recording":
            raise ValueError("too late")

    async def _fail(self):
        raise ValueError("deep inside")


FAULTS = [
    "",
    "raises at once",
    "raises later",
    "raises a group",
    "records nothing",
    "records twice",
    "raises after recording",
]


def test_a_backend_that_raises_leaves_a_failed_sample_and_the_load_goes_on():
    samples = fired(closed(requests=3), Faulty({1: "raises at once"}))
    assert outcomes(samples) == ["ok", "client_error", "ok"]
    assert samples[1].error == "the client failed: ValueError: no such thing"
    assert since_start(samples) == [0, 1, 1]


def test_a_failed_sample_keeps_what_the_request_was():
    samples = fired(opened(requests=2, rate=1.0), Faulty({1: "raises later"}))
    failed = samples[1]
    assert (failed.index, failed.scheduled_ns, failed.sent_ns, failed.done_ns) == (
        1,
        1_500_000_000,
        1_500_000_000,
        2_000_000_000,
    )


def test_a_backend_that_records_nothing_leaves_a_failed_sample():
    samples = fired(closed(requests=2), Faulty({0: "records nothing"}))
    assert outcomes(samples) == ["client_error", "ok"]
    assert samples[0].error == "the client recorded nothing"


@pytest.mark.parametrize("fault", ["records twice", "raises after recording"])
def test_the_first_record_of_a_request_stands(fault):
    assert outcomes(fired(closed(requests=3), Faulty({1: fault}))) == ["ok", "ok", "ok"]


def test_a_backend_that_cannot_connect_is_asked_to_send_all_the_same():
    class Unconnected(Scripted):
        async def connect(self, connections):
            raise OSError("no one there")

    assert outcomes(fired(closed(requests=2), Unconnected())) == ["ok", "ok"]


@settings(max_examples=60, deadline=None)
@given(
    faults=st.lists(st.sampled_from(FAULTS), min_size=1, max_size=30),
    concurrency=st.integers(1, 8),
    rate=st.booleans(),
)
def test_every_request_leaves_exactly_one_sample(faults, concurrency, rate):
    words = {"requests": len(faults)}
    workload = opened(**words) if rate else closed(concurrency=concurrency, **words)
    samples = fired(workload, Faulty(dict(enumerate(faults))))
    assert [sample.index for sample in samples] == list(range(len(faults)))


def cancelled_after(seconds, workload, backend):
    recorder = SampleRecorder()

    async def main():
        with anyio.move_on_after(seconds):
            await execute_load(workload, backend, recorder)

    ended = in_virtual_time(main)
    return recorder.get_samples(), ended


@pytest.mark.parametrize("workload", [closed(concurrency=2, requests=100), opened(rate=1.0, requests=100)])
def test_cancelling_leaves_a_cancelled_sample_of_each_request_in_flight(workload):
    samples, ended = cancelled_after(3.2, workload, Scripted(2.0))
    assert ended == 3.2
    assert set(outcomes(samples)) == {"ok", "cancelled"}
    assert sum(sample.outcome is Outcome.CANCELLED for sample in samples) == 2
    assert [sample.index for sample in samples] == list(range(len(samples)))


def test_cancelling_during_the_drain_is_no_lateness():
    samples, _ = cancelled_after(4.0, closed(**timed(duration_s=1.0, drain_s=60.0)), Scripted(50.0))
    assert outcomes(samples) == ["cancelled"]


def test_cancelling_before_the_connections_stand_leaves_nothing():
    samples, ended = cancelled_after(0.1, closed(), Scripted())
    assert (samples, ended) == ((), 0.1)


def test_a_backend_that_forgets_a_cancelled_request_still_leaves_its_sample():
    class Forgetful(Scripted):
        async def send(self, request, record):
            await anyio.sleep_forever()

    samples, _ = cancelled_after(2.0, closed(concurrency=3), Forgetful())
    assert outcomes(samples) == ["cancelled"] * 3


def test_a_backend_that_never_waits_can_be_cancelled():
    class Instant(Scripted):
        async def send(self, request, record):
            record(self.sample(request, self.now_ns(), Outcome.REFUSED))
            if request.index == 500:
                self.scope.cancel()

    backend, recorder = Instant(), SampleRecorder()

    async def main():
        with anyio.CancelScope() as backend.scope:
            await execute_load(closed(requests=100_000), backend, recorder)

    in_virtual_time(main)
    assert recorder.compute_progress().done == 501
