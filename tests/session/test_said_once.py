"""A failure is explained once: in pytest's own section, also on a CI system."""

import pytest

from pytest_ollama_perf.hooks.frontend import _redact_arguments

LOAD = "model='tiny', requests=6, num_predict=8, warmup=1, concurrency=1"
SOURCE = f"""
    @pytest.mark.ollama_load({LOAD}, min_tps=1e6, max_p95_latency=60)
    def test_bad():
        pass
"""


@pytest.fixture
def on_ci(monkeypatch):
    monkeypatch.setenv("CI", "true")


def test_the_reason_stands_once_in_failures_and_once_in_the_short_summary(perf, on_ci) -> None:
    perf.write(SOURCE)
    found = perf.run()
    reason = found.report["tests"][0]["reason"]
    lines = [line for line in found.out.splitlines() if reason in line]
    assert lines == [reason, f"FAILED test_it.py::test_bad - VerdictError: {reason}"]


def test_the_section_has_one_line_for_what_failures_explained(perf) -> None:
    perf.write(SOURCE)
    section = perf.run().section
    assert [line.split() for line in section[:2]] == [["test_it.py::test_bad", "broken"], []]


@pytest.mark.parametrize("option", ["--tb=no", "-v"])
def test_the_section_explains_what_failures_does_not(perf, option) -> None:
    perf.write(SOURCE)
    assert any("limit >=" in line for line in perf.run(option).section)


def test_the_rerun_command_repeats_the_options_of_the_user(perf) -> None:
    perf.write(SOURCE)
    section = " ".join(perf.run("-k", "bad").section)
    command = section.replace(" \\", "").split("rerun with all metrics:")[1].split()
    assert command[0] == "pytest"
    assert command[command.index("-k") + 1] == "bad"
    assert f"--ollama-url={perf.url}" in command
    assert command[command.index("-v") - 1] == "bad"


def test_the_rerun_command_has_no_credentials() -> None:
    given = ["--ollama-header", "Authorization: x", "--ollama-header=A: b", "--ollama-url=https://u:p@box/v1", "tests"]
    assert list(_redact_arguments(given)) == [
        "--ollama-header",
        "...",
        "--ollama-header=...",
        "--ollama-url=https://box/v1",
        "tests",
    ]


def test_the_width_is_that_of_columns(perf, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    perf.write(SOURCE)
    title = next(line for line in perf.run().section if line.startswith("test_it.py::test_bad"))
    assert len(title) == 120
