from __future__ import annotations

import itertools

import anyio
import pytest
from scripted import Scripted, closed, fired, in_virtual_time, outcomes, since_start, timed

from pytest_ollama_perf.core.sample import Phase
from pytest_ollama_perf.loadgen.engine import execute_load
from pytest_ollama_perf.loadgen.recorder import SampleRecorder


def test_each_client_sends_its_next_request_when_the_last_is_answered():
    samples = fired(closed(concurrency=2, requests=6), Scripted(1.0))
    assert since_start(samples) == [0, 0, 1, 1, 2, 2]


def test_a_slow_client_does_not_hold_up_the_others():
    backend = Scripted(lambda request: 10.0 if request.client == 0 else 1.0)
    samples = fired(closed(concurrency=2, requests=5), backend)
    assert [sample.client for sample in samples] == [0, 1, 1, 1, 1]
    assert since_start(samples) == [0, 0, 1, 2, 3]


def test_as_many_requests_run_as_there_are_clients():
    backend = Scripted()
    fired(closed(concurrency=7, requests=50), backend)
    assert backend.peak == 7


def test_warm_up_comes_on_top_of_the_requests_and_first():
    samples = fired(closed(concurrency=2, requests=3, warmup=2), Scripted())
    assert [sample.stage for sample in samples] == [Phase.WARMUP] * 2 + [Phase.MEASURED] * 3


def test_warm_up_flows_into_the_measured_requests_without_a_barrier():
    backend = Scripted(lambda request: 3.0 if request.index == 0 else 1.0)
    samples = fired(closed(concurrency=2, requests=3, warmup=2), backend)
    assert since_start(samples) == [0, 0, 1, 2, 3]


def test_clients_without_a_request_open_no_connection():
    backend = Scripted()
    fired(closed(concurrency=9, requests=2), backend)
    assert backend.events == ["connect 2", "send", "send"]


def test_connections_stand_to_every_server_before_the_clock_starts():
    backend = Scripted()
    samples = fired(closed(concurrency=3, requests=3), backend, targets=2)
    assert backend.events[0] == "connect 6"
    assert since_start(samples) == [0, 0, 0]


def test_think_time_comes_between_requests_only():
    backend = Scripted(1.0)
    recorder = SampleRecorder()
    ended = in_virtual_time(lambda: execute_load(closed(requests=3, think_time_s=(0.5, 0.5)), backend, recorder))
    assert since_start(recorder.get_samples()) == [0, 1.5, 3]
    assert ended == pytest.approx(0.5 + 4.0)


def test_think_time_between_bounds_is_the_same_for_the_same_seed():
    workload = closed(requests=20, think_time_s=(0.25, 0.75))
    first, second = (since_start(fired(workload, Scripted(1.0))) for _ in range(2))
    other = since_start(fired(closed(requests=20, think_time_s=(0.25, 0.75), seed=2), Scripted(1.0)))
    pauses = [later - sooner - 1.0 for sooner, later in itertools.pairwise(first)]
    assert first == second != other
    assert all(0.25 <= pause <= 0.75 for pause in pauses)
    assert len(set(pauses)) == 19


def test_a_duration_ends_sending_and_lets_running_requests_finish():
    samples = fired(closed(**timed(duration_s=2.5)), Scripted(1.0))
    assert since_start(samples) == [0, 1, 2]
    assert outcomes(samples) == ["ok"] * 3


def test_nothing_is_sent_at_the_deadline_itself():
    assert since_start(fired(closed(**timed(duration_s=3.0)), Scripted(1.0))) == [0, 1, 2]


def test_a_duration_counts_from_the_first_measured_request():
    samples = fired(closed(**timed(duration_s=2.5, warmup=4)), Scripted(1.0))
    assert since_start(samples) == [0, 1, 2, 3, 4, 5, 6]
    assert sum(sample.stage is Phase.MEASURED for sample in samples) == 3


def test_a_request_unfinished_after_the_drain_is_late():
    backend = Scripted(lambda request: 100.0 if request.index else 1.0)
    samples = fired(closed(**timed(duration_s=2.0, drain_s=5.0)), backend)
    assert outcomes(samples) == ["ok", "late"]
    assert since_start(samples, "done_ns") == [1, 7]
    assert samples[1].error == "unfinished 5 s after the end of the load"


def test_a_request_that_ends_within_the_drain_counts():
    samples = fired(closed(**timed(duration_s=2.0, drain_s=5.0)), Scripted(6.9))
    assert outcomes(samples) == ["ok"]


def test_without_a_drain_requests_are_late_at_the_deadline():
    samples = fired(closed(**timed(duration_s=2.0, drain_s=0.0)), Scripted(1.5))
    assert outcomes(samples) == ["ok", "late"]
    assert since_start(samples, "done_ns") == [1.5, 2.0]


def test_a_count_of_requests_is_never_cut_by_a_drain():
    assert outcomes(fired(closed(requests=2, drain_s=0.0), Scripted(5000.0))) == ["ok", "ok"]


def test_a_client_that_would_think_past_the_deadline_leaves_at_once():
    recorder = SampleRecorder()
    workload = closed(**timed(duration_s=5.0, think_time_s=(60.0, 60.0)))
    ended = in_virtual_time(lambda: execute_load(workload, Scripted(1.0), recorder))
    assert ended == pytest.approx(0.5 + 1.0)


def test_a_deadline_that_comes_while_a_client_thinks_sends_nothing_more():
    # client 1 thinks from 4.5 s to 8.5 s; meanwhile client 0 starts the measured time, 5 s to 8 s
    backend = Scripted(lambda request: {0: 1.0, 1: 4.5}.get(request.index, 0.1))
    workload = closed(**timed(concurrency=2, warmup=2, duration_s=3.0, think_time_s=(4.0, 4.0)))
    assert since_start(fired(workload, backend)) == [0, 0, 5]


def test_targets_take_turns():
    samples = fired(closed(requests=6), Scripted(), targets=3)
    assert [sample.url[-1] for sample in samples] == list("012012")


def test_the_caller_may_choose_the_target():
    samples = fired(closed(requests=4), Scripted(), targets=2, choose=iter([0, 0, 1, 1]).__next__)
    assert [sample.url[-1] for sample in samples] == list("0011")


def test_request_ids_are_unique_and_tell_runs_apart():
    first, second = (fired(closed(requests=12), Scripted()) for _ in range(2))
    assert len({sample.request_id for sample in first + second}) == 24


def test_request_ids_of_one_salt_are_readable_and_stable():
    samples = fired(closed(requests=2, salt="monday"), Scripted())
    assert [sample.request_id for sample in samples] == ["ollama-perf-8f909f4c-000000", "ollama-perf-8f909f4c-000001"]


def test_the_first_measured_request_is_announced_once():
    calls = []
    backend = Scripted()
    fired(
        closed(concurrency=2, requests=5, warmup=3),
        backend,
        on_measured=lambda: calls.append(len(backend.requests)),
    )
    assert calls == [3]


@pytest.mark.parametrize("options", [("asyncio", {}), ("asyncio", {"use_uvloop": True}), ("trio", {})])
def test_every_event_loop_will_do(options):
    backend, recorder = Scripted(0.001), SampleRecorder()
    backend.epoch_ns = 10**15
    anyio.run(
        execute_load,
        closed(concurrency=4, requests=20),
        backend,
        recorder,
        backend=options[0],
        backend_options=options[1],
    )
    assert [sample.index for sample in recorder.get_samples()] == list(range(20))
    assert backend.peak == 4
