"""A fault in the text of one test never takes the reports of the others."""

import json

import pytest
from report_makers import result

from pytest_ollama_perf.analysis import Finding
from pytest_ollama_perf.core import OllamaPerfError
from pytest_ollama_perf.core.verdict import VerdictStatus
from pytest_ollama_perf.report import SessionReports, facts, markdown
from pytest_ollama_perf.report.document import ReportMeta
from pytest_ollama_perf.report.terminal import build_section, format_failure

META = ReportMeta(plugin_version="1.0", started_at=0.0)


class Unrenderable(Finding, frozen=True, kw_only=True, tag="unrenderable"):
    """A finding that no renderer knows."""


def broken(test, **fields):
    made = result(VerdictStatus.BROKEN, "too slow", test=test, **fields)
    return made


def with_fault(test="test_faulty"):
    made = broken(test)
    return type(made)(test=made.test, verdict=made.verdict, loads=made.loads, findings=(Unrenderable(),))


def test_the_section_has_every_test_and_names_the_fault():
    lines = [line.text for line in build_section([broken("test_a"), with_fault(), broken("test_b")], verbosity=0)]
    titles = [line.split()[0] for line in lines if line.endswith("broken") and line.startswith("test_")]
    assert titles == ["test_a", "test_faulty", "test_b"]
    assert lines.count("  too slow") == 3
    assert sum(line.startswith("  - report failed: TypeError") for line in lines) == 1


def test_the_failure_keeps_its_reason():
    lines = format_failure(with_fault()).splitlines()
    assert lines[0] == "too slow"
    assert lines[1].startswith("  - report failed: TypeError: no renderer for Unrenderable")


def test_the_json_report_has_every_test():
    tests = json.loads(SessionReports([broken("test_a"), with_fault()], META).render("json"))["tests"]
    assert [(test["test"], test["verdict"], len(test["loads"])) for test in tests] == [
        ("test_a", "broken", 1),
        ("test_faulty", "broken", 0),
    ]
    assert [problem["code"] for problem in tests[1]["problems"]] == ["report_failed"]


def test_a_format_that_cannot_show_one_test_still_shows_the_others(monkeypatch):
    shown = markdown._format_reason

    def fail_for_one(test):
        if test.test == "test_b" and test.loads:
            raise ZeroDivisionError("no requests")
        return shown(test)

    monkeypatch.setattr(markdown, "_format_reason", fail_for_one)
    text = SessionReports([broken("test_a"), broken("test_b")], META).render("markdown").decode()
    assert "test\\_a" in text
    assert "report failed: ZeroDivisionError: no requests" in text


def test_a_format_that_can_show_nothing_is_an_error_of_that_report(monkeypatch):
    monkeypatch.setattr(markdown, "_list_environments", lambda document: 1 / 0)
    reports = SessionReports([broken("test_a")], META)
    with pytest.raises(OllamaPerfError, match="the report cannot be built: ZeroDivisionError"):
        reports.render("markdown")
    assert reports.render("csv").startswith(b"test,verdict")


def test_the_properties_keep_the_verdict(monkeypatch):
    monkeypatch.setattr(facts, "_build_load_properties", lambda *given: 1 / 0)
    found = facts.replace_properties([("other", 1)], broken("test_a"))
    assert found == [("other", 1), ("ollama.verdict", "broken"), ("ollama.reason", "too slow")]
