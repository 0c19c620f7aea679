"""Every experiment with any mix of failing requests: a verdict, a result and every report, never an exception."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_makers import failure, run_of, sample
from virtual import TEST, URL, Host, Listening, Server

from pytest_ollama_perf.client.address import parse_address
from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.core.run import Fingerprint, ModelState
from pytest_ollama_perf.core.sample import Counters, Outcome
from pytest_ollama_perf.core.verdict import VerdictStatus
from pytest_ollama_perf.experiments import ab, capacity, cold_start, load, sweep
from pytest_ollama_perf.harness.evaluation import Evaluation, ExperimentContext, merge_evaluations
from pytest_ollama_perf.harness.history import RunHistory
from pytest_ollama_perf.harness.servers import TargetServer
from pytest_ollama_perf.report import REPORT_WRITERS, SessionReports
from pytest_ollama_perf.report.document import ReportMeta
from pytest_ollama_perf.report.terminal import build_section, format_failure

EXPERIMENTS = {
    "load": (load, {"requests": 6, "max_p95_ttft": 1.0}),
    "ab": (ab, {"requests": 4, "candidate": {"seed": 2}}),
    "sweep": (sweep, {"concurrency": [1, 2, 4], "requests": 8, "min_knee": 2, "min_speedup": 1.5}),
    "ab with margins": (
        ab,
        {"requests": 4, "candidate": {"seed": 2}, "max_regression": {"throughput": "5%", "ttfa": "5%", "itl": "5%"}},
    ),
    "sweep over rates": (
        sweep,
        {"rate": [4, 8], "requests": 8, "min_throughput": 20, "min_goodput": 1, "max_p50_ttft": 1},
    ),
    "sweep over time": (sweep, {"rate": [4, 8], "duration": 1, "min_qps": 1, "stop_success_rate": "50%"}),
    "sweep over models": (sweep, {"model": ["m", "n"], "concurrency": [1, 2], "requests": 4}),
    "load over time": (load, {"concurrency": 3, "duration": 1, "min_throughput": 20}),
    "search": (capacity, {"max_ttft": 1.0, "requests": 6, "maximum": 4, "min_concurrency": 2}),
    "cold start": (
        cold_start,
        {"requests": 4, "repeats": 2} | {f"max_{name}": 1 for name in cold_start.COLD_WARM_METRICS},
    ),
}
FAILURES = [outcome for outcome in Outcome if outcome not in {Outcome.OK, Outcome.CANCELLED}]
NO_COUNTERS = {"counters": Counters(), "chunk_ns": (), "first_token_ns": None, "first_answer_ns": None}
outcomes = st.sampled_from(["ok", "ok", "no counters", "instant", *FAILURES])


@dataclass
class UnreliableHarness:
    """Answers request number ``n`` of all loads with the ``n``-th outcome; the last one repeats."""

    outcomes: list
    settings: Settings
    partial_run: None = None
    interrupted_load: int = -1
    loads: itertools.count = field(default_factory=itertools.count)
    count: itertools.count = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.servers = (TargetServer(URL, parse_address(URL), Server().control),)
        self.servers[0].control.unload = lambda model: None
        self.servers[0].control.get_installed = lambda model: None

    def resolve_workload(self, workload, servers=()):
        return workload

    def compute_wait_s(self):
        return 0.0

    def _answer(self, index, clients):
        outcome = self.outcomes[min(next(self.count), len(self.outcomes) - 1)]
        where = {"sent": 250 * (index // clients), "client": index % clients}
        if outcome == "instant":
            return failure(index, outcome=Outcome.REFUSED, took=0, sent=0)
        if isinstance(outcome, Outcome):
            return failure(index, outcome=outcome, **where)
        return sample(index, **where, **(NO_COUNTERS if outcome == "no counters" else {}))

    def _answer_all(self, workload):
        requests = len(self.outcomes) % 5 if workload.requests is None else workload.requests
        samples = [self._answer(index, workload.clients) for index in range(requests)]
        if workload.rate is None:
            return samples
        return [msgspec.structs.replace(each, scheduled_ns=each.sent_ns) for each in samples]

    def measure(self, workload, test, *, fresh, listener, servers=(), precondition=None):
        if next(self.loads) == self.interrupted_load:
            raise KeyboardInterrupt
        samples = self._answer_all(workload)
        loaded = {URL: ModelState(loaded=True, size=10, size_vram=10, context_length=4096)}
        run = run_of(*samples, fingerprint=Fingerprint(server_version="0.32.15", model="m", model_digest="m"))
        number = next(self.count)
        return msgspec.structs.replace(
            run, id=f"run{number}", workload=workload, before={} if workload.cold else loaded, after=loaded
        )


def conduct(name, made, settings=None):
    module, options = EXPERIMENTS[name]
    settings = settings or Settings(store="/nonexistent/history", model="m")
    experiment = module.parse_options({"num_predict": 11, **options}, settings)
    history = RunHistory(settings, experiment.gating)
    evaluation = experiment.run(ExperimentContext(UnreliableHarness(made, settings), history, Listening()), TEST)
    history.close()
    return evaluation, experiment.result(Host(settings), TEST, lambda: evaluation)


def interrupt(name, made, load):
    module, options = EXPERIMENTS[name]
    settings = Settings(store="/nonexistent/history", model="m")
    experiment = module.parse_options({"num_predict": 11, **options}, settings)
    harness = UnreliableHarness(made, settings, interrupted_load=load)
    context = ExperimentContext(harness, RunHistory(settings, experiment.gating), Listening())
    with pytest.raises(KeyboardInterrupt):
        experiment.run(context, TEST)
    return context.build_partial_evaluation()


def render_everywhere(evaluation: Evaluation) -> str:
    result = merge_evaluations(TEST, [evaluation])
    reports = SessionReports([result], ReportMeta(plugin_version="1", started_at=0.0))
    for kind in REPORT_WRITERS:
        assert reports.render(kind)
    json.loads(reports.render("json"))
    lines = [line.text for line in build_section([result], verbosity=2)]
    return "\n".join([format_failure(result), *lines])


@pytest.mark.parametrize("name", EXPERIMENTS)
@settings(max_examples=12)
@given(made=st.lists(outcomes, min_size=1, max_size=40))
def test_any_mix_of_failures_has_a_verdict_and_every_report(name, made):
    evaluation, result = conduct(name, made)
    text = render_everywhere(evaluation)
    assert evaluation.verdict.status is not VerdictStatus.ABORTED
    assert repr(result)
    assert "nan" not in text.lower().split()
    if all(load.summary.requests and not load.summary.ok for load in evaluation.loads):
        assert evaluation.verdict.status is VerdictStatus.BROKEN


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_without_a_failure_every_experiment_is_measured_to_its_end(name):
    evaluation, _ = conduct(name, ["ok"])
    assert evaluation.verdict.status in {VerdictStatus.OK, VerdictStatus.UNSURE, VerdictStatus.BROKEN}
    assert "not measured" not in render_everywhere(evaluation)


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("outcome", FAILURES)
def test_a_server_that_fails_every_request_is_broken(name, outcome):
    evaluation, _ = conduct(name, [outcome])
    assert evaluation.verdict.status is VerdictStatus.BROKEN
    assert outcome.value in render_everywhere(evaluation)


@pytest.mark.parametrize("first", [1, 3, 5, 9])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_failures_that_begin_in_the_middle_are_broken(name, first):
    evaluation, _ = conduct(name, ["ok"] * first + [Outcome.CUT_OFF])
    if any(load.summary.ok < load.summary.requests for load in evaluation.loads):
        assert evaluation.verdict.status is VerdictStatus.BROKEN
    render_everywhere(evaluation)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_total_failure_with_a_history_is_broken_twice(name, tmp_path):
    for _ in range(3):
        kept = Settings(store=str(tmp_path / "history"), model="m", save=True, reports=(("html", "report.html"),))
        evaluation, _ = conduct(name, [Outcome.REFUSED], kept)
        assert evaluation.verdict.status is VerdictStatus.BROKEN
        render_everywhere(evaluation)


@pytest.mark.parametrize("outcome", ["ok", Outcome.REFUSED])
@pytest.mark.parametrize("load", [1, 2, 3])
@pytest.mark.parametrize("name", ["ab", "sweep", "sweep over models", "sweep over rates", "search", "cold start"])
def test_an_interrupted_experiment_has_every_report(name, load, outcome):
    try:
        evaluation = interrupt(name, [outcome], load)
    except pytest.fail.Exception:
        return  # failing requests ended the experiment before
    assert evaluation.verdict.status is VerdictStatus.ABORTED
    assert len(evaluation.loads) == load
    render_everywhere(evaluation)
