"""pytest-xdist: workers measure one after the other and send what they measured; only the controller reports.

The evaluations of a test are attached to the report of its teardown as text, which every way of sending a report
supports, and are removed from the report before other plugins see it. If the session ends during a test, its
evaluations are part of the worker's output instead. A worker writes to the history itself, right after the verdict: a
store accepts several writers, and saved runs survive the end of the session.

Nothing that measures or packs is imported here until a load was measured.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_ollama_perf.harness.evaluation import Evaluation
    from pytest_ollama_perf.session import Session


PAYLOAD_KEY = "ollama_perf"
"""The attribute of a report, and the key in a worker's input and output, that holds this plugin's data."""

USAGE_ERROR_KEY = "ollama_perf_wrong"
"""The attribute of a collection report that holds the text of a usage error."""


_STOP_TIMEOUT_S = 10.0


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is a worker."""
    return hasattr(config, "workerinput")


def is_controller(config: pytest.Config) -> bool:
    """Whether this process distributes its tests to workers."""
    return not is_worker(config) and config.getoption("dist", default="no") != "no"


def get_session_id(config: pytest.Config) -> str:
    """Return the id of the session that all workers belong to; an empty text without pytest-xdist."""
    return str(getattr(config, "workerinput", {}).get("testrunuid", ""))[:12]


def get_simulator_urls(config: pytest.Config) -> tuple[str, ...]:
    """Return the URLs of the simulators that the controller started for its workers, one per server or none."""
    return tuple(getattr(config, "workerinput", {}).get(PAYLOAD_KEY, ()))


def report_usage_error(config: pytest.Config, text: str) -> None:
    """Send a usage error to the controller; raised in a worker, it would only look like a crashed worker."""
    report = pytest.CollectReport(nodeid="", outcome="failed", longrepr=text, result=[])
    setattr(report, USAGE_ERROR_KEY, text)
    config.hook.pytest_collectreport(report=report)


class XdistWorker:
    """Sends what this worker measured to the controller. ``get_test_name`` returns the name of an item in reports."""

    def __init__(self, session: Session, get_test_name: Callable[[pytest.Item], str]) -> None:
        self._session, self._get_test_name = session, get_test_name

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Attach the results of the test to the report that goes to the controller."""
        report = yield
        test = self._get_test_name(item)
        if call.when == "teardown" and test in self._session.evaluations:
            setattr(report, PAYLOAD_KEY, self._encode(test))
        return report

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Send the results that no report carried."""
        rest = [self._encode(test) for test in list(self._session.evaluations)]
        output: dict[str, Any] = session.config.workeroutput  # type: ignore[attr-defined]
        output[PAYLOAD_KEY] = {"payloads": rest, "unsaved": self._session.unsaved}

    def _encode(self, test: str) -> str:
        """Return the evaluations of ``test`` as text; this process no longer needs them."""
        from pytest_ollama_perf.integrations.payload import encode_payload

        return encode_payload(test, self._session.evaluations.pop(test))


class XdistController:
    """Receives what workers measured, and sorts it in the order in which the tests were collected."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._order: dict[str, int] = {}
        self._payloads: list[tuple[int, str, str]] = []  # position of the test, worker, text
        self._pids: dict[Any, int] = {}  # of the workers on this machine

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Start simulators once, for all workers on this machine."""
        if node.gateway.spec.popen:
            node.workerinput[PAYLOAD_KEY] = self._session.harness.simulator_urls
            self._pids[node] = _read_pid(node)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Remember the order of the tests."""
        self._order = self._order or {test: position for position, test in enumerate(ids)}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """End the session with the usage error of a worker."""
        if error := report.__dict__.get(USAGE_ERROR_KEY):
            raise pytest.UsageError(error)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the results out of a worker's report."""
        self._receive_report(report, report.node)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Receive what could not be attached to a report."""
        last = getattr(node, "workeroutput", {}).get(PAYLOAD_KEY, {})
        for payload in last.get("payloads", ()):
            self._receive(payload, node, None)
        self._session.unsaved.extend(text for text in last.get("unsaved", ()) if text not in self._session.unsaved)

    def _stop_workers(self, config: pytest.Config) -> None:
        """Let workers end at once instead of after their test, and receive what they measured until then.

        The loop that reads what they send has ended; a worker's output arrives without it.
        """
        for pid in self._pids.values() if sys.platform != "win32" else ():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while any(not hasattr(node, "workeroutput") for node in self._pids) and time.monotonic() < deadline:
            time.sleep(0.02)
        self._receive_queued(config)
        for node in self._pids:
            self.pytest_testnodedown(node)

    def _receive_queued(self, config: pytest.Config) -> None:
        """Receive the reports that arrived after the loop had ended."""
        events = getattr(config.pluginmanager.getplugin("dsession"), "queue", None)
        while events is not None and not events.empty():
            _, arguments = events.get_nowait()
            if report := arguments.get("rep"):
                self._receive_report(report, arguments["node"])

    def _receive_report(self, report: Any, node: Any) -> None:
        if payload := getattr(report, PAYLOAD_KEY, None):
            self._receive(payload, node, self._order.get(getattr(report, "nodeid", "")))
            delattr(report, PAYLOAD_KEY)

    def _receive(self, payload: str, node: Any, position: int | None) -> None:
        """Keep a payload. It is decoded at the end: a signal may arrive while that imports modules."""
        position = len(self._order) if position is None else position
        self._payloads.append((position, node.gateway.id, payload))

    def _decode_payloads(self) -> None:
        """Give the session what was received, in the order in which the tests were collected."""
        from pytest_ollama_perf.integrations.payload import decode_payload

        found: dict[str, dict[str, list[Evaluation]]] = {}  # by test and worker
        for _, worker, payload in sorted(self._payloads, key=itemgetter(0)):
            test, evaluations = decode_payload(payload)
            found.setdefault(test, {})[worker] = evaluations
        for test, of_workers in found.items():
            self._session.evaluations[test] = [each for evaluations in of_workers.values() for each in evaluations]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        """Stop the workers of an aborted session, and put the results in order."""
        if self._session.aborted:
            self._stop_workers(session.config)
        if self._payloads:
            self._decode_payloads()
        yield


def _read_pid(node: Any) -> int:
    """Ask a worker for its process id before its tests begin."""
    channel = node.gateway.remote_exec("import os; channel.send(os.getpid())")
    pid = int(channel.receive(10))
    channel.waitclose(10)
    return pid


TEST_NAME_KEY = "ollama_test_name"
"""Attribute of a failed report: the name that the test has in results, which is not always its node id."""
