from __future__ import annotations

import anyio
import pytest
import trio
from scripted import SECOND, in_virtual_time

from pytest_ollama_perf.core.run import ClientStats
from pytest_ollama_perf.core.sample import Outcome, Phase, Sample
from pytest_ollama_perf.loadgen.runner import ClientMonitor


def sample(index: int, read_lag_ns: int, stage: Phase = Phase.MEASURED) -> Sample:
    return Sample(
        index=index,
        client=0,
        url="u",
        request_id="r",
        stage=stage,
        outcome=Outcome.OK,
        sent_ns=0,
        done_ns=1,
        read_lag_ns=read_lag_ns,
    )


def virtual_ns() -> int:
    return round(trio.current_time() * SECOND)


def watched(*stalls: tuple[float, float]) -> ClientStats:
    """Watch for ten seconds in which the loop stalls at given times for given seconds."""
    watcher = ClientMonitor(cpu_ns=lambda: 0, wall_ns=virtual_ns)

    async def main():
        async with anyio.create_task_group() as group:
            group.start_soon(watcher.sample_lag)
            watcher.begin()
            for at, seconds in stalls:
                await trio.sleep_until(at)
                trio.lowlevel.current_clock().jump(seconds)
            await trio.sleep_until(10.0)
            watcher.end()
            group.cancel_scope.cancel()

    in_virtual_time(main)
    return watcher.compute_stats(())


def test_an_idle_loop_has_no_lag():
    quiet = watched()
    assert quiet.loop_lag_max_s == pytest.approx(0, abs=1e-6)


def test_a_stall_shows_as_lag():
    # the stall begins 5 ms after a waking, 15 ms before the next
    stalled = watched((1.005, 0.5))
    assert stalled.loop_lag_max_s == pytest.approx(0.485, abs=1e-6)
    assert stalled.loop_lag_p99_s == pytest.approx(0, abs=1e-6)


def test_frequent_stalls_show_in_the_99th_percentile():
    stalled = watched(*((0.5 + at, 0.1) for at in range(9)))
    assert 0.079 <= stalled.loop_lag_p99_s <= stalled.loop_lag_max_s <= 0.101


def test_cpu_share_is_that_of_the_measured_window():
    cpu, wall = [0], [0]
    watcher = ClientMonitor(cpu_ns=lambda: cpu[0], wall_ns=lambda: wall[0])
    cpu[0], wall[0] = 900, 1000
    watcher.begin()
    cpu[0], wall[0] = 1150, 2000
    watcher.end()
    cpu[0], wall[0] = 9000, 9000
    watcher.end()
    assert watcher.compute_stats(()).cpu_share == 0.25


def test_a_load_that_never_measured_has_nothing_to_show():
    watcher = ClientMonitor()
    watcher.end()
    assert watcher.compute_stats(()) == ClientStats()


def test_read_lag_is_the_99th_percentile_of_measured_samples():
    samples = [sample(index, index * 1_000_000) for index in range(1, 101)]
    assert ClientMonitor().compute_stats([*samples, sample(0, 10**12, Phase.WARMUP)]).read_lag_p99_s == 0.099
