"""Load shapes against servers on sockets: the simulator, and the real Ollama where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.config.load_spec import build_load_spec
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.verdict import VerdictStatus
from pytest_ollama_perf.harness import Harness
from pytest_ollama_perf.harness.evaluation import evaluate_run
from pytest_ollama_perf.metrics import METRICS, TELEMETRY_METRICS
from pytest_ollama_perf.metrics.summary import explain_unmeasurable, summarise

SIM = "sim:?slots=4&tps=2000&prefill_tps=50000&load_time=0&overhead=0&models=tiny"


class SilentListener:
    """An onlooker that does not look."""

    def begin(self, model, duration_s=None, *, captions=()): ...

    def show_message(self, text, *, time=""): ...

    def update(self, progress): ...


def measured(bench: Harness, **words) -> Run:
    workload = build_load_spec({"num_predict": 8, "requests": 6, **words}, default_model=bench.settings.model).workload
    return bench.measure(workload, listener=SilentListener())


def bench_at(url: str, folder: Path, model: str | None = None) -> Iterator[Harness]:
    bench = Harness(Settings(urls=(url,), model=model), root=folder)
    yield bench
    bench.close()


@pytest.fixture(params=["simulator", pytest.param("real", marks=pytest.mark.real_server)])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Harness]:
    if request.param == "simulator":
        yield from bench_at(SIM, tmp_path)
    else:
        yield from bench_at(request.getfixturevalue("real_server"), tmp_path, "tiny")


def ok(run: Run) -> bool:
    return (
        all(sample.ok for sample in run.measured)
        and evaluate_run(run, (), strict=False).verdict.status is VerdictStatus.OK
    )


def test_chats_grow_by_what_the_model_answered(bench: Harness) -> None:
    run = measured(bench, turns=3, warmup=0)
    assert all(sample.ok for sample in run.samples)
    assert [sample.turn for sample in run.samples] == [1, 2, 3, 1, 2, 3]
    read = [sample.counters.prompt_eval_count or 0 for sample in run.samples]
    # every turn adds a question of 24 words and an answer of 8 tokens; a small vocabulary has four tokens a word
    assert all(24 <= later - earlier <= 200 for earlier, later in ((read[0], read[1]), (read[1], read[2])))


def test_connections_of_their_own_are_opened_for_each_request_and_timed(bench: Harness) -> None:
    run = measured(bench, reuse_connections=False)
    assert ok(run)
    assert all(sample.connect_ns is not None and sample.connect_ns > 0 for sample in run.samples)
    assert [sample.connect_ns for sample in measured(bench).samples] == [None] * 7


def test_stages_climb_and_end_with_a_course(bench: Harness) -> None:
    stages = [{"concurrency": 2, "ramp": 0.4}, {"concurrency": 2, "for": 0.3}]
    workload = build_load_spec({"num_predict": 8, "stages": stages}, default_model=bench.settings.model).workload
    run = bench.measure(workload, listener=SilentListener())
    assert all(sample.ok for sample in run.samples)
    (course,) = [found for found in evaluate_run(run, (), strict=False).findings if type(found).__name__ == "Timeline"]
    assert sum(span.requests for span in course.spans) == len(run.measured)
    assert {sample.client for sample in run.measured} == {0, 1}


def test_images_for_a_model_that_cannot_see_are_refused_before_anything_is_sent(bench: Harness, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(
        ConfigError, match=r"does not support images \(capabilities: .*completion.*\); use a model with vision$"
    ):
        measured(bench, images=str(tmp_path / "a.png"))


def test_a_request_that_a_full_server_turned_away_is_sent_again(tmp_path: Path) -> None:
    for bench in bench_at(f"{SIM}&fault=busy@3", tmp_path):
        run = measured(bench, retries=2, warmup=0)
        retried = [sample for sample in run.samples if sample.attempt > 1]
        assert [sample.outcome.value for sample in run.samples] == ["ok"] * 6
        assert [sample.attempt for sample in retried] == [2]
        assert retried[0].first_error.startswith("busy: HTTP 503: server busy")
        assert retried[0].first_sent_ns is not None
        assert retried[0].sent_ns - retried[0].first_sent_ns >= 250_000_000


@pytest.mark.parametrize("words", [{}, {"stream": False}, {"endpoint": "embed"}])
def test_what_a_load_is_said_not_to_have_it_has_not_and_all_else_it_may(
    bench: Harness, words: dict[str, object]
) -> None:
    if "endpoint" in words and bench.settings.model:
        words = {**words, "model": "embed"}
    run = measured(bench, **words)
    found = set(summarise(run, {"latency": 10.0}).metrics)
    assert found == {name for name in METRICS if not explain_unmeasurable(name, run.workload)} - {
        "ttfa",
        *TELEMETRY_METRICS,
    }
