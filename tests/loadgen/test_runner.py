from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time

import anyio
import pytest
import trio
from child_process import in_child_process
from scripted import Scripted, closed, outcomes

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.sample import Outcome
from pytest_ollama_perf.loadgen import runner
from pytest_ollama_perf.loadgen.runner import run_load, run_load_async


class Quick(Scripted):
    """Answers within a millisecond, on the clock of the wall."""

    def __init__(self, service_s=0.001):
        super().__init__(service_s)
        self.thread = threading.current_thread()

    def now_ns(self):
        return time.perf_counter_ns()

    async def connect(self, connections):
        self.events.append(f"connect {connections}")


class Endless(Quick):
    """Answers two requests, calls ``then``, and answers no more."""

    def __init__(self, then=lambda: None):
        super().__init__()
        self.then = then

    async def serve(self, request):
        if request.index == 3:  # sent when both of the first two are answered
            self.then()
        await (anyio.sleep_forever() if request.index >= 2 else super().serve(request))


class Kept:
    """Keeps the backend that the load's thread made."""

    def __init__(self, make):
        self.make = make

    def __call__(self):
        self.backend = self.make()
        return self.backend


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    for thread in threading.enumerate():
        if thread.name == "ollama-perf-load":
            thread.join(5)
            assert not thread.is_alive()


def test_a_load_leaves_its_samples_and_its_span():
    fired = run_load(closed(concurrency=3, requests=9), Quick)
    assert outcomes(fired.samples) == ["ok"] * 9
    assert fired.aborted == ""
    assert fired.started_ns <= min(sample.sent_ns for sample in fired.samples)
    assert max(sample.done_ns for sample in fired.samples) <= fired.ended_ns


def test_the_client_watched_itself():
    watch = run_load(closed(requests=20), Quick).watch
    assert watch.cpu_share > 0
    assert 0 <= watch.loop_lag_p99_s <= watch.loop_lag_max_s


def test_the_backend_is_made_in_the_loads_thread_and_closed():
    made = Kept(Quick)
    run_load(closed(requests=2), made)
    assert made.backend.thread is not threading.current_thread()
    assert made.backend.events == ["connect 1", "send", "send", "close"]


def test_progress_is_reported_in_the_callers_thread_up_to_the_end():
    seen = []
    run_load(
        closed(requests=30, warmup=2),
        Quick,
        on_progress=lambda progress: seen.append((threading.current_thread(), progress)),
        progress_every_s=0.005,
    )
    assert {thread for thread, _ in seen} == {threading.current_thread()}
    counts = [progress.done for _, progress in seen]
    assert counts == sorted(counts)
    last = seen[-1][1]
    assert (last.sent, last.done, last.total, last.tokens) == (32, 32, 32, 320)


@pytest.mark.parametrize("loop", [asyncio.run, trio.run])
def test_a_load_runs_from_inside_an_event_loop(loop):
    async def main(*_):
        return run_load(closed(requests=2), Quick)

    fired = loop(main) if loop is trio.run else loop(main())
    assert outcomes(fired.samples) == ["ok", "ok"]


def stopped(make_backend, raising, **words):
    """Run a load that is stopped; return the backend, the raised error and what was handed over."""
    handed, made = [], Kept(make_backend)
    with pytest.raises(raising) as raised:
        run_load(closed(concurrency=2, requests=50), made, on_abort=handed.append, **words)
    (fired,) = handed
    return made.backend, raised.value, fired


def interrupt():
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def assert_stopped(backend, fired):
    assert backend.in_flight == 0
    assert backend.events[-1] == "close"
    assert outcomes(fired.samples).count("ok") == 2
    assert set(outcomes(fired.samples)[2:]) == {"cancelled"}


@in_child_process
def test_ctrl_c_while_waiting_stops_the_load_and_hands_over_what_was_measured():
    backend, _, fired = stopped(lambda: Endless(interrupt), KeyboardInterrupt, progress_every_s=60.0)
    assert_stopped(backend, fired)
    assert fired.aborted == "KeyboardInterrupt"


@in_child_process
def test_ctrl_c_while_progress_is_shown_stops_the_load():
    def show(progress):
        if progress.done == 2 and progress.in_flight == 2:
            signal.raise_signal(signal.SIGINT)

    backend, _, fired = stopped(Endless, KeyboardInterrupt, on_progress=show, progress_every_s=0.005)
    assert_stopped(backend, fired)


@in_child_process
def test_a_sigterm_handler_that_raises_stops_the_load():
    def leave(*_):
        raise SystemExit("terminated")

    before = signal.signal(signal.SIGTERM, leave)
    try:
        backend, _, fired = stopped(
            lambda: Endless(lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)), SystemExit
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert_stopped(backend, fired)
    assert fired.aborted == "SystemExit: terminated"


def test_what_progress_raises_passes_through_as_it_is():
    reason = RuntimeError("seen enough")

    def show(progress):
        if progress.in_flight == 2 and progress.done == 2:
            raise reason

    backend, raised, fired = stopped(Endless, RuntimeError, on_progress=show, progress_every_s=0.005)
    assert raised is reason
    assert_stopped(backend, fired)


