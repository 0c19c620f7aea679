"""Reports of others: JUnit XML, pytest-html, Allure, pytest-reportlog get verdict and numbers, inert."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from plugin_runs import LOAD, needs

HOSTILE = "<script>alert(1)</script>&\\x1b[31m\\x00"
TESTS = f"""
@load
def test_good():
    pass

@pytest.mark.ollama_load({LOAD}, min_tps=1e9)
def test_slow():
    pass

@pytest.mark.ollama_load(model="{HOSTILE}", requests=2)
def test_hostile():
    pass

def test_two(ollama):
    ollama.load({LOAD})
    ollama.load({LOAD}, concurrency=2)

def test_plain():
    pass
"""
NUMBERS = {
    *("ollama.tps", "ollama.throughput_tps", "ollama.qps", "ollama.error_rate", "ollama.queue_p50_s"),
    *("ollama.ttft_p50_s", "ollama.ttft_p95_s", "ollama.latency_p50_s", "ollama.latency_p95_s"),
}
FACTS = {"ollama.verdict", "ollama.reason", "ollama.model", "ollama.concurrency", "ollama.runs", "ollama.requests"}


def junit(folder: Path) -> dict[str, dict[str, str]]:
    cases = ET.parse(folder / "junit.xml").iter("testcase")
    return {
        case.get("name", ""): {one.get("name", ""): one.get("value", "") for one in case.iter("property")}
        for case in cases
    }


@pytest.mark.parametrize("family", ["xunit1", "xunit2"])
def test_junit_has_verdict_and_numbers_with_their_units(run, family: str) -> None:
    run.write(TESTS)
    ran = run("--junitxml=junit.xml", "-o", f"junit_family={family}")
    assert ran.status == 1
    found = junit(run.folder)
    assert set(found["test_good"]) == NUMBERS | FACTS
    assert found["test_good"]["ollama.verdict"] == "ok"
    assert found["test_slow"]["ollama.verdict"] == "broken"
    assert found["test_hostile"]["ollama.verdict"] == "invalid"
    assert set(found["test_hostile"]) == {"ollama.verdict", "ollama.reason"}
    assert "\x1b" not in found["test_hostile"]["ollama.reason"]
    assert set(found["test_two"]) >= {"ollama.1.tps", "ollama.2.tps"}
    assert found["test_two"]["ollama.2.concurrency"] == "2"
    assert found["test_plain"] == {}
    metrics = ran.tests[0]["loads"][0]["metrics"]
    assert float(found["test_good"]["ollama.tps"]) == metrics["tps"]["value"]
    assert float(found["test_good"]["ollama.ttft_p95_s"]) == metrics["ttft"]["p95"]
    assert float(found["test_good"]["ollama.throughput_tps"]) == metrics["throughput"]["value"]


def test_a_strict_reader_of_junit_xml_gets_cases_without_properties(run) -> None:
    run.write(TESTS)
    ran = run("--junitxml=junit.xml", "--ollama-no-properties")
    assert set(map(len, junit(run.folder).values())) == {0}
    assert ran.verdicts["test_good"] == "ok"


def test_own_properties_of_a_test_stay(run) -> None:
    run.write("@load\ndef test_it(record_property):\n    record_property('mine', 1)")
    run("--junitxml=junit.xml")
    assert junit(run.folder)["test_it"]["mine"] == "1"
    assert junit(run.folder)["test_it"]["ollama.verdict"] == "ok"


@needs("html")
def test_an_html_report_holds_the_explanation_and_runs_nothing_of_it(run) -> None:
    run.write(TESTS)
    ran = run("--html=report.html", "--self-contained-html", beside=("html",))
    assert ran.status == 1
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "limit &gt;= 1000000000" in page or "limit &amp;gt;= 1000000000" in page
    assert "<script>alert" not in page
    assert "alert(1)" in page


@needs("allure")
def test_allure_gets_the_reason_as_the_message(run) -> None:
    run.write(TESTS)
    run("--alluredir=allure", beside=("allure",))
    results = [json.loads(path.read_bytes()) for path in (run.folder / "allure").glob("*-result.json")]
    by_name = {result["name"]: result for result in results}
    assert {name: result["status"] for name, result in by_name.items()} == {
        **{"test_good": "passed", "test_slow": "failed", "test_hostile": "failed"},
        **{"test_two": "passed", "test_plain": "passed"},
    }
    assert ", limit >= 1000000000 /s: 100 % below" in by_name["test_slow"]["statusDetails"]["message"]


@needs("reportlog", "xdist")
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_report_log_has_the_numbers_and_nothing_of_our_own_post(run, workers: str) -> None:
    run.write(TESTS)
    run("--report-log=log.jsonl", "-n", workers, beside=("reportlog", "xdist"))
    text = (run.folder / "log.jsonl").read_text(encoding="utf-8")
    assert '"ollama_perf"' not in text
    lines = [json.loads(line) for line in text.splitlines()]
    last = {line["nodeid"].rpartition("::")[2]: line for line in lines if line.get("when") == "teardown"}
    found = {name: dict(line["user_properties"]) for name, line in last.items()}
    assert set(found["test_good"]) == NUMBERS | FACTS
    assert isinstance(found["test_good"]["ollama.tps"], float)
    assert found["test_slow"]["ollama.verdict"] == "broken"
    assert found["test_plain"] == {}
