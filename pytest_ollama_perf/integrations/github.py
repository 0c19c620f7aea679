"""GitHub Actions: the results in the job's summary, and every failure as an annotation at the line of its test.

Only in a job of Actions, and not where ``--ollama-no-github`` says so. Where pytest-github-actions-annotate-failures is
there, the annotations are its own: they hold our explanation, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_perf.core.errors import OllamaPerfError

if TYPE_CHECKING:
    from pytest_ollama_perf.config.settings import GitHubJob
    from pytest_ollama_perf.harness.results import TestResult
    from pytest_ollama_perf.session import Session


_ANNOTATION_PLUGIN = "pytest_github_actions_annotate_failures"

_MAX_ANNOTATIONS = 10
"""Annotations of one kind that GitHub shows of a step."""

_MIN_SUMMARY_BYTES = 2000
"""Bytes in which a summary still says something."""


class GitHubActionsReporter:
    """Tells the job what was found when the session is over."""

    def __init__(self, session: Session, config: pytest.Config, job: GitHubJob) -> None:
        self._session, self._config, self._job = session, config, job
        self._failed: dict[str, tuple[str, int | None]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            path, line, _ = report.location
            self._failed.setdefault(report.nodeid, (self._to_repository_path(path), None if line is None else line + 1))

    def _to_repository_path(self, path: str) -> str:
        """Return a path as GitHub knows it: relative to the repository, with slashes."""
        whole = self._config.rootpath / path
        if self._job.workspace and whole.is_relative_to(self._job.workspace):
            return whole.relative_to(self._job.workspace).as_posix()
        return Path(path).as_posix()

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        results = self._session.build_results()
        if not results:
            return
        if not any(
            self._config.pluginmanager.hasplugin(name)
            for name in (_ANNOTATION_PLUGIN, _ANNOTATION_PLUGIN.replace("_", "-"))
        ):
            for line in self._build_annotations(results):
                terminalreporter.ensure_newline()
                terminalreporter.write_line(line)
        if problem := self._append_job_summary():
            terminalreporter.write_line(problem, yellow=True)

    def _build_annotations(self, results: Sequence[TestResult]) -> list[str]:
        from pytest_ollama_perf.report.markdown import format_annotation

        places = ((result, self._find_location(result.test)) for result in results)
        return [format_annotation(result, *place) for result, place in places if place is not None][:_MAX_ANNOTATIONS]

    def _find_location(self, test: str) -> tuple[str, int | None] | None:
        """Return where a failed test stands; a clause of a contract is a part of its load, a group's name a suffix."""
        for node, place in self._failed.items():
            if node == test or node.startswith((f"{test}::", f"{test}@")):
                return place
        return None

    def _append_job_summary(self) -> str:
        """Append the results to the job's summary; return why that could not be done."""
        if not self._job.summary:
            return ""
        from pytest_ollama_perf.report.markdown import MAX_JOB_SUMMARY_BYTES, format_markdown

        try:
            file = Path(self._job.summary)
            room = MAX_JOB_SUMMARY_BYTES - (file.stat().st_size if file.exists() else 0)
            if room < _MIN_SUMMARY_BYTES:
                return "GITHUB_STEP_SUMMARY: no room is left for the results of Ollama's tests"
            with file.open("ab") as summary:
                summary.write(
                    self._session.build_reports().render_with(lambda document: format_markdown(document, room))
                )
        except OSError as error:
            return f"GITHUB_STEP_SUMMARY: cannot write {self._job.summary}: {error.strerror or error}"
        except OllamaPerfError as error:
            return f"GITHUB_STEP_SUMMARY: {error}"
        return ""
