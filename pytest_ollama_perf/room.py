"""The last room of the house: what pytest's hooks hand over to. Loads, verdicts and texts come from the stages before."""

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

from pytest_ollama_perf.errors import ConfigError, OllamaPerfError
from pytest_ollama_perf.experiment import READERS, reader
from pytest_ollama_perf.settings import Settings

if TYPE_CHECKING:
    from _pytest.nodes import Node

    from pytest_ollama_perf.api import Marked, Ollama
    from pytest_ollama_perf.bench import Bench, Onlooker
    from pytest_ollama_perf.contract.shared import SharedLoad
    from pytest_ollama_perf.experiment import Experiment
    from pytest_ollama_perf.past import Past
    from pytest_ollama_perf.report.result import TestResult
    from pytest_ollama_perf.trial import Trial


FIXTURES = frozenset({"ollama", "ollama_url"})
"""Fixtures that may ask for a server without a marker."""


SHOWING = ("collectonly", "setuponly", "setupplan", "showfixtures", "show_fixtures_per_test")
"""Options of pytest under which no test runs."""


class VerdictFailed(pytest.fail.Exception):  # type: ignore[misc, name-defined]
    """A verdict failed the test; the message is the whole explanation."""

    # As pytest does for its own outcomes: reports name the class without the place it is defined in.
    __module__ = "builtins"


