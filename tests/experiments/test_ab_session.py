"""A comparison under way: whose turn it is, what is loaded anew, when it ends and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from run_makers import failure, one_after_another, run_of

from pytest_ollama_perf.client.address import parse_address
from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.core.run import Fingerprint, ModelState, Run
from pytest_ollama_perf.core.verdict import VerdictStatus
from pytest_ollama_perf.experiments.ab import parse_options
from pytest_ollama_perf.harness.evaluation import Evaluation, ExperimentContext
from pytest_ollama_perf.harness.history import RunHistory
from pytest_ollama_perf.harness.servers import TargetServer
from pytest_ollama_perf.store.directory import DirectoryStore

HERE, THERE = "http://new:1", "http://old:2"


class Silent:
    def begin(self, model, duration_s=None, *, captions=()): ...

    def show_message(self, text, *, time=""): ...

    def update(self, progress): ...


@dataclass
class Control:
    """Remembers what it was told to unload."""

    unloaded: list[str] = field(default_factory=list)

    def unload(self, model: str) -> None:
        self.unloaded.append(model)


@dataclass
class Turn:
    """One turn as the bench was asked for it."""

    model: str
    options: dict[str, Any]
    server: str
    fresh: bool
    requests: int


@dataclass
class ScriptedBench:
    """Answers turn number ``n`` of a side with requests whose tokens take ``step(side, n)`` ms."""

    step: Callable[[Turn, int], float]
    settings: Settings = field(default_factory=lambda: Settings(urls=(HERE,)))
    turns: list[Turn] = field(default_factory=list)
    partial_run: Run | None = None
    outcome: Callable[[Turn, int], bool] = lambda turn, number: True
    version: Callable[[Turn], str] = lambda turn: "0.32.15"

    def __post_init__(self) -> None:
        self.control = Control()
        self.servers = (TargetServer(HERE, parse_address(HERE), self.control),)

    def open_server(self, url: str) -> TargetServer:
        return TargetServer(url, parse_address(url), self.control)

    def resolve_workload(self, workload, servers=()):
        return workload

    def compute_wait_s(self):
        return 0.0

    def measure(self, workload, test, *, fresh, listener, servers=(), precondition=None):
        server = (servers or self.servers)[0].name
        turn = Turn(workload.model, workload.options, server, fresh, workload.requests)
        number = len(self.turns)
        self.turns.append(turn)
        step = self.step(turn, number)
        samples = one_after_another(workload.requests, tokens=33, step=step, ttft=100, prefill=90)
        if not self.outcome(turn, number):
            samples = [failure(index, sent=index) for index in range(workload.requests)]
        state = {server: ModelState(loaded=True, size=10, size_vram=10, context_length=4096)}
        run = run_of(*samples, fingerprint=Fingerprint(server_version=self.version(turn)), before=state, after=state)
        return msgspec.structs.replace(run, workload=msgspec.structs.replace(workload, num_predict=33, prompt_words=16))


def lab_of(bench: ScriptedBench) -> ExperimentContext:
    return ExperimentContext(bench, RunHistory(bench.settings, 0), Silent())  # type: ignore[arg-type]


def compared(bench: ScriptedBench, **words: Any) -> Evaluation:
    return parse_options({"model": "m", **words}, bench.settings).run(lab_of(bench), "t")


def of_models(slow: float) -> Callable[[Turn, int], float]:
    """``a`` takes 10 ms a token, ``b`` that much longer, with a spread that both share."""
    return lambda turn, number: (10 + 0.1 * (number // 4 % 3)) * (slow if turn.model == "b" else 1.0)


MODELS = {"baseline": {"model": "a"}, "candidate": {"model": "b"}}


def test_a_block_is_a_b_b_a_and_every_turn_is_freshly_loaded():
    bench = ScriptedBench(of_models(1.0))
    compared(bench, **MODELS)
    turns = [(turn.model, turn.fresh, turn.requests) for turn in bench.turns]
    assert turns == [("a", True, 4), ("b", True, 4), ("b", True, 4), ("a", True, 4)] * 4


def test_on_one_server_the_other_model_makes_room():
    bench = ScriptedBench(of_models(1.0))
    compared(bench, **MODELS)
    assert bench.control.unloaded == ["b", "a", "b"] * 4


def test_two_servers_keep_what_they_have_loaded():
    bench = ScriptedBench(lambda turn, number: 10.0)
    compared(bench, baseline={"url": THERE})
    assert [turn.server for turn in bench.turns[:4]] == [THERE, HERE, HERE, THERE]
    assert bench.control.unloaded == []


def test_the_baseline_url_of_the_settings_is_the_baseline():
    bench = ScriptedBench(lambda turn, number: 10.0, settings=Settings(urls=(HERE,), baseline_url=THERE))
    trial = compared(bench)
    assert {turn.server for turn in bench.turns} == {HERE, THERE}
    assert (trial.findings[0].baseline, trial.findings[0].candidate) == (f"at {THERE}", f"at {HERE}")


def test_equal_sides_are_ok_after_four_blocks():
    trial = compared(ScriptedBench(of_models(1.0)), **MODELS)
    assert (trial.verdict.status, trial.findings[0].blocks) == (VerdictStatus.OK, 4)
    assert trial.verdict.reason == ("no change beyond the margin: tps +0 % (margin 3 %), ttft +0 % (margin 12 %)")


def test_a_slower_candidate_has_regressed_and_the_phase_is_named():
    trial = compared(ScriptedBench(of_models(1.25)), **MODELS)
    assert trial.verdict.status is VerdictStatus.REGRESSED
    assert trial.verdict.reason == (
        "tps -20 % (102 /s -> 81.9 /s), margin 3 %: decode grew, the server's queue and prefill did not"
    )
    assert trial.findings[0].rows[0].change == pytest.approx(-0.2)


def test_what_is_slower_within_the_margin_is_ok():
    trial = compared(ScriptedBench(of_models(1.02)), **MODELS, max_regression="10%")
    assert trial.verdict.status is VerdictStatus.OK
    assert "tps -1.96 % (margin 10 %)" in trial.verdict.reason


def test_a_faster_candidate_is_said_to_be():
    trial = compared(ScriptedBench(of_models(0.8)), **MODELS)
    assert (trial.verdict.status, trial.verdict.reason) == (
        VerdictStatus.FASTER,
        "tps +25 % (102 /s -> 128 /s), margin 3 %",
    )


def test_what_stays_open_is_measured_up_to_twelve_blocks():
    def noisy(turn: Turn, number: int) -> float:
        return 10 * (1.0 if turn.model == "a" else 1.05 if number // 4 % 2 else 0.98)

    bench = ScriptedBench(noisy)
    trial = compared(bench, **MODELS)
    assert (trial.verdict.status, len(bench.turns)) == (VerdictStatus.UNSURE, 48)
    assert trial.verdict.reason.startswith("tps -1.")
    assert "inconclusive after 12 blocks, 95 % between" in trial.verdict.reason


def test_the_loads_stand_side_by_side_in_the_result():
    trial = compared(ScriptedBench(of_models(1.0)), **MODELS)
    assert [load.run.workload.model for load in trial.loads] == ["a"] * 8 + ["b"] * 8


def test_a_turn_without_success_ends_the_comparison():
    bench = ScriptedBench(of_models(1.0), outcome=lambda turn, number: turn.model != "b")
    trial = compared(bench, **MODELS)
    assert len(bench.turns) == 2
    assert trial.verdict.status is VerdictStatus.BROKEN
    assert trial.verdict.reason.startswith("candidate: error_rate 100 %")


def test_a_turn_without_success_says_nothing_even_where_errors_are_allowed():
    bench = ScriptedBench(of_models(1.0), outcome=lambda turn, number: turn.model != "b")
    trial = compared(bench, **MODELS, max_error_rate=1.0)
    assert trial.verdict.status in {VerdictStatus.BROKEN, VerdictStatus.INVALID}


def test_an_invalid_side_is_no_comparison():
    def measured(bench: ScriptedBench) -> Evaluation:
        return compared(bench, **MODELS)

    bench = ScriptedBench(of_models(2.0))
    whole = bench.measure

    def evicted(workload, test, **more):
        run = whole(workload, test, **more)
        gone = {url: ModelState() for url in run.after}
        return msgspec.structs.replace(run, after=gone) if workload.model == "a" and len(bench.turns) == 5 else run

    bench.measure = evicted  # type: ignore[method-assign]
    trial = measured(bench)
    assert trial.verdict.status is VerdictStatus.INVALID
    assert trial.verdict.reason.startswith("baseline: not a valid measurement: the model was no longer loaded")


def test_counters_of_other_meaning_are_not_compared():
    bench = ScriptedBench(of_models(2.0), version=lambda turn: "0.24.0" if turn.model == "a" else "0.33.3")
    trial = compared(bench, **MODELS, max_regression={"tps": "5%"})
    assert trial.verdict.status is VerdictStatus.INCOMPARABLE
    assert trial.verdict.reason.startswith("tps cannot be compared: meaning of the counters 0.10-0.29 -> from 0.33.3")
    assert "ollama 0.24.0 -> 0.33.3" in trial.verdict.changed


def test_what_was_measured_before_an_interrupt_is_kept():
    bench = ScriptedBench(of_models(1.5))
    whole = bench.measure

    def interrupted(workload, test, **more):
        if len(bench.turns) == 9:
            raise KeyboardInterrupt
        return whole(workload, test, **more)

    bench.measure = interrupted  # type: ignore[method-assign]
    lab = lab_of(bench)
    with pytest.raises(KeyboardInterrupt):
        parse_options({"model": "m", **MODELS}, bench.settings).run(lab, "t")
    part = lab.build_partial_evaluation()
    assert part is not None
    assert (part.verdict.status, part.verdict.reason) == (VerdictStatus.ABORTED, "stopped after 9 loads")
    found = part.findings[0]
    assert (found.blocks, found.status) == (2, VerdictStatus.UNSURE)
    assert (found.rows[0].change, found.rows[0].low) == (pytest.approx(-1 / 3), None)


def test_the_same_on_both_sides_is_said_to_be_noise():
    trial = compared(ScriptedBench(of_models(1.0)), baseline={}, candidate={})
    assert trial.verdict.status is VerdictStatus.OK
    assert [problem.name for problem in trial.verdict.problems] == ["nothing to compare"]


def test_the_turns_grow_with_the_clients():
    bench = ScriptedBench(of_models(1.0))
    compared(bench, **MODELS, concurrency=8)
    assert {turn.requests for turn in bench.turns} == {16}


def test_the_result_answers_for_each_metric():
    asked = parse_options({"model": "m", **MODELS}, Settings())
    measured = asked.run(lab_of(ScriptedBench(of_models(1.25))), "t")  # type: ignore[arg-type]
    result = asked.result(None, "t", lambda: measured)  # type: ignore[arg-type]
    assert result.tps.change == pytest.approx(-0.2)
    assert result.blocks == 4
    assert result.tps.low < result.tps.change < result.tps.high < 0
    with pytest.raises(AttributeError, match=r"'tpss' was not compared; did you mean 'tps'\? \(tps, ttft, latency"):
        _ = result.tpss


def test_every_turn_of_a_comparison_becomes_history_where_that_is_asked_for(tmp_path):
    settings = Settings(urls=(HERE,), save=True, store=str(tmp_path / "kept"))
    bench = ScriptedBench(lambda turn, number: 10, settings=settings)
    ids = iter(range(100))
    measure = bench.measure
    bench.measure = lambda *given, **words: msgspec.structs.replace(  # type: ignore[method-assign]
        measure(*given, **words), id=f"r{next(ids)}", started_at=1_790_000_000.0, test="t"
    )
    assert compared(bench, **MODELS).verdict.status is VerdictStatus.OK
    store = DirectoryStore(tmp_path / "kept")
    assert store.list_tests() == ("t baseline", "t candidate")
    assert [len(store.read_history(test).runs) for test in store.list_tests()] == [8, 8]
