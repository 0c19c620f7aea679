"""The machine-readable result against the simulator's own record of every request."""

from __future__ import annotations

import msgspec
import pytest

from pytest_ollama_perf.core.sample import Counters
from pytest_ollama_perf.metrics import METRICS, TELEMETRY_METRICS

DOCUMENT = {"schema", "plugin_version", "started_at", "aborted", "tests"}
TEST = {"test", "verdict", "reason", "loads"}
LOAD = {"model", "workload", "fingerprint", "metrics", "samples"}
SAMPLE = {
    *("request_id", "url", "outcome", "sent_ns", "first_token_ns", "done_ns", "chunk_ns", "eval_count"),
    *("eval_duration_ns", "prompt_eval_count", "prompt_eval_duration_ns", "load_duration_ns", "total_duration_ns"),
}


@pytest.fixture
def measured(perf, sim):
    """One load of 22 requests, two of them warm-up, three at a time: its report and what the server knows of it."""
    perf.write("""
        @pytest.mark.ollama_load(model="tiny", concurrency=3, requests=20, warmup=2, num_predict=9)
        def test_it():
            pass
    """)
    sim.reset()
    found = perf.run()
    assert found.counts == {"passed": 1}
    return found.report, [one for one in sim.requests() if one.eval_count]


def test_the_document_has_the_documented_shape(measured) -> None:
    document, _ = measured
    assert set(document) >= DOCUMENT
    assert document["schema"] == 1
    (test,) = document["tests"]
    assert set(test) >= TEST
    assert test["test"] == "test_it.py::test_it"
    assert (test["verdict"], document["aborted"]) == ("ok", "")
    (load,) = test["loads"]
    assert set(load) >= LOAD
    assert load["model"] == "tiny"
    assert all(set(sample) >= SAMPLE for sample in load["samples"])


def test_every_request_is_in_the_report_as_the_server_saw_it(measured, sim) -> None:
    document, truth = measured
    samples = document["tests"][0]["loads"][0]["samples"]
    assert len(samples) == len(truth) == 22
    known = {one.request_id: one for one in truth}
    assert {sample["request_id"] for sample in samples} == set(known)
    for sample in samples:
        server = known[sample["request_id"]]
        assert (sample["outcome"], sample["url"]) == ("ok", sim.url)
        assert sample["eval_count"] == server.eval_count == 9
        assert sample["prompt_eval_count"] == server.prompt_tokens
        assert len(sample["chunk_ns"]) == 9
        assert sample["chunk_ns"] == sorted(sample["chunk_ns"])
        assert sample["sent_ns"] < sample["first_token_ns"] == sample["chunk_ns"][0]
        assert sample["chunk_ns"][-1] <= sample["done_ns"]
    assert [sample["stage"] for sample in samples].count("warmup") == 2


def test_times_are_on_the_servers_clock_of_the_same_machine(measured) -> None:
    document, truth = measured
    known = {one.request_id: one for one in truth}
    for sample in document["tests"][0]["loads"][0]["samples"]:
        server = known[sample["request_id"]]
        assert sample["sent_ns"] <= server.arrived_ns
        assert server.first_token_ns <= sample["first_token_ns"]
        assert server.done_ns <= sample["done_ns"]


def test_tps_is_the_pooled_eval_rate_of_the_measured_samples(measured) -> None:
    document, _ = measured
    (load,) = document["tests"][0]["loads"]
    samples = [sample for sample in load["samples"] if sample["stage"] == "measured"]
    tokens = sum(sample["eval_count"] for sample in samples)
    seconds = sum(sample["eval_duration_ns"] for sample in samples) / 1e9
    assert load["metrics"]["tps"]["value"] == pytest.approx(tokens / seconds, rel=1e-12)
    assert load["metrics"]["tps"]["unit"] == "tokens/s"


