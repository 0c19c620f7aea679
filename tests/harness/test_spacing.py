"""How far apart runs of one verdict begin."""

from __future__ import annotations

import time

import pytest
from run_makers import run_of

from pytest_ollama_perf.config.settings import Settings
from pytest_ollama_perf.harness.harness import Harness


@pytest.fixture
def rest(tmp_path, monkeypatch):
    """Return what a bench says of a run that began so many seconds ago."""
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)

    def rest(ago, *urls, **settings):
        bench = Harness(Settings(urls=urls or ("http://127.0.0.1:1",), **settings), root=tmp_path)
        try:
            return bench.compute_wait_s(run_of(started_at=1_800_000_000.0 - ago))
        finally:
            bench.close()

    return rest


def test_the_next_run_begins_ten_seconds_after_the_start_of_the_last(rest):
    assert [rest(ago) for ago in (0.0, 4.0, 10.0, 60.0)] == [10.0, 6.0, 0.0, 0.0]


def test_a_spacing_of_ones_own_is_kept(rest):
    assert rest(4.0, run_spacing_s=30.0) == 26.0
    assert rest(0.0, run_spacing_s=0.0) == 0.0


def test_a_clock_that_was_set_back_costs_no_more_than_the_spacing(rest):
    assert rest(-5000.0) == 10.0


def test_simulators_need_no_rest_and_a_real_server_beside_them_does(rest):
    assert rest(0.0, "sim:") == 0.0
    assert rest(0.0, "sim:", "http://127.0.0.1:1") == 10.0
