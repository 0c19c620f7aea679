"""One session of load tests: its servers, its history, the experiments it runs, their results, and the reports.

Nothing here knows pytest. ``Frontend`` is what the session needs from the program that runs the tests.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.core import OllamaPerfError, ServerUnreachableError
from pytest_ollama_perf.experiments import Experiment, list_other_urls

if TYPE_CHECKING:
    from pytest_ollama_perf.core.lock import ServerLock
    from pytest_ollama_perf.harness import Harness, ProgressListener
    from pytest_ollama_perf.harness.evaluation import Evaluation, TestResult
    from pytest_ollama_perf.harness.history import RunHistory
    from pytest_ollama_perf.report import SessionReports


class Frontend(Protocol):
    """The program that runs the tests: it shows progress and ends a test."""

    def open_listener(self) -> contextlib.AbstractContextManager[ProgressListener]:
        """Return what shows the progress of one experiment, for as long as that runs."""

    def collect_facts(self, url: str, model: str) -> dict[str, str]:
        """Return what other plugins know of a server, for the fingerprint of a run."""

    def announce(self, text: str) -> None:
        """Show a line that is not progress, even where progress is not shown."""

    @property
    def width(self) -> int:
        """Columns of the terminal."""

    def fail(self, message: str, summary: str = "") -> NoReturn:
        """Fail the running test; ``message`` is the whole explanation."""

    def skip(self, reason: str) -> NoReturn:
        """Skip the running test."""


class Session:
    """The state of one session. Everything that is slow to import or to open is opened on first use.

    ``root`` is the folder whose git commit runs record. ``session_id`` names the session that runs belong to, where
    several processes share one; ``running_urls`` has the URL of a simulator that already runs, or an empty text, for
    each server of ``settings``. ``restores_servers`` is false where another process brings the servers back into the
    state in which they were found.
    """

    def __init__(
        self,
        settings: Settings,
        frontend: Frontend,
        *,
        root: Path,
        session_id: str = "",
        running_urls: Sequence[str] = (),
        restores_servers: bool = True,
    ) -> None:
        self.settings = settings
        self.planned: list[Experiment] = []
        """The experiments of the collected tests, each once; set before the first one runs."""
        self.evaluations: dict[str, list[Evaluation]] = defaultdict(list)
        """What each test measured, and its verdicts."""
        self.aborted = ""
        """Why the session was stopped early; empty when it was not."""
        self.written_reports: list[str] = []
        self.report_errors: list[str] = []
        self._frontend = frontend
        self._root, self._session_id, self._running_urls = root, session_id, running_urls
        self._restores_servers = restores_servers
        self._harness: Harness | None = None
        self._history: RunHistory | None = None
        self._unsaved: list[str] = []
        self._started_at = time.time()
        self._lock: ServerLock | None = None

    @property
    def harness(self) -> Harness:
        """The servers and instruments of this session."""
        if self._harness is None:
            from pytest_ollama_perf.harness import Harness

            self._harness = Harness(
                self.settings,
                root=self._root,
                session=self._session_id,
                running=self._running_urls,
                restores=self._restores_servers,
                collect_facts=self._frontend.collect_facts,
            )
        return self._harness

    @property
    def history(self) -> RunHistory:
        """The history of this session's tests."""
        if self._history is None:
            from pytest_ollama_perf.harness.history import RunHistory

            self._history = RunHistory(self.settings, sum(experiment.gating for experiment in self.planned))
        return self._history

    @property
    def url(self) -> str:
        """The URL of the first server under test; a simulator is started here."""
        return self.harness.servers[0].address.url

    @functools.cached_property
    def unreachable_reason(self) -> str:
        """Why no server under test can be reached, as of the first look; empty if one answers."""
        return self.harness.explain_unreachable()

    def skip_if_unreachable(self) -> None:
        """Skip the running test if no server under test answers and the settings ask for it."""
        if self.settings.skips_unreachable and self.unreachable_reason:
            self._frontend.skip(self.unreachable_reason)

    @property
    def unsaved(self) -> list[str]:
        """Why runs are missing in the history."""
        return self._unsaved if self._history is None else self._history.unsaved

    def close(self) -> None:
        """Close connections and the history, and stop simulators."""
        if self._harness is not None:
            self._harness.close()
        if self._history is not None:
            self._history.close()

    # Running experiments.

    def warm_up(
        self,
        models: tuple[str, ...],
        *,
        num_ctx: int | None = None,
        keep_alive: str | float = "1h",
        timeout_s: float | None = None,
    ) -> dict[str, float]:
        """Load models on every server under test; see ``experiments.load.warm_up``."""
        from pytest_ollama_perf.experiments.load import warm_up

        with self._frontend.open_listener() as listener:
            return warm_up(self.harness, models, listener, num_ctx=num_ctx, keep_alive=keep_alive, timeout_s=timeout_s)

    def run(
        self, experiment: Experiment, test: str, *, check: bool = True, stop: threading.Event | None = None
    ) -> Evaluation:
        """Run an experiment and keep its evaluation, also when nothing was measured or when it was stopped.

        The test fails if nothing could be measured. ``stop`` ends the experiment from another thread.
        """
        __tracebackhide__ = True
        try:
            evaluation, error = self._run_experiment(experiment, test, stop)
        except Exception:
            raise
        except BaseException as interruption:
            # Ctrl-C or a timeout: where it hit the load is of no use to the user.
            raise interruption.with_traceback(None) from None
        if error is None:
            self.record(test, evaluation if check else evaluation.to_unjudged())
            return evaluation
        if self.settings.skips_unreachable and isinstance(error, ServerUnreachableError) and not evaluation.loads:
            self._frontend.skip(str(error))
        self.record(test, evaluation)
        self._frontend.fail(evaluation.verdict.reason)

    def measure(self, experiment: Experiment, test: str) -> Evaluation:
        """Run an experiment that several tests share. Nothing is recorded and no test fails."""
        return self._run_experiment(experiment, test)[0]

    def _run_experiment(
        self, experiment: Experiment, test: str, stop: threading.Event | None = None
    ) -> tuple[Evaluation, OllamaPerfError | None]:
        """Return the evaluation, and the error that ended the experiment early; the loads before it are kept."""
        # The report modules are imported before the load: there is no time for it after Ctrl-C.
        from pytest_ollama_perf.harness.evaluation import ExperimentContext, StoppableListener, build_unmeasured
        from pytest_ollama_perf.report import document, terminal  # noqa: F401

        context = None
        try:
            with self._frontend.open_listener() as shown:
                listener = shown if stop is None else StoppableListener(shown, stop)
                with self._lock_servers(experiment, test, listener, stop):
                    context = ExperimentContext(self.harness, self.history, listener)
                    return experiment.run(context, test), None
        except OllamaPerfError as error:
            reason = str(error)
            return build_unmeasured(reason) if context is None else context.build_failed_evaluation(reason), error
        except BaseException:
            if context is not None and (partial := context.build_partial_evaluation()) is not None:
                self.record(test, partial)
            raise

    def _lock_servers(
        self, experiment: Experiment, test: str, listener: ProgressListener, stop: threading.Event | None
    ) -> contextlib.AbstractContextManager[None]:
        """Wait until no other process runs a load on the experiment's servers, and keep others from starting one."""
        harness = self.harness
        servers = (*harness.servers, *map(harness.open_server, list_other_urls(experiment)))
        message = ["waiting for another load"]

        def announce(text: str) -> None:
            message[:] = [text]
            self._frontend.announce(text)

        def sleep(seconds: float) -> None:
            listener.show_message(message[0])  # raises when the test was cancelled
            (time.sleep if stop is None else stop.wait)(seconds)

        from pytest_ollama_perf.core.lock import ServerLock, Waiting

        self._lock = self._lock or ServerLock(self._session_id)
        waiting = Waiting(sleep, announce, self.settings.wait_s)
        return self._lock.hold((server.address.url for server in servers), test, waiting)

    # Results.

    def record(self, test: str, evaluation: Evaluation) -> None:
        """Add an evaluation to those of the test."""
        self.evaluations[test].append(evaluation)

    def replace(self, test: str, evaluations: Iterable[Evaluation]) -> None:
        """Keep ``evaluations`` instead of what was kept of the test."""
        self.evaluations[test] = list(evaluations)

    def raise_if_failed(self, test: str, evaluation: Evaluation) -> None:
        """Fail the running test if the verdict fails it, or skip it if that is set for invalid measurements."""
        if self.settings.skips_invalid and evaluation.is_invalid_measurement:
            self._frontend.skip(f"invalid: {evaluation.verdict.reason}")
        if evaluation.is_failing(self.settings):
            from pytest_ollama_perf.harness.evaluation import merge_evaluations
            from pytest_ollama_perf.report.terminal import format_failure

            text = format_failure(merge_evaluations(test, [evaluation]), width=self._frontend.width)
            self._frontend.fail(text, evaluation.verdict.reason)

    def build_result(self, test: str) -> TestResult | None:
        """Return the result of one test so far; ``None`` if it measured nothing."""
        if not (evaluations := self.evaluations.get(test)):
            return None
        from pytest_ollama_perf.harness.evaluation import merge_evaluations

        return merge_evaluations(test, evaluations)

    def build_results(self) -> list[TestResult]:
        """Return one result per test, in the order in which they ran."""
        return [result for test in self.evaluations if (result := self.build_result(test))]

    # Reports.

    def build_reports(self) -> SessionReports:
        """Return the reports of what has been measured so far."""
        from pytest_ollama_perf.report import SessionReports
        from pytest_ollama_perf.report.document import ReportMeta

        meta = ReportMeta(
            plugin_version=version("pytest-ollama-perf"), started_at=self._started_at, aborted=self.aborted
        )
        return SessionReports(self.build_results(), meta)

    def write_reports(self) -> None:
        """Write every report that was asked for; ``report_errors`` names those that could not be written."""
        if not self.settings.reports:
            return
        from pytest_ollama_perf.report.document import write_report

        reports = self.build_reports()
        for report in self.settings.reports:
            try:
                write_report(report.path, reports.render(report.type))
                self.written_reports.append(f"{report.type} report: {report.path}")
            except OllamaPerfError as error:
                self.report_errors.append(str(error))
            except Exception as error:
                self.report_errors.append(f"{report.type} report: {type(error).__name__}: {error}")

    def format_header(self) -> str:
        """Return the line that names servers, version and models, as far as they can be found out before a load."""
        from pytest_ollama_perf.report.terminal import format_header

        models = {model for experiment in self.planned for model in experiment.models}
        return format_header(*self.harness.describe_servers(models))

    def format_header_from_results(self) -> str:
        """Return the same line from what was measured."""
        from pytest_ollama_perf.report.terminal import format_header

        runs = [load.run for result in self.build_results() for load in result.loads]
        versions = ", ".join(sorted({run.fingerprint.server_version for run in runs}))
        return format_header(versions, self.settings.urls, sorted({run.workload.model for run in runs}))
