"""A load over https whose certificate was not verified is marked in every report."""

import msgspec
import pytest
from run_makers import one_after_another, run_of

from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.core.verdict import ProblemCode
from pytest_ollama_perf.harness.evaluation import ExperimentContext, merge_evaluations
from pytest_ollama_perf.report import SessionReports
from pytest_ollama_perf.report.document import ReportMeta
from pytest_ollama_perf.report.terminal import build_section

TEXT = "the server's certificate was not verified (--ollama-insecure): another host may have answered"


class MeasuredHarness:
    """A harness whose server is at ``url``."""

    def __init__(self, url: str, settings: Settings) -> None:
        self.url, self.settings = url, settings

    def measure(self, *given, **options):
        return run_of(*(msgspec.structs.replace(each, url=self.url) for each in one_after_another(20)))


def fire(url: str, *, insecure: bool):
    harness = MeasuredHarness(url, Settings(insecure=insecure))
    return ExperimentContext(harness, None, None).fire(None, "test_tls")


@pytest.mark.parametrize(
    ("url", "insecure", "noted"),
    [("https://box", True, True), ("https://box", False, False), ("http://box:11434", True, False)],
)
def test_only_a_load_over_unverified_https_is_marked(url, insecure, noted):
    problems = fire(url, insecure=insecure).verdict.problems
    assert [problem.text for problem in problems if problem.code is ProblemCode.INSECURE_TLS] == [TEXT] * noted


@pytest.mark.parametrize("kind", ["json", "markdown"])
def test_the_reports_have_the_mark(kind):
    result = merge_evaluations("test_tls", [fire("https://box", insecure=True)])
    reports = SessionReports([result], ReportMeta(plugin_version="1", started_at=0.0))
    assert "certificate was not verified" in reports.render(kind).decode()
    assert any("certificate was not verified" in line.text for line in build_section([result], verbosity=0))
