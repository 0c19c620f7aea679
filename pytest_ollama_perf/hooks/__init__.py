"""The pytest side of a session: collection, the hooks around each test, signals, and the hooks offered to others."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.core import ConfigError, MissingExtraError
from pytest_ollama_perf.experiments import EXPERIMENT_MODULES, load_reader
from pytest_ollama_perf.hooks.frontend import PytestFrontend, SignalHandler, VerdictError
from pytest_ollama_perf.integrations import xdist
from pytest_ollama_perf.session import Session

if TYPE_CHECKING:
    from pytest_ollama_perf.contracts.clauses import SharedLoad
    from pytest_ollama_perf.experiments import Experiment
    from pytest_ollama_perf.fixtures import MarkedExperiment, Ollama
    from pytest_ollama_perf.harness.evaluation import Evaluation


UMBRELLA_MARKER = "ollama"
"""The marker that every item which may use a server under test gets when it is collected."""

SERVER_FIXTURES = frozenset({"ollama", "ollama_perf", "ollama_url", "ollama_warm_up"})
"""Fixtures that may use a server without a marker."""


def get_test_name(item: pytest.Item) -> str:
    """Return the name of ``item`` in reports and in the history: its node id, whichever process runs it.

    pytest-xdist appends the name of the item's group to the node id with ``--dist loadgroup``.
    """
    if shared := get_shared_load(item):
        return shared.test
    plain = f"{item.parent.nodeid}::{item.name}" if item.parent else item.nodeid
    return plain if item.nodeid.startswith(f"{plain}@") else item.nodeid


def get_shared_load(item: pytest.Item) -> SharedLoad | None:
    """Return the load of a contract that ``item`` is a clause of."""
    return getattr(item, "ollama_shared", None)


def uses_server(item: pytest.Item) -> bool:
    """Whether ``item`` may use a server under test."""
    return (
        get_shared_load(item) is not None
        or not SERVER_FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))
        or any(item.get_closest_marker(name) for name in EXPERIMENT_MODULES)
    )


def read_experiment(item: pytest.Item, settings: Settings) -> Experiment | None:
    """Return the experiment that the item's marker describes; ``None`` without one.

    Raises:
        ConfigError: the marker or its arguments are wrong.
    """
    markers = list(dict.fromkeys(mark.name for mark in item.iter_markers() if mark.name in EXPERIMENT_MODULES))
    unmarked = [
        name for name in EXPERIMENT_MODULES if name in getattr(item, "fixturenames", ()) and name not in markers
    ]
    if unmarked:
        raise ConfigError(f"uses the fixture {unmarked[0]} without the marker; add @pytest.mark.{unmarked[0]}(...)")
    if len(markers) > 1:
        raise ConfigError(f"has the markers {' and '.join(markers)}: a test takes one of them")
    if not markers:
        return None
    parse_options, known = load_reader(markers[0])
    return parse_options(collect_marker_options(item, markers[0], known), settings)


def collect_marker_options(item: pytest.Item, marker: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    """Return the marker arguments of ``item``: inner markers override outer ones per argument.

    From inner to outer: marks of the parameter set, parameters named like an argument, markers of the function, of its
    class, of the classes that one inherits from, of its module.
    """
    from pytest_ollama_perf.config.load_spec import merge_options

    callspec = getattr(item, "callspec", None)
    inner = [mark for mark in getattr(callspec, "marks", ()) if mark.name == marker]
    parameters = {name: value for name, value in getattr(callspec, "params", {}).items() if name in known}
    outer = [mark for node in reversed(item.listchain()) for mark in list_own_marks(node, marker) if mark not in inner]
    if any(mark.args for mark in (*inner, *outer)):
        raise ConfigError(
            f"the marker takes keyword arguments only, for example @pytest.mark.{marker}(model='llama3.2:3b')"
        )
    return merge_options([*(mark.kwargs for mark in inner), parameters, *(mark.kwargs for mark in outer)])


def list_own_marks(node: Any, marker: str) -> list[pytest.Mark]:
    """Return the markers of ``node`` itself, the innermost first.

    pytest lists those of a class after those of the classes it inherits from.
    """
    marks = [mark for mark in node.own_markers if mark.name == marker]
    if not isinstance(node, pytest.Class):
        return marks
    written = [cls.__dict__.get("pytestmark", []) for cls in node.obj.__mro__]
    order = [id(getattr(mark, "mark", mark)) for own in written for mark in (own if isinstance(own, list) else [own])]
    return sorted(marks, key=lambda mark: order.index(id(mark)) if id(mark) in order else -1)


def get_config_error(read: Callable[..., object], *arguments: object) -> str:
    """Return why ``read`` rejects the user's input; an empty text if it does not."""
    try:
        read(*arguments)
    except (ConfigError, MissingExtraError) as error:
        return str(error)
    except (ArithmeticError, TypeError, ValueError) as error:  # one wrong marker must not hide the others
        return f"{type(error).__name__}: {error}"
    return ""


