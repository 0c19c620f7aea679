"""Sessions inside a job of GitHub Actions, and reports of every type from the command line."""

from __future__ import annotations

import contextlib
import importlib
import json

import pytest

from pytest_ollama_perf.cli import main
from pytest_ollama_perf.config.report_targets import REPORT_TYPES
from pytest_ollama_perf.core import MissingExtraError

# What an inner run in this process imports must be here before it: pytester forgets modules that came with the run.
for _name in ("integrations.github", "report.document", "report.exports", "report.html", "report.markdown"):
    with contextlib.suppress(MissingExtraError):
        importlib.import_module(f"pytest_ollama_perf.{_name}")

SOURCE = """
    @pytest.mark.ollama_load(model="tiny", requests=4, num_predict=4, min_tps=10**7)
    def test_slow():
        pass

    @pytest.mark.ollama_load(model="tiny", requests=4, num_predict=4)
    def test_fine():
        pass
"""


@pytest.fixture
def job(perf, monkeypatch):
    """A job whose summary is a file that another step's text stands in already."""
    perf.write(SOURCE)
    summary = perf.path / "summary.md"
    summary.write_text("what another tool wrote\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_WORKSPACE", str(perf.path.parent))
    return summary


def annotations(found) -> list[str]:
    return [line for line in found.out.splitlines() if line.startswith("::")]


def test_a_failure_is_annotated_and_the_results_are_added_to_the_summary(perf, job):
    found = perf.run()
    assert found.counts == {"passed": 1, "failed": 1}
    (line,) = annotations(found)
    assert line.startswith(
        f"::error file={perf.path.name}/test_it.py,line=3,title=broken%3A test_it.py%3A%3Atest_slow::tps "
    )
    written = job.read_text(encoding="utf-8")
    assert written.startswith("what another tool wrote\n## ❌ Performance: 1 ok, 1 broken\n")
    assert "<summary>❌ test_it.py::test_slow: broken</summary>" in written


def test_a_failed_clause_is_annotated_at_its_line_although_its_load_has_another_name(perf, job):
    (perf.path / "c.ollama.toml").write_text(
        "schema = 1\n[model.tiny]\nrequests = 4\nnum_predict = 4\ntps = '>= 10000000'\n", encoding="utf-8"
    )
    (line,) = annotations(perf.run("c.ollama.toml"))
    assert line.startswith(
        f"::error file={perf.path.name}/c.ollama.toml,line=5,"
        "title=broken%3A c.ollama.toml%3A%3Atiny%3A%3Aconcurrency=1::"
    )


def test_the_summary_is_switched_off_by_an_option(perf, job):
    found = perf.run("--ollama-no-github")
    assert annotations(found) == []
    assert job.read_text(encoding="utf-8") == "what another tool wrote\n"


def test_outside_of_a_job_nothing_is_annotated(perf, job, monkeypatch):
    monkeypatch.delenv("GITHUB_ACTIONS")
    assert annotations(perf.run()) == []


def test_a_summary_that_cannot_be_written_is_said_and_fails_nothing(perf, job, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(perf.path / "none" / "summary.md"))
    found = perf.run("-k", "fine")
    assert found.status == 0
    assert "GITHUB_STEP_SUMMARY: cannot write" in found.out


def test_a_full_summary_is_left_as_it_is(perf, job):
    job.write_text("x" * 899_000, encoding="utf-8")
    found = perf.run("-k", "fine")
    assert "GITHUB_STEP_SUMMARY: the summary is full" in found.out
    assert job.stat().st_size == 899_000


def test_a_session_writes_reports_of_every_type_and_the_command_line_writes_the_same(perf, tmp_path, capsys):
    pytest.importorskip("vl_convert", reason="the extra html is not installed")
    perf.write(SOURCE)
    found = perf.run(*(f"--ollama-report={kind}:out/{kind}" for kind in REPORT_TYPES))
    assert [line for line in found.section if "report: out" in line] == [
        f"{kind} report: out/{kind}" for kind in REPORT_TYPES
    ]
    result = perf.path / "report.json"
    for kind in REPORT_TYPES:
        written = (perf.path / "out" / kind).read_bytes()
        if kind != "json":
            assert main(["export", kind, str(result), "-o", str(tmp_path / kind)]) == 0
            assert (tmp_path / kind).read_bytes() == written
    assert main(["report", str(result), "-o", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_bytes() == (perf.path / "out" / "html").read_bytes()
    capsys.readouterr()


def test_an_export_goes_to_standard_output_unless_told(perf, capfdbinary):
    perf.write(SOURCE)
    perf.run("-k", "fine")
    capfdbinary.readouterr()
    assert main(["export", "bencher", str(perf.path / "report.json")]) == 0
    assert list(json.loads(capfdbinary.readouterr().out)) == ["test_it.py::test_fine"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{}", "no report of this plugin (Object missing required field `schema`)"),
        (b"\xff\xfe", "no report of this plugin"),
        (b'{"schema": 99}', "schema 99 is newer than this version understands (1); upgrade the plugin"),
    ],
)
def test_a_foreign_file_is_refused_in_one_line(tmp_path, capsys, content, why):
    (tmp_path / "result.json").write_bytes(content)
    assert main(["export", "csv", str(tmp_path / "result.json")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert why in said


def test_a_missing_file_is_named(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none.json")]) == 2
    assert "none.json: No such file or directory; give a file of --ollama-report json:PATH" in capsys.readouterr().err
