"""A test's past, as reports show it."""

from __future__ import annotations

import math

import msgspec
import pytest
from run_makers import failure, one_after_another, run_of

from pytest_ollama_perf.analysis.drift import MAX_ORDER_STATISTICS, MAX_VIEW_RUNS, build_history_view
from pytest_ollama_perf.analysis.epochs import Acceptance, StoredRuns
from pytest_ollama_perf.core.run import Fingerprint


def run(number, *, ttft=100, digest="a", samples=None):
    made = run_of(
        *(one_after_another(4, ttft=ttft) if samples is None else samples),
        test="t",
        started_at=1000.0 * number,
        fingerprint=Fingerprint(server_version="0.32.15", model_digest=digest),
    )
    return msgspec.structs.replace(made, id=f"run-{number}")


def test_a_run_without_a_past_stands_alone():
    found = build_history_view(StoredRuns(), [run(1)])
    (only,) = found.runs
    assert (only.id, only.epoch, only.now, only.compared, only.border) == ("run-1", 1, True, False, "")
    assert only.values == {"tps": pytest.approx(110.0), "ttft": pytest.approx(0.1), "latency": pytest.approx(0.2)}
    assert found.baseline == {}
    assert {drift.missing for drift in found.drift.values()} == {19}


def test_what_is_compared_is_the_epoch_of_the_new_run():
    stored = (run(1, digest="b"), run(2), run(3))
    found = build_history_view(StoredRuns(runs=stored), [run(4), run(5)])
    assert [each.compared for each in found.runs] == [False, True, True, False, False]
    assert [each.now for each in found.runs] == [False, False, False, True, True]
    assert [each.epoch for each in found.runs] == [1, 2, 2, 2, 2]
    assert [each.border for each in found.runs] == ["", "model digest b -> a", "", "", ""]


def test_a_new_run_that_may_not_be_compared_starts_an_epoch():
    found = build_history_view(StoredRuns(runs=(run(1), run(2))), [run(3, digest="c")])
    assert [each.epoch for each in found.runs] == [1, 1, 2]
    assert not any(each.compared for each in found.runs)
    assert found.baseline == {}


def test_an_acceptance_is_a_border_with_its_reason():
    accepted = Acceptance(test="t", at=1500.0, why="a new driver", runs=("run-2",))
    found = build_history_view(StoredRuns(runs=(run(1), run(2)), acceptances=(accepted,)), [run(3)])
    assert [each.border for each in found.runs] == ["", "accepted: a new driver", ""]
    assert [each.compared for each in found.runs] == [False, True, False]


def test_an_outlier_is_named_in_its_metric_alone():
    stored = tuple(run(number, ttft=300 if number == 3 else 100) for number in range(1, 9))
    found = build_history_view(StoredRuns(runs=stored), [run(9)])
    assert {each.id: each.outlier for each in found.runs if each.outlier} == {"run-3": ("ttft", "latency")}


def test_the_requests_of_the_baseline_are_thinned_to_even_steps_with_both_ends():
    stored = tuple(run(number, samples=one_after_another(50, ttft=100 + number)) for number in range(1, 6))
    found = build_history_view(StoredRuns(runs=stored), [run(9, samples=one_after_another(50))])
    steps = found.baseline["ttft"]
    assert len(steps) == MAX_ORDER_STATISTICS
    assert steps == tuple(sorted(steps))
    assert (steps[0], steps[-1]) == (pytest.approx(0.101), pytest.approx(0.105))


def test_a_failed_request_of_the_baseline_has_no_finite_time():
    stored = (run(1, samples=[*one_after_another(2), failure(2, sent=400)]),)
    found = build_history_view(StoredRuns(runs=stored), [run(2, samples=one_after_another(3))])
    assert found.baseline["ttft"] == (pytest.approx(0.1), pytest.approx(0.1), None)


def test_a_run_in_which_all_failed_has_no_values():
    found = build_history_view(StoredRuns(runs=(run(1, samples=[failure(0)]),)), [run(2, samples=[failure(0)])])
    assert found.runs[0].values["ttft"] is None
    assert "ttft" not in found.baseline


def test_only_the_newest_runs_are_told_and_a_drift_counts_from_the_first():
    stored = tuple(run(number, ttft=100 if number <= 20 else 140) for number in range(1, MAX_VIEW_RUNS + 20))
    found = build_history_view(StoredRuns(runs=stored), [run(500)])
    assert len(found.runs) == MAX_VIEW_RUNS
    assert found.runs[-1].id == "run-500"
    drift = found.drift["ttft"]
    assert (drift.warns, drift.missing, drift.since) == (True, 0, 21_000.0)
    assert drift.reference == pytest.approx(0.1)
    assert drift.slowdown == pytest.approx(0.4, abs=0.01)
    assert math.isfinite(drift.slowdown)
