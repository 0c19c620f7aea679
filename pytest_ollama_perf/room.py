"""The last room of the house: what pytest's hooks hand over to. Loads, verdicts, texts come from the stages before."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING

import pytest

from pytest_ollama_perf.errors import ConfigError, OllamaPerfError
from pytest_ollama_perf.experiment import READERS, other_urls, reader
from pytest_ollama_perf.markers import marker_words
from pytest_ollama_perf.neighbour import xdist
from pytest_ollama_perf.neighbour.freezegun import real_time
from pytest_ollama_perf.settings import Settings
from pytest_ollama_perf.termination import terminated_as_exit
from pytest_ollama_perf.turn import Turn

if TYPE_CHECKING:
    from pytest_ollama_perf.api import Marked, Ollama
    from pytest_ollama_perf.bench import Bench, Onlooker
    from pytest_ollama_perf.contract.shared import SharedLoad
    from pytest_ollama_perf.experiment import Experiment
    from pytest_ollama_perf.past import Past
    from pytest_ollama_perf.report.result import TestResult
    from pytest_ollama_perf.report.writers import Reports
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
        self._unsaved: list[str] = []
        self._turn = Turn()

    # What fixtures and results ask for.

    def bench(self) -> Bench:
        """The servers and instruments of this session, opened on first use."""
        if self._bench is None:
            from pytest_ollama_perf.bench import Bench

            running, session = xdist.running(self.config), xdist.session_of(self.config)
            self._bench = Bench(self.settings, root=self.config.rootpath, session=session, running=running)
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

    def simulated(self) -> tuple[str, ...]:
        """The URLs of the simulators under test, nothing for other servers."""
        return self.bench().simulated

    @property
    def kept(self) -> dict[str, list[Trial]]:
        """What each test measured and how that was judged."""
        return self._trials

    @property
    def unsaved(self) -> list[str]:
        """Why runs are missing in the history."""
        return self._unsaved if self._past is None else self._past.unsaved

    def neighbours(self) -> Iterator[object]:
        """Yield the plugins through which this session gets along with other plugins."""
        if xdist.is_worker(self.config):
            yield xdist.Worker(self)
            return
        if self.settings.benchmark:
            from pytest_ollama_perf.neighbour.benchmark import Bridge

            yield Bridge(self, self.config)
        if self.settings.github:
            from pytest_ollama_perf.neighbour.github import Actions

            yield Actions(self, self.config, self.settings.github)
        if xdist.is_controller(self.config):  # behind the bridge, so that it is asked first at the end
            yield xdist.Controller(self)

    def name_of(self, item: pytest.Item) -> str:
        """Return what ``item`` is called in reports and in the history: its node id, whoever runs it.

        pytest-xdist puts the name of the item's group behind that where groups count (``--dist loadgroup``).
        """
        if shared := self._clauses.get(item.nodeid):
            return shared.test
        plain = f"{item.parent.nodeid}::{item.name}" if item.parent else item.nodeid
        return plain if item.nodeid.startswith(f"{plain}@") else item.nodeid

    def marked(self, item: pytest.Item) -> Marked:
        return self._marked[item.nodeid]

    def ollama(self, item: pytest.Item) -> Ollama:
        from pytest_ollama_perf.api import Ollama

        return Ollama(self, self.name_of(item))

    def warm_up(
        self,
        models: tuple[str, ...],
        *,
        num_ctx: int | None = None,
        keep_alive: str | float = "1h",
        timeout_s: float | None = None,
    ) -> dict[str, float]:
        """Load models on every server under test; see ``experiment.warm``."""
        from pytest_ollama_perf.experiment.warm import warm_up

        with self._onlooker(None) as onlooker:
            return warm_up(self.bench(), models, onlooker, num_ctx=num_ctx, keep_alive=keep_alive, timeout_s=timeout_s)

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
        # What says what was measured is there before the load: after Ctrl-C there is no time to import it.
        from pytest_ollama_perf.report import failure, json_report, terminal  # noqa: F401
        from pytest_ollama_perf.trial import Lab

        lab = None
        try:
            with self._onlooker(stop) as onlooker:
                with self._turn_at(experiment, test, onlooker, stop), real_time():
                    lab = Lab(self.bench(), self.past(), onlooker)
                    return experiment.conduct(lab, test)
        except OllamaPerfError:
            raise
        except BaseException:
            if lab is not None and (part := lab.interrupted()) is not None:
                self.keep(test, part)
            raise

    def _turn_at(
        self, experiment: Experiment, test: str, onlooker: Onlooker, stop: threading.Event | None
    ) -> contextlib.AbstractContextManager[None]:
        """Wait until nobody else fires a load at the servers of the experiment, and keep others out."""
        bench = self.bench()
        servers = (*bench.servers, *map(bench.server_at, other_urls(experiment)))
        # An onlooker through which the load can be stopped raises when it is spoken to.
        wait = time.sleep if stop is None else stop.wait
        return self._turn.at((server.address.url for server in servers), test, wait=wait, say=onlooker.message)

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
        if not self._wrong and self._loads_in(items) and (error := refusal(self.bench) or refusal(self.past)):
            self._wrong = [error]
        if self._wrong and xdist.is_worker(self.config):
            items.clear()
            xdist.refuse(self.config, "\n       ".join(self._wrong))
        elif self._wrong:
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
            self._marked[item.nodeid] = Marked(self, self.name_of(item), experiment)

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
        self._trials.pop(self.name_of(item), None)
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
            self.fail_if_bad(self.name_of(item), trial)
        return outcome

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        trials = self._trials.get(self.name_of(item))
        if trials and not self.settings.no_properties:
            from pytest_ollama_perf.report.properties import renewed
            from pytest_ollama_perf.trial import merge

            item.user_properties = renewed(item.user_properties, merge(self.name_of(item), trials))
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        """Where others run the tests, this process only waits: a SIGTERM must not lose what they have shipped."""
        with terminated_as_exit() if xdist.is_controller(self.config) else contextlib.nullcontext():
            return (yield)

    # Afterwards.

    def results(self) -> list[TestResult]:
        """One result a test, in the order they ran."""
        if not self._trials:
            return []
        from pytest_ollama_perf.trial import merge

        return [merge(test, trials) for test, trials in self._trials.items()]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the reports, also after Ctrl-C. A history or a report that could not be written fails the build."""
        if xdist.is_worker(self.config):
            return
        if self.settings.reports and not self._idle and session.exitstatus != pytest.ExitCode.USAGE_ERROR:
            self._write_reports()
        lost = self._unwritten or self.unsaved
        if lost and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def reports(self) -> Reports:
        """The reports of what has been measured so far."""
        from importlib.metadata import version

        from pytest_ollama_perf.report.json_report import Meta
        from pytest_ollama_perf.report.writers import Reports

        meta = Meta(plugin_version=version("pytest-ollama-perf"), started_at=self._started_at, aborted=self._aborted)
        return Reports(self.results(), meta)

    def _write_reports(self) -> None:
        from pytest_ollama_perf.report.json_report import write

        reports = self.reports()
        for report in self.settings.reports:
            try:
                write(report.path, reports.written(report.type))
                self._written.append(f"{report.type} report: {report.path}")
            except OllamaPerfError as error:
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
            if xdist.is_controller(self.config):  # it collects nothing, and so had no header to print
                terminalreporter.write_line(self._header_of_results())
        for line in section(self.results(), verbosity=self._verbosity):
            terminalreporter.write_line(line.text, **line.style.markup)
        for written in self._written if self._verbosity >= 0 else ():
            terminalreporter.write_line(written)
        unsaved = self.unsaved if self._verbosity < 0 else ()  # otherwise each block says it
        for lost in (*self._unwritten, *unsaved):
            terminalreporter.write_line(lost, red=True, bold=True)

    def _header_of_results(self) -> str:
        from pytest_ollama_perf.report.terminal import header

        runs = [load.run for result in self.results() for load in result.loads]
        versions = ", ".join(sorted({run.fingerprint.server_version for run in runs}))
        return header(versions, self.settings.urls, sorted({run.workload.model for run in runs}))

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