def test_a_load_stopped_while_its_backend_is_made_leaves_no_success():
    gate = threading.Event()

    def late():
        gate.wait(5)
        return Quick()

    def show(_):
        gate.set()
        raise KeyboardInterrupt

    _, _, fired = stopped(late, KeyboardInterrupt, on_progress=show, progress_every_s=0.005)
    assert [sample for sample in fired.samples if sample.ok] == []


@in_child_process
def test_a_second_ctrl_c_while_stopping_still_hands_over():
    class Stubborn(Endless):
        async def serve(self, request):
            try:
                await super().serve(request)
            except anyio.get_cancelled_exc_class():
                interrupt()
                raise

    _, _, fired = stopped(lambda: Stubborn(interrupt), KeyboardInterrupt)
    assert outcomes(fired.samples).count("ok") == 2


@in_child_process
def test_a_loop_that_hangs_does_not_keep_the_caller():
    runner._STOP_TIMEOUT_S = 0.02
    release = threading.Event()

    def hang():
        interrupt()
        release.wait(5)

    try:
        _, _, fired = stopped(lambda: Endless(hang), KeyboardInterrupt)
        assert outcomes(fired.samples) == ["ok", "ok"]
        assert fired.ended_ns == max(sample.done_ns for sample in fired.samples)
    finally:
        release.set()


def test_an_impossible_workload_is_refused_before_anything_is_made():
    made = []
    with pytest.raises(ConfigError, match="requests=0"):
        run_load(closed(requests=0), lambda: made.append(1))
    assert made == []


def test_a_backend_that_cannot_be_made_raises_in_the_caller():
    def make():
        raise ConfigError("no such file")

    with pytest.raises(ConfigError, match="no such file"):
        run_load(closed(), make)


def test_a_mistake_in_the_callers_choice_raises_as_it_is_and_keeps_the_samples():
    handed = []
    with pytest.raises(ZeroDivisionError):
        run_load(
            closed(requests=9),
            Quick,
            choose=(1 // (4 - index) * 0 for index in range(9)).__next__,
            on_abort=handed.append,
        )
    assert outcomes(handed[0].samples) == ["ok"] * 4
    assert handed[0].aborted.startswith("ZeroDivisionError")


@pytest.mark.parametrize("ending", ["raises", "hangs"])
def test_a_backend_that_cannot_close_loses_nothing(ending, monkeypatch):
    monkeypatch.setattr(runner, "_CLOSE_TIMEOUT_S", 0.01)

    class Unclosable(Quick):
        async def aclose(self):
            if ending == "raises":
                raise OSError("no")
            await anyio.sleep_forever()

    assert outcomes(run_load(closed(requests=2), Unclosable).samples) == ["ok", "ok"]


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_rests_during_a_load_and_is_put_back(enabled):
    class Looking(Quick):
        async def serve(self, request):
            self.events.append("collecting" if gc.isenabled() else "resting")

    made = Kept(Looking)
    gc.enable() if enabled else gc.disable()
    try:
        run_load(closed(requests=1), made)
        assert gc.isenabled() is enabled
        assert gc.get_freeze_count() == 0
    finally:
        gc.enable()
    assert "resting" in made.backend.events


def test_a_failed_load_puts_the_garbage_collector_back():
    with pytest.raises(ZeroDivisionError):
        run_load(closed(), lambda: 1 // 0)
    assert gc.isenabled()


def test_loads_side_by_side_put_the_garbage_collector_back_together():
    inner = []

    class Outer(Quick):
        def __init__(self):
            super().__init__()
            inner.append(run_load(closed(requests=1), Quick))
            self.resting = not gc.isenabled()

    made = Kept(Outer)
    run_load(closed(requests=1), made)
    assert made.backend.resting
    assert gc.isenabled()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_async_caller_keeps_its_loop(backend):
    ticks = []

    async def tick():
        while True:
            ticks.append(1)
            await anyio.sleep(0.001)

    async def main():
        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            fired = await run_load_async(closed(requests=20), Quick)
            group.cancel_scope.cancel()
        return fired

    assert outcomes(anyio.run(main, backend=backend).samples) == ["ok"] * 20
    assert len(ticks) > 2


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_cancelling_an_async_caller_stops_the_load(backend):
    handed, ready = [], threading.Event()
    made = Kept(lambda: Endless(ready.set))

    async def main():
        async with anyio.create_task_group() as group:
            group.start_soon(load)
            await anyio.to_thread.run_sync(ready.wait, 5)
            group.cancel_scope.cancel()

    async def load():
        await run_load_async(closed(concurrency=2, requests=50), made, on_abort=handed.append)

    anyio.run(main, backend=backend)
    (fired,) = handed
    assert made.backend.in_flight == 0
    assert {sample.outcome for sample in fired.samples} == {Outcome.OK, Outcome.CANCELLED}
    assert fired.aborted.startswith("Cancelled")
    assert gc.isenabled()


def test_an_async_caller_gets_config_errors_too():
    async def main():
        await run_load_async(closed(requests=0), Quick)

    with pytest.raises(ConfigError, match="requests=0"):
        anyio.run(main)
