"""The last room of the house: what pytest's hooks hand over to. Loads, verdicts, texts come from the stages before."""

from __future__ import annotations

import contextlib
import io
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_perf.config.settings import Settings
from pytest_ollama_perf.core.errors import ConfigError, OllamaPerfError
from pytest_ollama_perf.core.lock import ServerLock
from pytest_ollama_perf.experiments import EXPERIMENT_MODULES, list_other_urls, load_reader
from pytest_ollama_perf.integrations import xdist
from pytest_ollama_perf.integrations.freezegun import use_real_time

if TYPE_CHECKING:
    from _pytest.nodes import Node

    from pytest_ollama_perf.contracts.clauses import SharedLoad
    from pytest_ollama_perf.experiments import Experiment
    from pytest_ollama_perf.fixtures import MarkedExperiment, Ollama
    from pytest_ollama_perf.harness.evaluation import Evaluation
    from pytest_ollama_perf.harness.harness import Harness, ProgressListener
    from pytest_ollama_perf.harness.history import RunHistory
    from pytest_ollama_perf.harness.results import TestResult
    from pytest_ollama_perf.report.formats import SessionReports


def collect_marker_options(item: pytest.Item, marker: str, known: tuple[str, ...]) -> dict[str, Any]:
    """Return the words that count for ``item``: nearer markers win word by word.

    From near to far: marks of the parameter set, parameters named like a word, the function's own markers, its class,
    the classes that one comes from, its module.
    """
    from pytest_ollama_perf.config.load_options import merge_options

    callspec = getattr(item, "callspec", None)
    near = [mark for mark in getattr(callspec, "marks", ()) if mark.name == marker]
    parameters = {name: value for name, value in getattr(callspec, "params", {}).items() if name in known}
    far = [mark for node in reversed(item.listchain()) for mark in list_own_marks(node, marker) if mark not in near]
    if any(mark.args for mark in (*near, *far)):
        raise ConfigError(f"the marker takes words only, for example @pytest.mark.{marker}(model='llama3.2:3b')")
    return merge_options([*(mark.kwargs for mark in near), parameters, *(mark.kwargs for mark in far)])


def list_own_marks(node: Node, marker: str) -> list[pytest.Mark]:
    """Return the markers that stand at ``node`` itself, the nearest first.

    pytest lists those of a class behind those of the classes it comes from.
    """
    marks = [mark for mark in node.own_markers if mark.name == marker]
    if not isinstance(node, pytest.Class):
        return marks
    written = [cls.__dict__.get("pytestmark", []) for cls in node.obj.__mro__]
    order = [id(getattr(mark, "mark", mark)) for own in written for mark in (own if isinstance(own, list) else [own])]
    return sorted(marks, key=lambda mark: order.index(id(mark)) if id(mark) in order else -1)


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """While a test runs, let SIGTERM end the session as Ctrl-C does: streams closed, what was measured reported."""

    def end(number: int, frame: FrameType | None) -> None:
        raise pytest.exit.Exception("terminated (SIGTERM)")

    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


SERVER_FIXTURES = frozenset({"ollama", "ollama_url"})
"""Fixtures that may ask for a server without a marker."""


LISTING_OPTIONS = ("collectonly", "setuponly", "setupplan", "showfixtures", "show_fixtures_per_test")
"""Options of pytest under which no test runs."""


class VerdictError(pytest.fail.Exception):  # type: ignore[misc, name-defined]
    """A verdict failed the test; the message is the whole explanation."""

    # As pytest does for its own outcomes: reports name the class without the place it is defined in.
    __module__ = "builtins"


