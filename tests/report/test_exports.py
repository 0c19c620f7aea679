"""Files for other tools, held to whole outputs and to the tools that read them."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from document_makers import META, document_of, judged
from hypothesis import given
from hypothesis import strategies as st
from report_makers import WORKLOAD, load, result, sample

from pytest_ollama_perf.core.sample import Outcome
from pytest_ollama_perf.core.verdict import Hint, HintCode, Verdict, VerdictStatus
from pytest_ollama_perf.harness.evaluation import TestResult
from pytest_ollama_perf.metrics import METRICS, Shape
from pytest_ollama_perf.report import exports
from pytest_ollama_perf.report import exports as csv_export
from pytest_ollama_perf.report.document import encode_document, parse_document
from pytest_ollama_perf.report.series import select_medians, select_typical

OPENMETRICS = pytest.importorskip("prometheus_client.openmetrics.parser", reason="prometheus-client is not installed")
BENCHSTAT = shutil.which("benchstat", path=os.pathsep.join([os.environ.get("PATH", ""), str(Path.home() / "go/bin")]))
TEST = "tests/test_chat.py::test_chat_speed"

SMALL = document_of(result(loads=[load([sample(0), sample(1)])]))
FAILED = document_of(result(loads=[load([sample(0), sample(1, outcome=Outcome.BUSY)])]))
NOTHING = document_of()
EVERYTHING_FAILED = document_of(result(loads=[load([sample(0, outcome=Outcome.BUSY)])]))
UNMEASURED = document_of(TestResult(TEST, Verdict(status=VerdictStatus.INVALID, reason="nothing answers")))
SWEPT = document_of(
    result(
        loads=[load([sample(0)], workload=msgspec.structs.replace(WORKLOAD, concurrency=number)) for number in (1, 2)]
    )
)
ALL = (SMALL, FAILED, NOTHING, EVERYTHING_FAILED, UNMEASURED, SWEPT, document_of(judged(runs=3)))


MARK = "HOSTILE TEXT"
MARKED = encode_document(
    document_of(
        result(
            VerdictStatus.BROKEN,
            MARK,
            loads=[
                load(
                    [sample(0, error=MARK, server=MARK), sample(1, outcome=Outcome.BUSY, error=MARK)],
                    workload=msgspec.structs.replace(WORKLOAD, model=MARK),
                )
            ],
            test=MARK,
            hints=(Hint(code=HintCode.SLOTS, text=MARK),),
            changed=(MARK,),
        )
    )
).decode()


def hostile(text: str):
    """A session in which every text that comes from outside is ``text``, as a foreign report may hold it."""
    escaped = json.dumps(text.encode("utf-8", "replace").decode())[1:-1]
    return parse_document(MARKED.replace(MARK, escaped).encode(), "a test")


HOSTILE = st.text(min_size=1, max_size=40) | st.sampled_from(
    ['"}\n# EOF\nevil 1', "a,b\r\n=1+1", "x\\", "a|b`c`", "load: x\nBenchmarkFoo 1 2 ns/op", "\u202eabc", "{}"]
)


def test_the_csv_table_has_one_line_a_number():
    text = csv_export.export_csv(SMALL).decode()
    lines = text.split("\r\n")
    assert lines[0] == ("test,verdict,load,run_id,started_at,model,metric,stat,unit,better,value,low,high,n,failed")
    ttft = next(line for line in lines if ",ttft,p50," in line)
    assert ttft == f"{TEST},ok,,run-1,2026-09-21T14:13:20+00:00,llama3.2:3b,ttft,p50,s,lower,0.2,,,2,0"
    assert text.endswith("\r\n")


def test_a_failed_request_is_infinitely_slow_in_the_table():
    rows = csv.DictReader(io.StringIO(csv_export.export_csv(FAILED).decode()))
    assert {row["value"] for row in rows if (row["metric"], row["stat"]) == ("ttft", "max")} == {"inf"}


@given(HOSTILE)
def test_any_text_comes_back_from_the_table_and_is_no_formula(text):
    rows = list(csv.DictReader(io.StringIO(csv_export.export_csv(hostile(text)).decode(), newline="")))
    assert rows
    assert len({row["test"] for row in rows}) == 1
    for row in rows:
        assert None not in row
        assert not row["test"].startswith(("=", "+", "-", "@"))
        assert float(row["value"]) >= 0


def test_benchstat_gets_the_lines_that_ollamas_bench_prints():
    assert exports.export_benchstat(SMALL).decode().splitlines() == [
        f"test: {TEST}",
        "# ollama 0.32.15, llama3.2:3b Q4_K_M",
        "BenchmarkModel/name=llama3.2:3b/step=prefill 32 5937500.00 ns/token 168.42 token/sec",
        "BenchmarkModel/name=llama3.2:3b/step=generate 11 9090909.09 ns/token 110.00 token/sec",
        "BenchmarkModel/name=llama3.2:3b/step=ttft 1 200000000 ns/request",
        "BenchmarkModel/name=llama3.2:3b/step=load 1 1000000 ns/request",
        "BenchmarkModel/name=llama3.2:3b/step=total 1 300000000 ns/request",
        "BenchmarkModel/name=llama3.2:3b/step=prefill 32 5937500.00 ns/token 168.42 token/sec",
        "BenchmarkModel/name=llama3.2:3b/step=generate 11 9090909.09 ns/token 110.00 token/sec",
        "BenchmarkModel/name=llama3.2:3b/step=ttft 1 200000000 ns/request",
        "BenchmarkModel/name=llama3.2:3b/step=load 1 1000000 ns/request",
        "BenchmarkModel/name=llama3.2:3b/step=total 1 300000000 ns/request",
        "BenchmarkModel/name=llama3.2:3b/step=errors 2 0.0000 failed/request",
    ]


def test_loads_of_one_test_are_told_apart_and_the_next_test_is_not_of_the_last():
    lines = exports.export_benchstat(SWEPT).decode().splitlines()
    assert [line for line in lines if line.startswith("load:")] == [
        "load: concurrency 1",
        "load: concurrency 2",
        "load:",
    ]


@pytest.mark.skipif(BENCHSTAT is None, reason="benchstat is not installed")
@pytest.mark.parametrize("document", [SMALL, FAILED, SWEPT], ids=["small", "failed", "swept"])
def test_benchstat_reads_every_line(document, tmp_path):
    (tmp_path / "a.txt").write_bytes(exports.export_benchstat(document))
    done = subprocess.run([str(BENCHSTAT), "a.txt", "a.txt"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert f"test: {TEST}" in done.stdout
    assert "Model/name=llama3.2:3b/step=generate" in done.stdout
    assert "failed/request" in done.stdout


@given(HOSTILE)
def test_no_text_makes_a_line_of_its_own_for_benchstat(text):
    for line in exports.export_benchstat(hostile(text)).decode().splitlines():
        assert line.startswith(("test: ", "# ollama ", "BenchmarkModel/name=", "load:")) or line == "test:"
        if line.startswith("Benchmark"):
            name, _, *values = line.split(" ")
            assert len(values) % 2 == 0
            assert name.count("/") == 2


BMF = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "additionalProperties": {
            "type": "object",
            "properties": {name: {"type": "number"} for name in ("value", "lower_value", "upper_value")},
            "required": ["value"],
            "additionalProperties": False,
        },
    },
}


def test_bencher_gets_values_with_their_intervals():
    found = json.loads(exports.export_bencher(SMALL))
    assert list(found) == [TEST]
    assert set(found[TEST]) == {
        *("tps_tokens_per_s", "throughput_tokens_per_s", "throughput_whole_tokens_per_s", "qps_requests_per_s"),
        *("ttft_p50_s", "ttft_p95_s", "ttft_p99_s", "tpot_p50_s", "tpot_p95_s", "tpot_p99_s"),
        *("itl_p50_s", "itl_p95_s", "itl_p99_s", "latency_p50_s", "latency_p95_s", "latency_p99_s"),
        *("queue_p50_s", "queue_p95_s", "queue_p99_s", "load_time_p50_s", "load_time_p95_s", "load_time_p99_s"),
        *("prefill_tps_tokens_per_s", "error_rate_share"),
    } & {number.name for number in select_typical(SMALL)}
    assert found[TEST]["ttft_p50_s"]["value"] == 0.2
    error_rate = found[TEST]["error_rate_share"]
    assert error_rate["lower_value"] == error_rate["value"] == 0.0 < error_rate["upper_value"] < 1


@pytest.mark.parametrize("document", ALL)
def test_every_session_is_in_bencher_metric_format(document):
    schema = pytest.importorskip("jsonschema")
    schema.validate(json.loads(exports.export_bencher(document)), BMF)


def test_bencher_tells_the_levels_of_a_sweep_apart():
    assert list(json.loads(exports.export_bencher(SWEPT))) == [f"{TEST} (concurrency 1)", f"{TEST} (concurrency 2)"]


def test_an_infinite_time_is_left_out_of_json_and_the_error_rate_tells_of_it():
    found = json.loads(exports.export_bencher(FAILED))[TEST]
    assert "ttft_p95_s" not in found
    assert found["error_rate_share"]["value"] == 0.5
    names = [entry["name"] for entry in json.loads(exports.export_smaller_is_better(FAILED))]
    assert f"{TEST}: error_rate" in names
    assert f"{TEST}: ttft p95" not in names


def test_the_github_action_gets_one_direction_a_file():
    bigger, smaller = (
        json.loads(write(SMALL)) for write in (exports.export_bigger_is_better, exports.export_smaller_is_better)
    )
    assert bigger[0] == {
        "name": f"{TEST}: tps",
        "unit": "tokens/s",
        "value": 110.0,
        "range": "110 .. 110",
        "extra": "model: llama3.2:3b\nverdict: ok\nvalues: 2",
    }
    assert {entry["unit"] for entry in bigger} == {"tokens/s", "requests/s"}
    assert {entry["unit"] for entry in smaller} == {"s", "share"}
    assert len({entry["name"] for entry in bigger + smaller}) == len(bigger) + len(smaller)


def test_of_runs_that_are_alike_the_median_speaks():
    slow = load([sample(0, first_token_ns=sample(0).first_token_ns + 90_000_000)])
    document = document_of(result(loads=[load([sample(0)]), slow, load([sample(0)])]))
    assert [number.value for number in select_typical(document) if number.name == "ttft_p50_s"] == [0.2]
    stats = [(number.metric, number.stat) for number in select_medians(document)]
    assert len(stats) == len(set(stats))


def families(document):
    return {
        family.name: family
        for family in OPENMETRICS.text_string_to_metric_families(exports.export_openmetrics(document).decode())
    }


def test_a_prometheus_reads_the_metrics_under_the_names_of_opentelemetry():
    found = families(SMALL)
    ttft = found["gen_ai_client_operation_time_to_first_chunk_seconds"]
    assert (ttft.type, ttft.unit) == ("summary", "seconds")
    labels = {
        "gen_ai_operation_name": "text_completion",
        "gen_ai_provider_name": "ollama",
        "gen_ai_request_model": "llama3.2:3b",
        "test": TEST,
    }
    assert {sample.labels.get("quantile", sample.name.rpartition("_")[2]): sample.value for sample in ttft.samples} == {
        **dict.fromkeys(("0.5", "0.9", "0.95", "0.99"), 0.2),
        "count": 2,
        "sum": 0.4,
    }
    assert all(labels.items() <= sample.labels.items() for sample in ttft.samples)
    (verdict,) = found["ollama_perf_verdict"].samples
    assert (verdict.labels, verdict.value) == ({"test": TEST, "verdict": "ok"}, 1)
    used = {sample.labels["gen_ai_token_type"]: sample.value for sample in found["gen_ai_client_token_usage"].samples}
    assert used == {"input": 64, "output": 22}


@pytest.mark.parametrize("document", ALL)
def test_every_session_is_openmetrics(document):
    text = exports.export_openmetrics(document).decode()
    assert text.endswith("# EOF\n")
    samples = [sample for family in families(document).values() for sample in family.samples]
    series = [(sample.name, *sorted(sample.labels.items())) for sample in samples]
    assert len(series) == len(set(series))


def test_a_failed_request_is_infinite_for_prometheus():
    found = families(FAILED)["gen_ai_client_operation_duration_seconds"]
    assert {
        sample.labels["quantile"]
        for sample in found.samples
        if sample.value == math.inf and sample.labels.get("quantile")
    } >= {
        "0.95",
        "0.99",
    }


@given(HOSTILE)
def test_no_text_breaks_out_of_its_label(text):
    assert {name.partition("_")[0] for name in families(hostile(text))} == {"gen", "ollama"}


def test_every_metric_has_a_name_outside():
    per_request = {name for name, metric in METRICS.items() if metric.shape is Shape.PER_REQUEST}
    assert set(exports.SUMMARY_NAMES) == per_request
    assert set(exports.GAUGE_NAMES) == set(METRICS) - per_request
    assert META.plugin_version
