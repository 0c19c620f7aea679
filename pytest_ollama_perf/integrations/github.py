"""GitHub Actions: the results in the job summary, and every failure as an annotation on the line of its test.

Active in GitHub Actions jobs, except with ``--ollama-no-github``. If pytest-github-actions-annotate-failures is
installed, it writes the annotations; they contain the same explanation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_perf.core import OllamaPerfError
from pytest_ollama_perf.integrations.xdist import TEST_NAME_KEY

if TYPE_CHECKING:
    from pytest_ollama_perf.config import GitHubJob
    from pytest_ollama_perf.harness.evaluation import TestResult
    from pytest_ollama_perf.session import Session


_ANNOTATION_PLUGIN = "pytest_github_actions_annotate_failures"

_MAX_ANNOTATIONS = 10
"""The number of annotations of one kind that GitHub shows per step."""

_MIN_SUMMARY_BYTES = 2000
"""The smallest useful size of a summary, in bytes."""


class GitHubActionsReporter:
    """Writes summary and annotations when the session ends."""

    def __init__(self, session: Session, config: pytest.Config, job: GitHubJob) -> None:
        self._session, self._config, self._job = session, config, job
        self._failed: dict[str, tuple[str, int | None]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember where a failed test is defined."""
        if report.failed:
            path, line, _ = report.location
            test = getattr(report, TEST_NAME_KEY, report.nodeid)
            self._failed.setdefault(test, (self._to_repository_path(path), None if line is None else line + 1))

    def _to_repository_path(self, path: str) -> str:
        """Return a path relative to the repository, with slashes, as GitHub expects it."""
        whole = self._config.rootpath / path
        if self._job.workspace and whole.is_relative_to(self._job.workspace):
            return whole.relative_to(self._job.workspace).as_posix()
        return Path(path).as_posix()

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write annotations and the job summary."""
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

        located = ((result, self._failed.get(result.test)) for result in results)
        return [format_annotation(result, *location) for result, location in located if location is not None][
            :_MAX_ANNOTATIONS
        ]

    def _append_job_summary(self) -> str:
        """Append the results to the job summary; return an error message if that fails."""
        if not self._job.summary:
            return ""
        from pytest_ollama_perf.report.markdown import MAX_JOB_SUMMARY_BYTES, format_markdown

        try:
            file = Path(self._job.summary)
            left = MAX_JOB_SUMMARY_BYTES - (file.stat().st_size if file.exists() else 0)
            if left < _MIN_SUMMARY_BYTES:
                return "GITHUB_STEP_SUMMARY: the summary is full, so the results were not added"
            with file.open("ab") as summary:
                summary.write(
                    self._session.build_reports().render_with(lambda document: format_markdown(document, left))
                )
        except OSError as error:
            return f"GITHUB_STEP_SUMMARY: cannot write {self._job.summary}: {error.strerror or error}"
        except OllamaPerfError as error:
            return f"GITHUB_STEP_SUMMARY: {error}"
        return ""
