"""The distance between the starts of two runs of one verdict."""

from __future__ import annotations

import time

import pytest

from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.harness import Harness
from pytest_ollama_perf.simulator.process import start_simulator
from pytest_ollama_perf.simulator.url import read_settings

LOAD = Workload(model="tiny", requests=1, num_predict=8, warmup=0)
QUICK = {"load_time": 0, "overhead": 0, "models": "tiny"}


class Silent:
    def begin(self, model, duration_s=None, *, captions=()): ...

    def show_message(self, text, *, time=""): ...

    def update(self, progress): ...


@pytest.fixture(scope="module")
def url():
    with start_simulator(read_settings(QUICK)) as simulator:
        yield simulator.url


@pytest.fixture
def wait_after(tmp_path, monkeypatch):
    """Return the wait before the next run, ``ago`` seconds after the start of one; the clock stands still meanwhile."""

    def wait_after(ago, *urls, measured=True, **settings):
        harness = Harness(Settings(urls=urls, model="tiny", **settings), root=tmp_path)
        try:
            with monkeypatch.context() as frozen:
                frozen.setattr(time, "monotonic", lambda: 5000.0)
                if measured:
                    harness.measure(LOAD, listener=Silent())
            monkeypatch.setattr(time, "monotonic", lambda: 5000.0 + ago)
            return harness.compute_wait_s()
        finally:
            harness.close()
            monkeypatch.undo()

    return wait_after


def test_the_next_run_begins_ten_seconds_after_the_start_of_the_last(wait_after, url):
    assert [wait_after(ago, url) for ago in (0.0, 4.0, 10.0, 60.0)] == [10.0, 6.0, 0.0, 0.0]


def test_a_configured_spacing_is_used(wait_after, url):
    assert wait_after(4.0, url, run_spacing_s=30.0) == 26.0
    assert wait_after(0.0, url, run_spacing_s=0.0) == 0.0


def test_a_wall_clock_that_is_set_back_changes_nothing(wait_after, url, monkeypatch):
    wall = time.time()
    monkeypatch.setattr(time, "time", lambda: wall - 3600.0)
    assert wait_after(4.0, url) == 6.0


def test_without_a_run_there_is_no_wait(wait_after, url):
    assert wait_after(0.0, url, measured=False) == 0.0


def test_only_simulators_need_no_spacing(wait_after, url):
    simulator = "sim:?models=tiny&load_time=0&overhead=0"
    assert wait_after(0.0, simulator) == 0.0
    assert wait_after(0.0, simulator, url) == 10.0
