"""``--ollama-report TYPE:PATH`` is read or refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_ollama_perf.config.report_targets import REPORT_TYPES, ReportTarget, parse_report_target
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.report import REPORT_WRITERS

VALID = "valid types: json, html, markdown, openmetrics, csv, benchstat, bencher, github-bigger, github-smaller"


@pytest.mark.parametrize("path", ["perf.json", "out/perf.json", "/tmp/perf.json", "C:\\perf.json", "a:b.json", "~"])
def test_type_and_path_are_told_apart_at_the_first_colon(path):
    assert parse_report_target(f"json:{path}") == ReportTarget("json", Path(path))


@pytest.mark.parametrize("given", ["", "json", "json:", "json: ", ":perf.json", "perf.json"])
def test_a_missing_part_is_refused(given):
    with pytest.raises(ConfigError) as refused:
        parse_report_target(given)
    assert str(refused.value) == (f"--ollama-report {given!r}: give TYPE:PATH, such as json:report.json; {VALID}")


def test_a_misspelt_type_is_answered_with_the_near_one():
    with pytest.raises(ConfigError) as refused:
        parse_report_target("Jason:perf.json")
    assert str(refused.value) == (
        f"--ollama-report 'Jason:perf.json': unknown report type 'Jason'; did you mean 'json'?; {VALID}"
    )


def test_a_type_far_from_all_gets_no_guess():
    with pytest.raises(ConfigError, match=rf"unknown report type 'pdf'; {VALID}$"):
        parse_report_target("pdf:perf.pdf")


def test_a_type_whose_packages_are_missing_names_the_extra(monkeypatch):
    monkeypatch.setattr("pytest_ollama_perf.config.report_targets.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as refused:
        parse_report_target("html:perf.html")
    assert str(refused.value) == (
        "--ollama-report 'html:perf.html': the html report needs an extra: pip install 'pytest-ollama-perf[html]'"
    )
    assert parse_report_target("json:perf.json").type == "json"


@pytest.mark.parametrize("kind", REPORT_TYPES)
def test_every_type_has_a_writer(kind):
    assert callable(REPORT_WRITERS[kind])


@pytest.mark.parametrize("path", [".", "/"])
def test_a_folder_is_refused(path):
    with pytest.raises(ConfigError, match=r"is a folder; give a file, such as json:report\.json"):
        parse_report_target(f"json:{path}")


def test_hostile_text_is_shown_escaped_on_one_line():
    with pytest.raises(ConfigError) as refused:
        parse_report_target("x\n\x1b[2J:y")
    assert str(refused.value).isprintable()
