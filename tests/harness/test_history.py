"""A load test and its past: how many runs it takes, what the verdict says, and what is kept."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from run_makers import failure, one_after_another, run_of, sample

from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.config.load_spec import build_load_spec
from pytest_ollama_perf.core import StoreError
from pytest_ollama_perf.core.run import Fingerprint
from pytest_ollama_perf.core.sample import Outcome
from pytest_ollama_perf.core.verdict import Hint, HintCode, ProblemCode, VerdictStatus
from pytest_ollama_perf.harness.evaluation import ExperimentContext, run_load
from pytest_ollama_perf.harness.history import RunHistory
from pytest_ollama_perf.store import base as store_base
from pytest_ollama_perf.store.directory import DirectoryStore

TEST = "tests/test_chat.py::test_speed"
USUAL = {"ttft": 1000, "step": 100}
NUMBERS = itertools.count()


class Silent:
    def begin(self, model, duration_s=None, *, captions=()): ...

    def show_message(self, text, *, time=""): ...

    def update(self, progress): ...


@dataclass
class ScriptedBench:
    """Answers each measurement with the next of ``speeds``; ``asked`` remembers which were to be fresh."""

    settings: Settings
    speeds: list[dict]
    fingerprint: Fingerprint = field(default_factory=lambda: Fingerprint(server_version="0.32.15", model_digest="abc"))
    asked: list[bool] = field(default_factory=list)
    partial_run: object = None

    def compute_wait_s(self):
        return 0.0

    def measure(self, workload, test, *, fresh, listener, servers=(), precondition=None):
        self.asked.append(fresh)
        number = next(NUMBERS)
        speed = dict(self.speeds.pop(0))
        failed = speed.pop("fail", False)
        samples = one_after_another(20, **{"tokens": 64} | speed)
        if failed:
            samples = [failure(index, sent=index) for index in range(20)]
        run = run_of(*samples, test=test, fingerprint=self.fingerprint, started_at=1_790_000_000.0 + 1000 * number)
        return msgspec.structs.replace(run, id=f"run{number}", session=f"session{number}", workload=workload)


@dataclass
class Patient(ScriptedBench):
    """Lets each further run wait; ``waits`` are the seconds that are left at each look."""

    waits: list[float] = field(default_factory=lambda: [2.5, 1.5, 0.5, 0.0, 0.0])

    def compute_wait_s(self):
        return self.waits.pop(0)


def settings_in(folder: Path, **fields) -> Settings:
    return Settings(store=str(folder / "history"), **fields)


def trial_of(settings: Settings, *speeds: dict, fingerprint: Fingerprint | None = None, words=None, pairs=2):
    bench = ScriptedBench(settings, list(speeds))
    if fingerprint:
        bench.fingerprint = fingerprint
    past = RunHistory(settings, pairs)
    spec = build_load_spec({"model": "m", **(words or {})})
    trial = run_load(ExperimentContext(bench, past, Silent()), spec, TEST)
    return trial, bench, past


def steady(number: int) -> dict:
    """The usual speed with a spread between runs of about one per cent."""
    return {"ttft": 1000 + 10 * (number % 3), "step": 100}


def saved(folder: Path, runs: int = 8) -> Path:
    """A history of so many builds: the second of them takes three runs, for one stored run decides little."""
    for number in range(runs):
        trial_of(settings_in(folder, save=True), steady(number), steady(number), steady(number))
    return folder


def kept(folder: Path) -> int:
    return len(DirectoryStore(folder / "history").read_history(TEST, limit=None).runs)


def apart(folder: Path) -> int:
    return len(DirectoryStore(folder / "history").read_pending(TEST, limit=None).runs)


def test_who_keeps_no_history_hears_nothing_of_it(tmp_path):
    trial, bench, _ = trial_of(settings_in(tmp_path), USUAL)
    assert (trial.verdict.status, bench.asked) == (VerdictStatus.OK, [False])
    assert not (tmp_path / "history").exists()


def test_the_first_saved_run_is_new_and_becomes_history(tmp_path):
    trial, bench, _ = trial_of(settings_in(tmp_path, save=True), USUAL)
    assert (trial.verdict.status, trial.verdict.reason) == (
        VerdictStatus.NEW,
        "no baseline yet: save some runs with --ollama-save",
    )
    assert bench.asked == [True]
    assert kept(tmp_path) == 1


def test_a_missing_baseline_fails_only_where_one_is_required(tmp_path):
    trial, _, _ = trial_of(settings_in(tmp_path, require_baseline=True), USUAL)
    assert trial.verdict.status is VerdictStatus.NEW
    assert trial.is_failing(settings_in(tmp_path, require_baseline=True))
    assert not trial.is_failing(settings_in(tmp_path))


def test_an_unchanged_server_is_ok_after_one_freshly_loaded_run(tmp_path):
    trial, bench, _ = trial_of(settings_in(saved(tmp_path)), steady(1))
    assert (trial.verdict.status, bench.asked) == (VerdictStatus.OK, [True])
    assert [row.metric for row in trial.verdict.rows if row.baseline] == ["tps", "ttft", "latency", "throughput"]
    assert [row.gating for row in trial.verdict.rows if row.baseline] == [True, True, False, False]


def test_slower_decoding_regresses_the_test_and_says_which_phase_it_was(tmp_path):
    slow = {"ttft": 1000, "step": 120}
    settings = settings_in(saved(tmp_path), save=True)
    trial, bench, _ = trial_of(settings, slow, slow, slow)
    assert trial.verdict.status is VerdictStatus.REGRESSED
    assert trial.verdict.reason.startswith(
        "tps -16.7 % (10.2 /s -> 8.47 /s), margin 5 %, 3 runs against 10 stored: decode grew"
    )
    assert trial.comparison.speaker == ("tps", "")
    assert trial.is_failing(settings)
    assert bench.asked == [True, True, True]
    assert trial.verdict.accept.startswith(f"pytest-ollama-perf accept {TEST} --why")
    assert (kept(tmp_path), apart(tmp_path)) == (10, 3)


def test_one_slow_run_is_not_a_regression(tmp_path):
    trial, bench, _ = trial_of(settings_in(saved(tmp_path)), {"ttft": 1000, "step": 120}, steady(0), steady(1))
    assert trial.verdict.status is not VerdictStatus.REGRESSED
    assert len(bench.asked) > 1


def test_a_faster_server_is_said_to_be_faster_and_never_fails(tmp_path):
    settings = settings_in(saved(tmp_path), strict=True)
    trial, _, _ = trial_of(settings, *[{"ttft": 600, "step": 70}] * 3)
    assert trial.verdict.status is VerdictStatus.FASTER
    assert not trial.is_failing(settings)


def test_a_broken_limit_needs_no_second_run(tmp_path):
    trial, bench, _ = trial_of(settings_in(saved(tmp_path)), {"ttft": 1000, "step": 120}, words={"min_tps": 500})
    assert trial.verdict.status is VerdictStatus.BROKEN
    assert bench.asked == [True]


def test_a_slower_run_that_breaks_a_limit_too_is_kept_apart(tmp_path):
    usual, slow = saved(tmp_path), {"ttft": 1000, "step": 150}
    before = kept(usual)
    trial, bench, _ = trial_of(settings_in(usual, save=True), slow, slow, slow, words={"min_tps": 1e6})
    assert trial.verdict.status is VerdictStatus.BROKEN
    assert (kept(usual), apart(usual)) == (before, len(bench.asked))
    assert "pytest-ollama-perf accept" in trial.verdict.accept


def test_an_unchanged_run_that_breaks_a_limit_is_history(tmp_path):
    before = kept(saved(tmp_path))
    trial, _, _ = trial_of(settings_in(tmp_path, save=True), steady(1), words={"min_tps": 1e6})
    assert trial.verdict.status is VerdictStatus.BROKEN
    assert (kept(tmp_path), apart(tmp_path)) == (before + 1, 0)


def test_an_invalid_run_is_no_history(tmp_path):
    trial, _, _ = trial_of(settings_in(tmp_path, save=True), USUAL, words={"num_predict": 500})
    assert trial.verdict.status is VerdictStatus.INVALID
    assert kept(tmp_path) == 0


BUSY = {"read_lag_ns": 900_000_000}


def test_a_run_on_a_busy_machine_is_measured_again(tmp_path):
    trial, _, _ = trial_of(settings_in(tmp_path), BUSY, USUAL)
    assert (trial.verdict.status, len(trial.loads)) == (VerdictStatus.OK, 1)
    (note,) = trial.verdict.problems
    assert note.text.startswith(
        "1 run measured again, because this machine was busy: not a valid measurement: the client"
    )
    assert not note.invalidates
    assert not trial.is_failing(settings_in(tmp_path))


def test_a_machine_that_stays_busy_is_invalid_after_the_allowed_runs(tmp_path):
    trial, bench, _ = trial_of(settings_in(tmp_path), *[BUSY] * 5)
    assert (trial.verdict.status, len(bench.asked)) == (VerdictStatus.INVALID, 3)
    trial, bench, _ = trial_of(settings_in(tmp_path, max_runs=1), *[BUSY] * 5)
    assert (trial.verdict.status, len(bench.asked)) == (VerdictStatus.INVALID, 1)


def test_busy_runs_count_towards_the_runs_of_a_verdict(tmp_path):
    slow = {"ttft": 1000, "step": 130}
    trial, bench, _ = trial_of(settings_in(saved(tmp_path)), slow, BUSY, slow)
    assert len(bench.asked) == 3
    assert [load.run.measured[0].read_lag_ns for load in trial.loads] == [0, 0]
    assert trial.verdict.status in {VerdictStatus.REGRESSED, VerdictStatus.UNSURE}


def test_an_invalid_run_for_another_reason_is_not_measured_again(tmp_path):
    _, bench, _ = trial_of(settings_in(tmp_path), USUAL, USUAL, words={"num_predict": 500})
    assert len(bench.asked) == 1


def test_a_run_without_success_is_never_a_baseline(tmp_path):
    settings = settings_in(tmp_path, save=True)
    for _ in range(2):
        trial, _, _ = trial_of(settings, {"fail": True})
        assert trial.verdict.status is VerdictStatus.BROKEN
        assert kept(tmp_path) == 0


def test_another_model_digest_is_incomparable_and_says_so(tmp_path):
    other = Fingerprint(server_version="0.32.15", model_digest="def")
    trial, _, _ = trial_of(settings_in(saved(tmp_path)), USUAL, fingerprint=other)
    assert trial.verdict.status is VerdictStatus.INCOMPARABLE
    assert "abc -> def" in trial.verdict.reason
    assert trial.is_failing(settings_in(tmp_path, strict=True))


def test_a_new_server_version_is_compared_and_named(tmp_path):
    newer = Fingerprint(server_version="0.32.16", model_digest="abc")
    slow = {"ttft": 1000, "step": 120}
    trial, _, _ = trial_of(settings_in(saved(tmp_path)), slow, slow, slow, fingerprint=newer)
    assert trial.verdict.changed == ("ollama 0.32.15 -> 0.32.16",)


def test_a_damaged_history_is_never_taken_for_none(tmp_path):
    saved(tmp_path, 1)
    (record,) = (tmp_path / "history").glob("*/2*.json")
    record.write_bytes(record.read_bytes()[:200])
    trial, _, _ = trial_of(settings_in(tmp_path), USUAL)
    assert trial.verdict.status is VerdictStatus.INVALID
    assert trial.verdict.reason.startswith("the history of this test cannot be read")
    assert record.name in trial.verdict.reason


def test_a_damaged_record_among_others_is_named_and_the_others_count(tmp_path):
    saved(tmp_path)
    record = sorted((tmp_path / "history").glob("*/2*.json"))[0]
    record.write_text("garbage")
    trial, _, _ = trial_of(settings_in(tmp_path), steady(1))
    assert trial.verdict.status is VerdictStatus.OK
    assert [problem.name for problem in trial.verdict.problems] == ["damaged history"]


@pytest.mark.parametrize("content", ["{}", '{"schema": 9}'])
def test_an_unreadable_acceptance_makes_the_verdict_invalid(tmp_path, content):
    """Without the acceptance, slow and fast epochs would form one baseline that is too noisy to detect anything."""
    saved(tmp_path)
    DirectoryStore(tmp_path / "history").accept(TEST, why="agreed", who="", at=1_790_000_000.0)
    file = next((tmp_path / "history").glob("*/epochs/*.json"))
    file.write_text(content)
    before = kept(tmp_path)
    trial, _, _ = trial_of(settings_in(tmp_path, save=True), steady(0))
    assert trial.verdict.status is VerdictStatus.INVALID
    assert "an acceptance cannot be read" in trial.verdict.reason
    assert file.name in trial.verdict.reason
    assert kept(tmp_path) == before


def test_a_run_without_a_success_is_never_stored(tmp_path):
    failed = {"outcome": Outcome.REFUSED}
    trial, _, past = trial_of(settings_in(tmp_path, save=True), failed)
    assert kept(tmp_path) == 0
    assert [problem.text for problem in trial.verdict.problems if problem.code is ProblemCode.NOT_SAVED] == [
        "no request of this run succeeded, so it cannot be a baseline"
    ]
    assert past.unsaved == []


def test_a_stored_run_without_a_success_is_no_baseline(tmp_path):
    store = DirectoryStore(tmp_path / "history")
    bench = ScriptedBench(settings_in(tmp_path), [{"outcome": Outcome.REFUSED}])
    store.add(bench.measure(build_load_spec({"model": "m"}).workload, TEST, fresh=True, listener=None))
    trial, _, _ = trial_of(settings_in(tmp_path, save=True), USUAL)
    assert trial.verdict.status is VerdictStatus.NEW


def test_a_long_history_is_not_read_completely(tmp_path, monkeypatch):
    saved(tmp_path, 2)
    store = DirectoryStore(tmp_path / "history")
    template = store.read_history(TEST).runs[-1]
    for number in range(400):
        store.add(msgspec.structs.replace(template, id=f"old{number}", started_at=1e9 + number))
    decoded = []
    real = store_base.decode_run
    monkeypatch.setattr(store_base, "decode_run", lambda data, where: decoded.append(where) or real(data, where))
    trial, _, _ = trial_of(settings_in(tmp_path), USUAL)
    assert trial.verdict.status is VerdictStatus.OK
    assert trial.verdict.stored == 20
    assert len(decoded) <= 120


def test_a_rare_machine_keeps_its_baseline_in_a_long_history(tmp_path):
    rare = Fingerprint(server_version="0.32.15", model_digest="abc", gpu="NVIDIA T4")
    trial_of(settings_in(tmp_path, save=True), USUAL, fingerprint=rare)
    store = DirectoryStore(tmp_path / "history")
    template = store.read_history(TEST).runs[-1]
    other = msgspec.structs.replace(rare, gpu="NVIDIA H200")
    for number in range(100):
        store.add(msgspec.structs.replace(template, id=f"new{number}", started_at=1.9e9 + number, fingerprint=other))
    trial, _, _ = trial_of(settings_in(tmp_path), USUAL, USUAL, USUAL, fingerprint=rare)
    assert trial.verdict.stored == 1
    assert trial.verdict.status is not VerdictStatus.INCOMPARABLE


def test_a_history_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    def full(self, run, kind):
        raise StoreError("no space left on device")

    monkeypatch.setattr(DirectoryStore, "add", full)
    trial, _, past = trial_of(settings_in(tmp_path, save=True), USUAL)
    assert past.unsaved == ["no space left on device"]
    assert [problem.name for problem in trial.verdict.problems] == ["not saved"]


def test_more_gating_pairs_in_a_build_ask_for_more_evidence(tmp_path):
    saved(tmp_path)
    slow = {"ttft": 1000, "step": 110}
    alone, _, _ = trial_of(settings_in(tmp_path), slow, slow, slow, pairs=2)
    among_many, _, _ = trial_of(settings_in(tmp_path), slow, slow, slow, pairs=100_000_000)
    assert alone.verdict.status is VerdictStatus.REGRESSED
    assert among_many.verdict.status is VerdictStatus.UNSURE


def test_a_further_run_waits_where_the_first_looks_slower_and_says_for_how_long(tmp_path, monkeypatch):
    settings = settings_in(saved(tmp_path))
    slow = {"ttft": 1000, "step": 112}
    bench, told, slept = Patient(settings, [slow] * 3), [], []
    listener = Silent()
    listener.show_message = lambda text, *, time="": told.append((text, time))
    monkeypatch.setattr("time.sleep", slept.append)
    trial = run_load(ExperimentContext(bench, RunHistory(settings, 2), listener), build_load_spec({"model": "m"}), TEST)
    assert (trial.verdict.status, len(trial.loads)) == (VerdictStatus.REGRESSED, 3)
    turn = "inconclusive, run 2 of at most 3"
    waiting = [(f"{turn} in", f"{seconds} s") for seconds in (3, 2, 1)]
    assert told == [*waiting, (turn, ""), ("inconclusive, run 3 of at most 3", "")]
    assert slept == [1.0, 1.0, 0.5]


def test_where_only_history_is_thin_nothing_waits(tmp_path):
    settings = settings_in(saved(tmp_path, 1))
    bench = Patient(settings, [USUAL] * 3)
    trial = run_load(ExperimentContext(bench, RunHistory(settings, 2), Silent()), build_load_spec({"model": "m"}), TEST)
    assert (trial.verdict.status, len(trial.loads)) == (VerdictStatus.UNSURE, 3)
    assert len(bench.waits) == 5


@pytest.mark.parametrize(("runs", "word"), [(1, VerdictStatus.REGRESSED), (2, VerdictStatus.REGRESSED)])
def test_max_runs_bounds_what_a_verdict_may_take(tmp_path, runs, word):
    slow = {"ttft": 1000, "step": 110}
    trial, bench, _ = trial_of(settings_in(saved(tmp_path), max_runs=runs), slow, slow, slow)
    assert (trial.verdict.status, len(bench.asked)) == (word, runs)


def test_a_margin_on_the_marker_beats_the_one_for_all_tests(tmp_path):
    slow = {"ttft": 1000, "step": 110}
    saved(tmp_path)
    settings = settings_in(tmp_path, margins={"tps": 0.02})
    trial, _, _ = trial_of(settings, slow, slow, slow, words={"max_regression": {"tps": "25%"}})
    assert trial.verdict.status is VerdictStatus.OK


def test_a_margin_for_all_tests_that_has_no_say_in_one_is_named(tmp_path):
    saved(tmp_path)
    settings = settings_in(tmp_path, margins={"tps": 0.02, "latency.p95": 0.25, "goodput": 0.1})
    trial, _, _ = trial_of(settings, steady(0), steady(1), steady(2))
    assert {hint.code for hint in trial.verdict.hints} == {HintCode.UNUSED_MARGIN}
    assert [hint.text for hint in trial.verdict.hints] == [
        "--ollama-margin latency.p95 is ignored for this test: "
        "latency.p95 cannot gate on 20 requests a run: it needs 200",
        "--ollama-margin goodput is ignored for this test: goodput cannot gate on 20 requests a run: it needs 50",
    ]


def test_runs_too_short_to_tell_are_named_where_a_verdict_is_not_green(tmp_path, monkeypatch):
    def uneven(count, step, **fields):
        return [sample(at, sent=20_000 * at, step=step + 30 * (at // 5), **fields) for at in range(count)]

    monkeypatch.setitem(ScriptedBench.measure.__globals__, "one_after_another", uneven)
    saved(tmp_path, 3)
    text = "tps varies widely within a run: use longer runs (requests, num_predict)"
    hint = Hint(code=HintCode.LONGER_RUNS, text=text)
    unsure, _, _ = trial_of(settings_in(tmp_path), *[{"ttft": 1000, "step": 112}] * 3)
    assert (unsure.verdict.status, unsure.verdict.hints) == (VerdictStatus.UNSURE, (hint,))
    green, _, _ = trial_of(settings_in(tmp_path), *[{"ttft": 1000, "step": 70}] * 3)
    assert (green.verdict.status, green.verdict.hints) == (VerdictStatus.FASTER, ())


def test_a_drift_is_a_warning_with_its_start(tmp_path):
    saved(tmp_path, 20)
    for number in range(12):
        trial_of(settings_in(tmp_path, save=True), *[{"ttft": 1000, "step": 100 + number // 3}] * 3)
    trial, _, _ = trial_of(settings_in(tmp_path), *[{"ttft": 1000, "step": 104}] * 3)
    drifts = [hint.text for hint in trial.verdict.hints if hint.code is HintCode.METRIC_DRIFT]
    assert any(text.startswith("tps drifts: ") for text in drifts)


AGREED = "2026-11 ollama 0.33: agreed"
SLOWER = {"ttft": 1000, "step": 125}


def test_a_new_baseline_text_starts_an_epoch_and_the_old_text_continues_it(tmp_path):
    saved(tmp_path)
    before = kept(tmp_path)
    red, _, _ = trial_of(settings_in(tmp_path), SLOWER, SLOWER, SLOWER)
    assert red.verdict.status is VerdictStatus.REGRESSED
    (hint,) = [hint for hint in red.verdict.hints if hint.code is HintCode.RUNS_NOT_SAVED]
    assert 'baseline="..."' in hint.text
    accepted, _, _ = trial_of(settings_in(tmp_path), SLOWER, words={"baseline": AGREED})
    assert (accepted.verdict.status, accepted.verdict.reason) == (VerdictStatus.NEW, f"new baseline: {AGREED}")
    assert kept(tmp_path) == before, "the pull request saves nothing"
    trial_of(settings_in(tmp_path, save=True), SLOWER, words={"baseline": AGREED})
    history = DirectoryStore(tmp_path / "history").read_history(TEST)
    assert [(one.why, len(one.runs)) for one in history.acceptances] == [(AGREED, 1)]
    green, _, _ = trial_of(settings_in(tmp_path, save=True), SLOWER, SLOWER, SLOWER, words={"baseline": AGREED})
    assert green.verdict.status in {VerdictStatus.OK, VerdictStatus.UNSURE}
    assert green.verdict.stored == 1
    assert len(DirectoryStore(tmp_path / "history").read_history(TEST).acceptances) == 1


def test_a_baseline_text_of_all_tests_is_a_setting(tmp_path):
    saved(tmp_path, 2)
    trial, _, _ = trial_of(settings_in(tmp_path, save=True, baseline=AGREED), SLOWER)
    assert trial.verdict.reason == f"new baseline: {AGREED}"
    assert [one.why for one in DirectoryStore(tmp_path / "history").read_history(TEST).acceptances] == [AGREED]