def test_order_statistics_are_those_of_the_samples(measured) -> None:
    document, _ = measured
    (load,) = document["tests"][0]["loads"]
    samples = [sample for sample in load["samples"] if sample["stage"] == "measured"]
    ttft = sorted((sample["first_token_ns"] - sample["sent_ns"]) / 1e9 for sample in samples)
    latency = sorted((sample["done_ns"] - sample["sent_ns"]) / 1e9 for sample in samples)
    for name, values in (("ttft", ttft), ("latency", latency)):
        found = load["metrics"][name]
        assert found["n"] == 20
        assert (found["min"], found["max"]) == pytest.approx((values[0], values[-1]))
        assert found["p50"] == pytest.approx((values[9] + values[10]) / 2)
        assert found["mean"] == pytest.approx(sum(values) / 20)
        assert found["unit"] == "s"


def test_metrics_are_called_what_they_are_called_everywhere(measured) -> None:
    document, _ = measured
    metrics = document["tests"][0]["loads"][0]["metrics"]
    assert set(metrics) <= set(METRICS)
    assert set(metrics) >= set(METRICS) - {"ttfa", "goodput", *TELEMETRY_METRICS}
    assert {name: (found["unit"], found["better"]) for name, found in metrics.items()} == {
        name: (METRICS[name].unit.value, METRICS[name].better.value) for name in metrics
    }
    assert metrics["error_rate"]["value"] == 0


def test_counters_keep_their_names(measured) -> None:
    document, _ = measured
    (load,) = document["tests"][0]["loads"]
    assert all(set(msgspec.structs.asdict(Counters())) <= set(sample) for sample in load["samples"])


def test_what_identifies_server_and_model_is_there(measured) -> None:
    document, _ = measured
    (load,) = document["tests"][0]["loads"]
    fingerprint = load["fingerprint"]
    assert fingerprint["server_version"] == "0.32.15"
    assert fingerprint["model"] in {"tiny", "tiny:latest"}
    assert fingerprint["model_digest"].startswith("f3f8b41208a2")
    assert fingerprint["context_length"] == 4096
    assert load["workload"]["concurrency"] == 3


def test_failed_requests_are_counted_named_and_never_fast(perf) -> None:
    perf.write("""
        @pytest.mark.ollama_load(model="tiny", requests=5, warmup=0, num_predict=4, max_error_rate=1)
        def test_it():
            pass
    """)
    found = perf.run(url="sim:?load_time=0&fault=http_500@2&fault=truncate:1@4&models=tiny")
    (load,) = found.report["tests"][0]["loads"]
    assert [sample["outcome"] for sample in load["samples"]] == ["ok", "http_error", "ok", "truncated", "ok"]
    assert load["outcomes"] == {"ok": 3, "http_error": 1, "truncated": 1}
    assert load["metrics"]["error_rate"]["value"] == pytest.approx(0.4)
    assert load["metrics"]["latency"]["max"] is None
    assert load["metrics"]["latency"]["failed"] == 2
    assert load["metrics"]["tps"]["value"] > 0


def test_a_report_without_a_load_is_an_empty_one(perf) -> None:
    perf.write("def test_it():\n    pass")
    assert perf.run().report["tests"] == []


def test_a_report_that_cannot_be_written_fails_the_run_in_one_line(perf) -> None:
    perf.write("""
        @pytest.mark.ollama_load(model="tiny", requests=20, warmup=0, num_predict=2)
        def test_it():
            pass
    """)
    (perf.path / "results").mkdir()
    found = perf.run("--ollama-report=json:results")
    assert (found.status, found.counts) == (1, {"passed": 1})
    said = [line for line in found.section if line.startswith("--ollama-report")]
    assert said == ["--ollama-report: results is no regular file; give the path of a file"]
    assert found.has_report  # the other one


def test_a_report_replaces_the_one_before_whole(perf) -> None:
    (perf.path / "report.json").write_text("x" * 1_000_000)
    perf.write("def test_it():\n    pass")
    assert perf.run().report["schema"] == 1
    assert [path.name for path in perf.path.glob("*.json*")] == ["report.json"]
    assert [path.name for path in perf.path.glob(".report*")] == []