_LISTING_OPTIONS = ("collectonly", "setuponly", "setupplan", "showfixtures", "show_fixtures_per_test")
"""Options of pytest with which no test runs."""

_EXPLAINED_TEST = "ollama_explained_test"
"""The attribute of a test report that names the test whose verdict it explains."""


class Hooks:
    """The hooks of one pytest session."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self.config, self.settings = config, settings
        self._frontend = PytestFrontend(config)
        self.session = Session(
            settings,
            self._frontend,
            root=config.rootpath,
            session_id=xdist.get_session_id(config),
            running_urls=xdist.get_simulator_urls(config),
            restores_servers=not xdist.is_worker(config),
        )
        self._marked: dict[str, MarkedExperiment] = {}
        self._config_errors: list[str] = []
        self._uses_server = False
        self._explained: set[str] = set()
        self._signals = SignalHandler(handles_interrupt=xdist.is_worker(config))

    def build_integrations(self) -> Iterator[object]:
        """Yield the plugins that connect this session to other plugins."""
        if xdist.is_worker(self.config):
            yield xdist.XdistWorker(self.session, get_test_name)
            return
        if self.settings.benchmark:
            from pytest_ollama_perf.integrations.benchmark import BenchmarkBridge

            yield BenchmarkBridge(self.session, self.config)
        if self.settings.github:
            from pytest_ollama_perf.integrations.github import GitHubActionsReporter

            yield GitHubActionsReporter(self.session, self.config, self.settings.github)
        if xdist.is_controller(self.config):  # registered after the bridge, so that it is called first at the end
            yield xdist.XdistController(self.session)

    # What fixtures return.

    def get_marked_experiment(self, item: pytest.Item) -> MarkedExperiment:
        """Return the experiment that the item's marker describes."""
        return self._marked[item.nodeid]

    def build_ollama(self, item: pytest.Item) -> Ollama:
        """Return what the fixture ``ollama`` gives to ``item``."""
        self.skip_if_asked()
        from pytest_ollama_perf.fixtures import Ollama

        return Ollama(self.session, get_test_name(item))

    def skip_if_asked(self) -> None:
        """Skip the running test if it must not use a server."""
        if self.settings.skip:
            pytest.skip("--ollama-skip")
        self.session.skip_if_unreachable()

    # Collection: every marker is read before the first test.

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Mark every test that uses the server with the umbrella marker."""
        if uses_server(item):
            item.add_marker(UMBRELLA_MARKER)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Read the markers of the selected tests, and apply skips."""
        self._select(items)
        if self.settings.skip:
            return
        self._config_errors = [
            f"{item.nodeid}: {error}" for item in items if (error := get_config_error(self._read_item, item))
        ]
        self._uses_server = any(map(uses_server, items))
        self._plan(items)
        if not self._config_errors and self._uses_server:
            self._config_errors = list(filter(None, [get_config_error(self._open_session)]))
        if self._config_errors and xdist.is_worker(self.config):
            items.clear()
            xdist.report_usage_error(self.config, "\n       ".join(self._config_errors))
        elif self._config_errors:
            raise pytest.UsageError("\n       ".join(self._config_errors))

    def _select(self, items: list[pytest.Item]) -> None:
        """Mark tests as skipped, or deselect them, as ``--ollama-skip`` and ``--ollama-only`` say."""
        if self.settings.skip:
            for item in filter(uses_server, items):
                item.add_marker(pytest.mark.skip(reason="--ollama-skip"))
        if self.settings.only:
            others = [item for item in items if not uses_server(item)]
            self.config.hook.pytest_deselected(items=others)
            items[:] = [item for item in items if uses_server(item)]

    def _read_item(self, item: pytest.Item) -> None:
        if (experiment := read_experiment(item, self.settings)) is not None:
            from pytest_ollama_perf.fixtures import MarkedExperiment

            self._marked[item.nodeid] = MarkedExperiment(self.session, get_test_name(item), experiment)

    def _plan(self, items: Sequence[pytest.Item]) -> None:
        """Give the session the experiments of ``items``; clauses that share a load count once."""
        shared = {id(load): load.group for item in items if (load := get_shared_load(item))}
        self.session.planned = [*(marked.experiment for marked in self._marked.values()), *shared.values()]

    def _open_session(self) -> None:
        """Open what may reject the settings."""
        _ = self.session.harness, self.session.history

    @property
    def _is_listing_only(self) -> bool:
        """Whether pytest was asked to list tests or fixtures, not to run them."""
        return any(self.config.getoption(name, default=False) for name in _LISTING_OPTIONS)

    def pytest_report_collectionfinish(self) -> list[str]:
        """Show the servers under test below the header."""
        if self._config_errors or not self._uses_server:
            return []
        if self._is_listing_only or self._frontend.verbosity < 0:
            return []
        return [self.session.format_header()]

    # One test.

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Measure again when a test runs again, whichever plugin repeats it."""
        if item.get_closest_marker(UMBRELLA_MARKER):
            self.skip_if_asked()
        self.session.evaluations.pop(get_test_name(item), None)
        if marked := self._marked.get(item.nodeid):
            marked.reset()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Measure before the body of a marked test, and check the result after it."""
        marked = self._marked.get(item.nodeid)
        evaluation = _measure(marked) if marked else None
        try:
            outcome = yield
        except Exception as error:
            if evaluation is None or not evaluation.is_failing(self.settings):
                raise
            # A broken limit explains more than the assertion that failed because of it.
            own = item.repr_failure(pytest.ExceptionInfo.from_exception(error))
            item.add_report_section("call", "the test's own failure", str(own))
            outcome = None
        if evaluation:
            self.session.raise_if_failed(get_test_name(item), evaluation)
        return outcome

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Add the results of the test to its report, and shorten its line in the short summary."""
        if not self.settings.no_properties and (result := self.session.build_result(get_test_name(item))):
            from pytest_ollama_perf.report.facts import replace_properties

            item.user_properties = replace_properties(item.user_properties, result)
        report = yield
        if report.failed:
            setattr(report, xdist.TEST_NAME_KEY, get_test_name(item))
        if call.excinfo is not None and isinstance(call.excinfo.value, VerdictError) and call.excinfo.value.summary:
            _shorten_summary(report, call.excinfo.value.summary)
            setattr(report, _EXPLAINED_TEST, get_test_name(item))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note which verdicts the section FAILURES explains; the reports of workers have the note as well."""
        if report.failed and self.config.getoption("tbstyle", default="auto") != "no":
            self._explained.add(getattr(report, _EXPLAINED_TEST, ""))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        """Handle signals while tests run. A controller does not know whether its workers run loads."""
        if self._uses_server or xdist.is_controller(self.config):
            self._signals.install()
        try:
            return (yield)
        finally:
            self._signals.ignore()

    # The end of the session.

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the reports, also after Ctrl-C. A history or a report that cannot be written fails the session."""
        if xdist.is_worker(self.config):
            return
        if not self._is_listing_only and session.exitstatus != pytest.ExitCode.USAGE_ERROR:
            self.session.write_reports()
        self._report_verdicts()
        lost = self.session.report_errors or self.session.unsaved
        if lost and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _report_verdicts(self) -> None:
        """Call ``pytest_ollama_verdict`` for each test; an error in it does not stop the others."""
        for result in self.session.build_results():
            try:
                self.config.hook.pytest_ollama_verdict(config=self.config, result=result)
            except Exception as error:
                self.session.report_errors.append(f"pytest_ollama_verdict: {type(error).__name__}: {error}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Record why the session ended early."""
        self.session.aborted = str(excinfo.value) or "interrupted (Ctrl-C)"
        if self._uses_server or xdist.is_controller(self.config):
            # pytest formats every frame before the session ends, which takes longer than a signal's sender may wait.
            excinfo.traceback = excinfo.traceback.filter(excinfo)[-1:]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write the terminal section."""
        session, verbosity = self.session, self._frontend.verbosity
        if not session.evaluations and not session.report_errors:
            return
        from pytest_ollama_perf.report.terminal import build_section

        if verbosity >= 0:
            terminalreporter.write_sep("=", "ollama")
            if xdist.is_controller(self.config):  # it collects nothing, and so printed no header
                terminalreporter.write_line(session.format_header_from_results())
        lines = build_section(
            session.build_results(),
            verbosity=verbosity,
            width=self._frontend.width,
            explained=self._explained,
            rerun=self._frontend.format_rerun_command(),
        )
        for line in lines:
            terminalreporter.write_line(line.text, **line.style.markup)
        for written in session.written_reports if verbosity >= 0 else ():
            terminalreporter.write_line(written)
        unsaved = session.unsaved if verbosity < 0 else ()  # otherwise the block of each test says it
        for lost in (*session.report_errors, *unsaved):
            terminalreporter.write_line(lost, red=True, bold=True)

    def pytest_unconfigure(self) -> None:
        """Close the session and restore the signal handlers."""
        self.session.close()
        self._signals.restore()


def _shorten_summary(report: pytest.TestReport, summary: str) -> None:
    """Give the line of the short summary the reason alone: with ``CI=true`` pytest prints the whole message there."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        crash.message = f"{VerdictError.__name__}: {summary}"


def _measure(marked: MarkedExperiment) -> Evaluation:
    try:
        return marked.measure()
    except pytest.fail.Exception as error:
        error.pytrace = False  # such as a timeout: the test's own code has not run yet
        raise