class Room:
    """One object for one pytest session: the settings, the servers, the loads of each test and their verdicts."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self.config = config
        self.settings = settings
        self._trials: dict[str, list[Trial]] = defaultdict(list)
        self._marked: dict[str, Marked] = {}
        self._clauses: dict[str, SharedLoad] = {}
        self._bench: Bench | None = None
        self._past: Past | None = None
        self._started_at = time.time()
        self._aborted = ""
        self._wrong: list[str] = []
        self._written: list[str] = []
        self._unwritten: list[str] = []

    # What fixtures and results ask for.

    def bench(self) -> Bench:
        """The servers and instruments of this session, opened on first use."""
        if self._bench is None:
            from pytest_ollama_perf.bench import Bench

            self._bench = Bench(self.settings, root=self.config.rootpath)
        return self._bench

    def past(self) -> Past:
        """The history of this build's tests, opened on first use."""
        if self._past is None:
            from pytest_ollama_perf.past import Past

            self._past = Past(self.settings, sum(experiment.gating for experiment in self._experiments()))
        return self._past

    def url(self) -> str:
        return self.bench().servers[0].address.url

    def _experiments(self) -> list[Experiment]:
        """What the collected tests ask for, a load that several clauses share once."""
        shared = {id(one): one.group for one in self._clauses.values()}
        return [*(marked.experiment for marked in self._marked.values()), *shared.values()]

    def marked(self, item: pytest.Item) -> Marked:
        return self._marked[item.nodeid]

    def ollama(self, item: pytest.Item) -> Ollama:
        from pytest_ollama_perf.api import Ollama

        return Ollama(self, item.nodeid)

    def conduct(
        self, experiment: Experiment, test: str, *, check: bool = True, stop: threading.Event | None = None
    ) -> Trial:
        """Conduct an experiment and keep its trial for the reports, also when it could not be measured or was stopped.

        Raises:
            VerdictFailed: nothing could be measured; the message says why.
        """
        from pytest_ollama_perf.trial import unmeasured

        try:
            trial = self._measured(experiment, test, stop)
        except OllamaPerfError as error:
            self.keep(test, unmeasured(str(error)))
            raise VerdictFailed(str(error), pytrace=False) from None
        self.keep(test, trial if check else trial.unjudged())
        return trial

    def measure(self, experiment: Experiment, test: str) -> Trial:
        """Conduct an experiment for several tests, which are kept and failed one by one."""
        from pytest_ollama_perf.trial import unmeasured

        try:
            return self._measured(experiment, test)
        except OllamaPerfError as error:
            return unmeasured(str(error))

    def _measured(self, experiment: Experiment, test: str, stop: threading.Event | None = None) -> Trial:
        from pytest_ollama_perf.trial import Lab

        lab = None
        try:
            with self._onlooker(stop) as onlooker:
                lab = Lab(self.bench(), self.past(), onlooker)
                return experiment.conduct(lab, test)
        except OllamaPerfError:
            raise
        except BaseException:
            if lab is not None and (part := lab.interrupted()) is not None:
                self.keep(test, part)
            raise

    def keep_these(self, test: str, trials: Iterable[Trial]) -> None:
        """Remember ``trials`` in place of what was kept of the test."""
        self._trials[test] = list(trials)

    def keep(self, test: str, trial: Trial) -> None:
        """Remember what a test measured and how it was judged."""
        self._trials[test].append(trial)

    def fail_if_bad(self, test: str, trial: Trial) -> None:
        """Fail the running test where the trial's verdict says so."""
        if trial.fails(self.settings):
            raise VerdictFailed(self._explain(test, trial), pytrace=False)

    def _explain(self, test: str, trial: Trial) -> str:
        from pytest_ollama_perf.report.failure import failure_text
        from pytest_ollama_perf.trial import merge

        return failure_text(merge(test, [trial]))

    @contextlib.contextmanager
    def _onlooker(self, stop: threading.Event | None) -> Iterator[Onlooker]:
        from pytest_ollama_perf.report.progress import LiveProgress
        from pytest_ollama_perf.trial import Stoppable

        plugins = self.config.pluginmanager
        capture, reporter = plugins.getplugin("capturemanager"), plugins.getplugin("terminalreporter")
        suspended = capture.global_and_fixture_disabled() if capture else contextlib.nullcontext()
        file = reporter._tw._file if reporter else io.StringIO()
        with suspended, LiveProgress(file, verbosity=self._verbosity) as progress:
            yield progress if stop is None else Stoppable(progress, stop)

    # Collection: every marker is read before the first test.

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self._wrong = [f"{item.nodeid}: {error}" for item in items if (error := refusal(self._read, item))]
        if not self._wrong and self._loads_in(items) and (error := refusal(self.bench)):
            self._wrong = [error]
        if self._wrong:
            raise pytest.UsageError("\n       ".join(self._wrong))

    @property
    def _verbosity(self) -> int:
        """How much pytest is to say; little where it has no terminal reporter."""
        return int(self.config.getoption("verbose", default=-1))

    @property
    def _idle(self) -> bool:
        """Whether pytest was asked to show tests or fixtures, not to run them."""
        return any(self.config.getoption(name, default=False) for name in SHOWING)

    def _loads_in(self, items: list[pytest.Item]) -> bool:
        """Whether any of ``items`` may ask for a server."""
        return any(
            item.nodeid in self._marked
            or item.nodeid in self._clauses
            or not FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))
            for item in items
        )

    def _read(self, item: pytest.Item) -> None:
        if shared := getattr(item, "ollama_shared", None):
            self._clauses[item.nodeid] = shared
            return
        markers = list(dict.fromkeys(mark.name for mark in item.iter_markers() if mark.name in READERS))
        lonely = [name for name in READERS if name in getattr(item, "fixturenames", ()) and name not in markers]
        if lonely:
            raise ConfigError(f"uses the fixture {lonely[0]} without the marker; add @pytest.mark.{lonely[0]}(...)")
        if len(markers) > 1:
            raise ConfigError(f"has the markers {' and '.join(markers)}: one test, one of them")
        for marker in markers:
            from pytest_ollama_perf.api import Marked

            read, known = reader(marker)
            experiment = read(marker_words(item, marker, known), self.settings)
            self._marked[item.nodeid] = Marked(self, item.nodeid, experiment)

    def pytest_report_collectionfinish(self, items: list[pytest.Item]) -> list[str]:
        if self._wrong or not self._loads_in(items):
            return []
        if self._idle or self._verbosity < 0:
            return []
        from pytest_ollama_perf.report.terminal import header

        models = {model for experiment in self._experiments() for model in experiment.models}
        return [header(*self.bench().introduce(models))]

    # The test itself.

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """A test that is run again, by whatever plugin, measures again."""
        self._trials.pop(item.nodeid, None)
        if marked := self._marked.get(item.nodeid):
            marked.forget()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        marked = self._marked.get(item.nodeid)
        with terminated_as_exit():
            trial = marked.measure() if marked else None
            try:
                outcome = yield
            except Exception as error:
                if trial is None or not trial.fails(self.settings):
                    raise
                # Numbers that break a contract say more than the assertion that stumbled over them.
                own = item.repr_failure(pytest.ExceptionInfo.from_exception(error))
                item.add_report_section("call", "the test's own failure", str(own))
                outcome = None
        if trial:
            self.fail_if_bad(item.nodeid, trial)
        return outcome

    # Afterwards.

    def results(self) -> list[TestResult]:
        """One result a test, in the order they ran."""
        if not self._trials:
            return []
        from pytest_ollama_perf.trial import merge

        return [merge(test, trials) for test, trials in self._trials.items()]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the reports, also after Ctrl-C. A history or a report that could not be written fails the build."""
        if self.settings.reports and not self._idle and session.exitstatus != pytest.ExitCode.USAGE_ERROR:
            self._write_reports()
        lost = self._unwritten or (self._past is not None and self._past.unsaved)
        if lost and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _write_reports(self) -> None:
        from importlib.metadata import version

        from pytest_ollama_perf.report.json_report import Meta, document, write

        meta = Meta(plugin_version=version("pytest-ollama-perf"), started_at=self._started_at, aborted=self._aborted)
        for report in self.settings.reports:
            try:
                write(report.path, document(self.results(), meta=meta))
                self._written.append(f"{report.type} report: {report.path}")
            except ConfigError as error:
                self._unwritten.append(str(error))

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        self._aborted = str(excinfo.value) or "interrupted (Ctrl-C)"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._trials and not self._unwritten:
            return
        from pytest_ollama_perf.report.terminal import section

        if self._verbosity >= 0:
            terminalreporter.write_sep("=", "ollama")
        for line in section(self.results(), verbosity=self._verbosity):
            terminalreporter.write_line(line.text, **line.style.markup)
        for written in self._written if self._verbosity >= 0 else ():
            terminalreporter.write_line(written)
        for unwritten in self._unwritten:
            terminalreporter.write_line(unwritten, red=True, bold=True)

    def pytest_unconfigure(self) -> None:
        if self._bench is not None:
            self._bench.close()
        if self._past is not None:
            self._past.close()


def refusal(read: Callable[..., object], *arguments: object) -> str:
    """Say why ``read`` refuses what a person wrote; nothing where it does not."""
    try:
        read(*arguments)
    except ConfigError as error:
        return str(error)
    return ""


def marker_words(item: pytest.Item, marker: str, known: tuple[str, ...]) -> dict[str, Any]:
    """Return the words that count for ``item``: nearer markers win word by word.

    From near to far: marks of the parameter set, parameters named like a word, the function's own markers, its class,
    the classes that one comes from, its module.
    """
    from pytest_ollama_perf.marks import nearest

    callspec = getattr(item, "callspec", None)
    near = [mark for mark in getattr(callspec, "marks", ()) if mark.name == marker]
    parameters = {name: value for name, value in getattr(callspec, "params", {}).items() if name in known}
    far = [mark for node in reversed(item.listchain()) for mark in own_marks(node, marker) if mark not in near]
    if any(mark.args for mark in (*near, *far)):
        raise ConfigError(f"the marker takes words only, for example @pytest.mark.{marker}(model='llama3.2:3b')")
    return nearest([*(mark.kwargs for mark in near), parameters, *(mark.kwargs for mark in far)])


def own_marks(node: Node, marker: str) -> list[pytest.Mark]:
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
def terminated_as_exit() -> Iterator[None]:
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