class Session:
    """One object for one pytest session: the settings, the servers, the loads of each test and their verdicts."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self.config = config
        self.settings = settings
        self._evaluations: dict[str, list[Evaluation]] = defaultdict(list)
        self._marked: dict[str, MarkedExperiment] = {}
        self._clauses: dict[str, SharedLoad] = {}
        self._harness: Harness | None = None
        self._history: RunHistory | None = None
        self._started_at = time.time()
        self._aborted = ""
        self._config_errors: list[str] = []
        self._written_reports: list[str] = []
        self._report_errors: list[str] = []
        self._unsaved: list[str] = []
        self._turn = ServerLock()

    # What fixtures and results ask for.

    def harness(self) -> Harness:
        """The servers and instruments of this session, opened on first use."""
        if self._harness is None:
            from pytest_ollama_perf.harness.harness import Harness

            running, session = xdist.get_simulator_urls(self.config), xdist.get_session_id(self.config)
            self._harness = Harness(
                self.settings,
                root=self.config.rootpath,
                session=session,
                running=running,
                restores=not xdist.is_worker(self.config),
            )
        return self._harness

    def history(self) -> RunHistory:
        """The history of this build's tests, opened on first use."""
        if self._history is None:
            from pytest_ollama_perf.harness.history import RunHistory

            self._history = RunHistory(self.settings, sum(experiment.gating for experiment in self._list_experiments()))
        return self._history

    def url(self) -> str:
        return self.harness().servers[0].address.url

    def _list_experiments(self) -> list[Experiment]:
        """What the collected tests ask for, a load that several clauses share once."""
        shared = {id(one): one.group for one in self._clauses.values()}
        return [*(marked.experiment for marked in self._marked.values()), *shared.values()]

    def simulator_urls(self) -> tuple[str, ...]:
        """The URLs of the simulators under test, nothing for other servers."""
        return self.harness().simulator_urls

    @property
    def evaluations(self) -> dict[str, list[Evaluation]]:
        """What each test measured and how that was judged."""
        return self._evaluations

    @property
    def unsaved(self) -> list[str]:
        """Why runs are missing in the history."""
        return self._unsaved if self._history is None else self._history.unsaved

    def build_integrations(self) -> Iterator[object]:
        """Yield the plugins through which this session gets along with other plugins."""
        if xdist.is_worker(self.config):
            yield xdist.XdistWorker(self)
            return
        if self.settings.benchmark:
            from pytest_ollama_perf.integrations.benchmark import BenchmarkBridge

            yield BenchmarkBridge(self, self.config)
        if self.settings.github:
            from pytest_ollama_perf.integrations.github import GitHubActionsReporter

            yield GitHubActionsReporter(self, self.config, self.settings.github)
        if xdist.is_controller(self.config):  # behind the bridge, so that it is asked first at the end
            yield xdist.XdistController(self)

    def get_test_name(self, item: pytest.Item) -> str:
        """Return what ``item`` is called in reports and in the history: its node id, whoever runs it.

        pytest-xdist puts the name of the item's group behind that where groups count (``--dist loadgroup``).
        """
        if shared := self._clauses.get(item.nodeid):
            return shared.test
        plain = f"{item.parent.nodeid}::{item.name}" if item.parent else item.nodeid
        return plain if item.nodeid.startswith(f"{plain}@") else item.nodeid

    def get_marked_experiment(self, item: pytest.Item) -> MarkedExperiment:
        return self._marked[item.nodeid]

    def ollama(self, item: pytest.Item) -> Ollama:
        from pytest_ollama_perf.fixtures import Ollama

        return Ollama(self, self.get_test_name(item))

    def warm_up(
        self,
        models: tuple[str, ...],
        *,
        num_ctx: int | None = None,
        keep_alive: str | float = "1h",
        timeout_s: float | None = None,
    ) -> dict[str, float]:
        """Load models on every server under test; see ``experiment.warm``."""
        from pytest_ollama_perf.experiments.load import warm_up

        with self._open_listener(None) as onlooker:
            return warm_up(
                self.harness(), models, onlooker, num_ctx=num_ctx, keep_alive=keep_alive, timeout_s=timeout_s
            )

    def run(
        self, experiment: Experiment, test: str, *, check: bool = True, stop: threading.Event | None = None
    ) -> Evaluation:
        """Conduct an experiment and keep its trial for the reports, also when it could not be measured or was stopped.

        Raises:
            VerdictError: nothing could be measured; the message says why.
        """
        from pytest_ollama_perf.harness.evaluation import build_unmeasured

        try:
            trial = self._run_experiment(experiment, test, stop)
        except OllamaPerfError as error:
            self.record(test, build_unmeasured(str(error)))
            raise VerdictError(str(error), pytrace=False) from None
        self.record(test, trial if check else trial.to_unjudged())
        return trial

    def measure(self, experiment: Experiment, test: str) -> Evaluation:
        """Conduct an experiment for several tests, which are kept and failed one by one."""
        from pytest_ollama_perf.harness.evaluation import build_unmeasured

        try:
            return self._run_experiment(experiment, test)
        except OllamaPerfError as error:
            return build_unmeasured(str(error))

    def _run_experiment(self, experiment: Experiment, test: str, stop: threading.Event | None = None) -> Evaluation:
        # What says what was measured is there before the load: after Ctrl-C there is no time to import it.
        from pytest_ollama_perf.harness.evaluation import ExperimentContext
        from pytest_ollama_perf.report import document, terminal  # noqa: F401

        lab = None
        try:
            with self._open_listener(stop) as onlooker:
                with self._lock_servers(experiment, test, onlooker, stop), use_real_time():
                    lab = ExperimentContext(self.harness(), self.history(), onlooker)
                    return experiment.run(lab, test)
        except OllamaPerfError:
            raise
        except BaseException:
            if lab is not None and (part := lab.build_partial_evaluation()) is not None:
                self.record(test, part)
            raise

    def _lock_servers(
        self, experiment: Experiment, test: str, onlooker: ProgressListener, stop: threading.Event | None
    ) -> contextlib.AbstractContextManager[None]:
        """Wait until nobody else fires a load at the servers of the experiment, and keep others out."""
        bench = self.harness()
        servers = (*bench.servers, *map(bench.open_server, list_other_urls(experiment)))
        # An onlooker through which the load can be stopped raises when it is spoken to.
        wait = time.sleep if stop is None else stop.wait
        return self._turn.hold((server.address.url for server in servers), test, wait=wait, say=onlooker.show_message)

    def replace(self, test: str, trials: Iterable[Evaluation]) -> None:
        """Remember ``trials`` in place of what was kept of the test."""
        self._evaluations[test] = list(trials)

    def record(self, test: str, trial: Evaluation) -> None:
        """Remember what a test measured and how it was judged."""
        self._evaluations[test].append(trial)

    def raise_if_failed(self, test: str, trial: Evaluation) -> None:
        """Fail the running test where the trial's verdict says so."""
        if trial.is_failing(self.settings):
            raise VerdictError(self._format_failure(test, trial), pytrace=False)

    def _format_failure(self, test: str, trial: Evaluation) -> str:
        from pytest_ollama_perf.harness.evaluation import merge_evaluations
        from pytest_ollama_perf.report.terminal import format_failure

        return format_failure(merge_evaluations(test, [trial]))

    @contextlib.contextmanager
    def _open_listener(self, stop: threading.Event | None) -> Iterator[ProgressListener]:
        from pytest_ollama_perf.harness.evaluation import StoppableListener
        from pytest_ollama_perf.report.progress import LiveProgress

        plugins = self.config.pluginmanager
        capture, reporter = plugins.getplugin("capturemanager"), plugins.getplugin("terminalreporter")
        suspended = capture.global_and_fixture_disabled() if capture else contextlib.nullcontext()
        file = reporter._tw._file if reporter else io.StringIO()
        with suspended, LiveProgress(file, verbosity=self._verbosity) as progress:
            yield progress if stop is None else StoppableListener(progress, stop)

    # Collection: every marker is read before the first test.

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self._config_errors = [
            f"{item.nodeid}: {error}" for item in items if (error := get_config_error(self._read_item, item))
        ]
        if (
            not self._config_errors
            and self._has_load_tests(items)
            and (error := get_config_error(self.harness) or get_config_error(self.history))
        ):
            self._config_errors = [error]
        if self._config_errors and xdist.is_worker(self.config):
            items.clear()
            xdist.report_usage_error(self.config, "\n       ".join(self._config_errors))
        elif self._config_errors:
            raise pytest.UsageError("\n       ".join(self._config_errors))

    @property
    def _verbosity(self) -> int:
        """How much pytest is to say; little where it has no terminal reporter."""
        return int(self.config.getoption("verbose", default=-1))

    @property
    def _is_listing_only(self) -> bool:
        """Whether pytest was asked to show tests or fixtures, not to run them."""
        return any(self.config.getoption(name, default=False) for name in LISTING_OPTIONS)

    def _has_load_tests(self, items: list[pytest.Item]) -> bool:
        """Whether any of ``items`` may ask for a server."""
        return any(
            item.nodeid in self._marked
            or item.nodeid in self._clauses
            or not SERVER_FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))
            for item in items
        )

    def _read_item(self, item: pytest.Item) -> None:
        if shared := getattr(item, "ollama_shared", None):
            self._clauses[item.nodeid] = shared
            return
        markers = list(dict.fromkeys(mark.name for mark in item.iter_markers() if mark.name in EXPERIMENT_MODULES))
        lonely = [
            name for name in EXPERIMENT_MODULES if name in getattr(item, "fixturenames", ()) and name not in markers
        ]
        if lonely:
            raise ConfigError(f"uses the fixture {lonely[0]} without the marker; add @pytest.mark.{lonely[0]}(...)")
        if len(markers) > 1:
            raise ConfigError(f"has the markers {' and '.join(markers)}: one test, one of them")
        for marker in markers:
            from pytest_ollama_perf.fixtures import MarkedExperiment

            read, known = load_reader(marker)
            experiment = read(collect_marker_options(item, marker, known), self.settings)
            self._marked[item.nodeid] = MarkedExperiment(self, self.get_test_name(item), experiment)

    def pytest_report_collectionfinish(self, items: list[pytest.Item]) -> list[str]:
        if self._config_errors or not self._has_load_tests(items):
            return []
        if self._is_listing_only or self._verbosity < 0:
            return []
        from pytest_ollama_perf.report.terminal import format_header

        models = {model for experiment in self._list_experiments() for model in experiment.models}
        return [format_header(*self.harness().describe_servers(models))]

    # The test itself.

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """A test that is run again, by whatever plugin, measures again."""
        self._evaluations.pop(self.get_test_name(item), None)
        if marked := self._marked.get(item.nodeid):
            marked.reset()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        marked = self._marked.get(item.nodeid)
        with exit_on_sigterm():
            trial = marked.measure() if marked else None
            try:
                outcome = yield
            except Exception as error:
                if trial is None or not trial.is_failing(self.settings):
                    raise
                # Numbers that break a contract say more than the assertion that stumbled over them.
                own = item.repr_failure(pytest.ExceptionInfo.from_exception(error))
                item.add_report_section("call", "the test's own failure", str(own))
                outcome = None
        if trial:
            self.raise_if_failed(self.get_test_name(item), trial)
        return outcome

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        trials = self._evaluations.get(self.get_test_name(item))
        if trials and not self.settings.no_properties:
            from pytest_ollama_perf.harness.evaluation import merge_evaluations
            from pytest_ollama_perf.report.properties import replace_properties

            item.user_properties = replace_properties(
                item.user_properties, merge_evaluations(self.get_test_name(item), trials)
            )
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        """Where others run the tests, this process only waits: a SIGTERM must not lose what they have shipped."""
        with exit_on_sigterm() if xdist.is_controller(self.config) else contextlib.nullcontext():
            return (yield)

    # Afterwards.

    def build_results(self) -> list[TestResult]:
        """One result a test, in the order they ran."""
        if not self._evaluations:
            return []
        from pytest_ollama_perf.harness.evaluation import merge_evaluations

        return [merge_evaluations(test, trials) for test, trials in self._evaluations.items()]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the reports, also after Ctrl-C. A history or a report that could not be written fails the build."""
        if xdist.is_worker(self.config):
            return
        if self.settings.reports and not self._is_listing_only and session.exitstatus != pytest.ExitCode.USAGE_ERROR:
            self._write_reports()
        lost = self._report_errors or self.unsaved
        if lost and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def build_reports(self) -> SessionReports:
        """The reports of what has been measured so far."""
        from importlib.metadata import version

        from pytest_ollama_perf.report.document import ReportMeta
        from pytest_ollama_perf.report.formats import SessionReports

        meta = ReportMeta(
            plugin_version=version("pytest-ollama-perf"), started_at=self._started_at, aborted=self._aborted
        )
        return SessionReports(self.build_results(), meta)

    def _write_reports(self) -> None:
        from pytest_ollama_perf.report.document import write_report

        reports = self.build_reports()
        for report in self.settings.reports:
            try:
                write_report(report.path, reports.render(report.type))
                self._written_reports.append(f"{report.type} report: {report.path}")
            except OllamaPerfError as error:
                self._report_errors.append(str(error))

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        self._aborted = str(excinfo.value) or "interrupted (Ctrl-C)"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._evaluations and not self._report_errors:
            return
        from pytest_ollama_perf.report.terminal import build_section

        if self._verbosity >= 0:
            terminalreporter.write_sep("=", "ollama")
            if xdist.is_controller(self.config):  # it collects nothing, and so had no header to print
                terminalreporter.write_line(self._format_header())
        for line in build_section(self.build_results(), verbosity=self._verbosity):
            terminalreporter.write_line(line.text, **line.style.markup)
        for written in self._written_reports if self._verbosity >= 0 else ():
            terminalreporter.write_line(written)
        unsaved = self.unsaved if self._verbosity < 0 else ()  # otherwise each block says it
        for lost in (*self._report_errors, *unsaved):
            terminalreporter.write_line(lost, red=True, bold=True)

    def _format_header(self) -> str:
        from pytest_ollama_perf.report.terminal import format_header

        runs = [load.run for result in self.build_results() for load in result.loads]
        versions = ", ".join(sorted({run.fingerprint.server_version for run in runs}))
        return format_header(versions, self.settings.urls, sorted({run.workload.model for run in runs}))

    def pytest_unconfigure(self) -> None:
        if self._harness is not None:
            self._harness.close()
        if self._history is not None:
            self._history.close()


def get_config_error(read: Callable[..., object], *arguments: object) -> str:
    """Say why ``read`` refuses what a person wrote; nothing where it does not."""
    try:
        read(*arguments)
    except ConfigError as error:
        return str(error)
    return ""
