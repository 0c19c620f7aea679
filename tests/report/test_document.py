"""The machine-readable report: complete, strict, and written whole or not at all."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_schemas import assert_same_schema
from report_makers import COUNTERS, MS, TEST, WORKLOAD, load, result, row, sample

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.run import ModelState
from pytest_ollama_perf.core.sample import Counters, Outcome, Phase, Sample
from pytest_ollama_perf.core.verdict import Hint, HintCode, Problem, ProblemCode, VerdictStatus
from pytest_ollama_perf.metrics import METRICS, STATS
from pytest_ollama_perf.report.document import Document, ReportMeta, build_report, build_report_schema, write_report

META = ReportMeta(plugin_version="1.2.3", started_at=1_790_000_000.5)
PUBLISHED = Path(__file__).parents[2] / "docs" / "report.schema.json"


def report(*results, meta=META):
    encoded = build_report(results, meta=meta)
    msgspec.json.decode(encoded, type=Document, strict=True)
    return json.loads(encoded, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def first_load(made):
    return report(made)["tests"][0]["loads"][0]


def test_a_test_stands_with_its_verdict():
    made = report(
        result(
            VerdictStatus.BROKEN,
            "tps 84.1 /s, limit >= 150 /s: 44 % below",
            rows=(row("tps", status=VerdictStatus.BROKEN, op=">=", bound=150.0, value=84.1, low=82.0, high=86.0),),
            problems=(Problem(code=ProblemCode.SHORT_OUTPUTS, text="2 answers ended early", invalidates=False),),
            hints=(Hint(code=HintCode.SLOTS, text="OLLAMA_NUM_PARALLEL is probably 1"),),
            loads=[],
        )
    )
    assert made == {
        "schema": 1,
        "plugin_version": "1.2.3",
        "started_at": 1_790_000_000.5,
        "aborted": "",
        "tests": [
            {
                "test": TEST,
                "verdict": "broken",
                "reason": "tps 84.1 /s, limit >= 150 /s: 44 % below",
                "rows": [
                    {
                        "metric": "tps",
                        "stat": "",
                        "status": "broken",
                        "reason": "",
                        "gating": True,
                        "op": ">=",
                        "value": 84.1,
                        "bound": 150.0,
                        "baseline": None,
                        "change": None,
                        "low": 82.0,
                        "high": 86.0,
                        "margin": None,
                        "where": "",
                    }
                ],
                "problems": [
                    {
                        "code": "short_outputs",
                        "name": "short outputs",
                        "text": "2 answers ended early",
                        "invalidates": False,
                    }
                ],
                "hints": [{"code": "slots", "text": "OLLAMA_NUM_PARALLEL is probably 1"}],
                "changed": [],
                "accept": "",
                "stored": None,
                "loads": [],
                "findings": [],
                "past": None,
            }
        ],
    }


def test_a_sample_has_its_times_and_counters_side_by_side():
    assert first_load(result(loads=[load([sample(4)])]))["samples"] == [
        {
            "request_id": "r-4",
            "url": "http://gpu-box:11434",
            "outcome": "ok",
            "stage": "measured",
            "index": 4,
            "client": 0,
            "attempt": 1,
            "sent_ns": 5300 * MS,
            "done_ns": 5600 * MS,
            "scheduled_ns": None,
            "connect_ns": None,
            "header_ns": None,
            "first_token_ns": 5500 * MS,
            "first_answer_ns": 5500 * MS,
            "chunk_ns": [(5500 + 10 * step) * MS for step in range(11)],
            "line_count": 12,
            "read_count": 0,
            "bytes_received": 0,
            "read_lag_ns": 0,
            "status": 200,
            "error": "",
            "done_reason": "length",
            "server": "",
            "total_duration_ns": 299 * MS,
            "load_duration_ns": 1 * MS,
            "prompt_eval_count": 32,
            "prompt_eval_cached_count": None,
            "prompt_eval_duration_ns": 190 * MS,
            "eval_count": 11,
            "eval_duration_ns": 100 * MS,
            "queue_ns": 8 * MS,
            "first_sent_ns": None,
            "first_error": "",
            "turn": 1,
        }
    ]


def test_every_fact_of_a_sample_is_in_the_report():
    facts = set(Sample.__struct_fields__) - {"counters"} | set(Counters.__struct_fields__)
    assert facts <= set(first_load(result())["samples"][0])


def test_warm_up_samples_are_there_and_told_apart():
    stages = [each["stage"] for each in first_load(result())["samples"]]
    assert (stages.count("warmup"), stages.count("measured")) == (4, 20)


def test_metrics_have_value_unit_statistics_and_intervals():
    metrics = first_load(result())["metrics"]
    assert metrics["tps"] == {
        "unit": "tokens/s",
        "better": "higher",
        "n": 20,
        "failed": 0,
        "value": pytest.approx(110.0),
        **{stat: pytest.approx(110.0) for stat in STATS},
        "ci": {name: [pytest.approx(110.0)] * 2 for name in ("value", "mean", "p50")},
    }
    assert metrics["ttft"]["p95"] == pytest.approx(0.2)
    assert "value" not in metrics["ttft"]
    assert "p50" not in metrics["qps"]
    assert set(metrics) <= set(METRICS)


def test_tps_is_the_pooled_eval_rate_of_the_samples_beside_it():
    slower = msgspec.structs.replace(sample(5), counters=msgspec.structs.replace(COUNTERS, eval_duration_ns=300 * MS))
    made = first_load(result(loads=[load([sample(4), slower])]))
    counted = [(each["eval_count"], each["eval_duration_ns"]) for each in made["samples"]]
    assert counted == [(11, 100 * MS), (11, 300 * MS)]
    assert made["metrics"]["tps"]["value"] == pytest.approx(22 / 0.4)


def test_an_infinite_number_is_null():
    made = first_load(result(loads=[load([sample(4), sample(5, outcome=Outcome.BUSY)])]))
    assert made["metrics"]["latency"]["max"] is None
    assert made["metrics"]["latency"]["failed"] == 1
    infinite = row("latency", "p95", VerdictStatus.BROKEN, op="<=", bound=1.0, value=math.inf)
    assert report(result(rows=(infinite,)))["tests"][0]["rows"][0]["value"] is None


def test_workload_and_fingerprint_are_there():
    made = first_load(result())
    assert made["model"] == "llama3.2:3b"
    assert made["workload"]["concurrency"] == 4
    assert made["fingerprint"]["quantization"] == "Q4_K_M"
    assert made["started_at"] == 1_790_000_000.0


def test_credentials_are_never_written():
    url = "https://me:s3cret@gpu-box:11434/ollama?key=s3cret"
    one = msgspec.structs.replace(sample(4), url=url)
    made = result(loads=[load([one], before={url: ModelState(loaded=True)}, after={url: ModelState()})])
    assert b"s3cret" not in build_report([made], meta=META)
    assert first_load(made)["samples"][0]["url"] == "https://gpu-box:11434/ollama"
    assert list(first_load(made)["before"]) == ["https://gpu-box:11434/ollama"]


def test_what_a_server_said_is_made_harmless():
    broken = sample(4, outcome=Outcome.SERVER_ERROR, error="\x1b[2Jno\nmore \u202ememory\ud800")
    made = first_load(result(loads=[load([broken], aborted="\x07stop")]))
    assert made["samples"][0]["error"] == "[2Jno more memory"
    assert made["aborted"] == "stop"


def test_a_lone_surrogate_does_not_cost_the_report():
    odd = msgspec.structs.replace(WORKLOAD, prompts=("\ud800",), options={"stop": ["\udfff"], "k": 1})
    made = report(result(test="tests/test_\udcff.py::test_it", loads=[load(workload=odd)]))
    assert made["tests"][0]["test"] == "tests/test_?.py::test_it"
    assert made["tests"][0]["loads"][0]["workload"]["options"] == {"stop": ["?"], "k": 1}


def test_numbers_of_numpy_are_numbers():
    made = row("tps", value=np.float64(84.1), low=np.float64("inf"), high=np.float32(2.0))
    written = report(result(rows=(made,)))["tests"][0]["rows"][0]
    assert (written["value"], written["low"], written["high"]) == (84.1, None, 2.0)


@given(st.text(st.characters(exclude_categories=())), st.floats(0) | st.just(math.nan), st.sampled_from(Outcome))
@settings(max_examples=50, deadline=None)
def test_whatever_happened_the_report_is_of_its_schema(text, number, outcome):
    one = sample(4, outcome=outcome, error=text, done_reason=text, server=text, stage=Phase.MEASURED)
    rows = (row("ttft", "p50", value=number, baseline=number, change=number),)
    made = report(
        result(reason=text, test=text, loads=[load([one])], rows=rows, hints=(Hint(code=HintCode.SLOTS, text=text),))
    )
    assert len(made["tests"]) == 1


def test_an_empty_session_has_an_empty_report():
    assert report(meta=ReportMeta(plugin_version="1", started_at=0.0, aborted="Ctrl-C"))["tests"] == []


def test_the_published_schema_is_the_one_the_code_has():
    assert_same_schema(PUBLISHED, build_report_schema)


def test_the_published_schema_names_what_the_report_has():
    published = json.loads(PUBLISHED.read_bytes())
    made = first_load(result())
    for name, found in (
        ("SampleEntry", made["samples"][0]),
        ("LoadEntry", made),
        ("MetricEntry", made["metrics"]["tps"]),
    ):
        described = published["$defs"][name]
        assert set(described["required"]) <= set(found) <= set(described["properties"])


def test_a_report_replaces_the_one_before_and_makes_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "perf.json"
    write_report(path, b"old")
    write_report(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["perf.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_report_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "perf.json"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(ConfigError) as refused:
        write_report(path, b"new")
    assert str(refused.value) == (
        f"--ollama-report: cannot write {path}: No space left on device; give a path that can be written"
    )
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["perf.json"]


def test_ctrl_c_while_writing_leaves_the_old_report_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "perf.json"
    path.write_bytes(b"old")

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_report(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["perf.json"]


def test_a_folder_or_device_is_never_replaced(tmp_path):
    with pytest.raises(ConfigError, match=r"is no regular file; give the path of a file$"):
        write_report(tmp_path, b"new")
    assert tmp_path.is_dir()


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"cannot write .*perf\.json: "):
        write_report(tmp_path / "taken" / "perf.json", b"new")


def test_a_report_keeps_the_permissions_of_the_file_it_replaces(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    path.chmod(0o640)
    write_report(path, b"{}")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"{}", 0o640)
