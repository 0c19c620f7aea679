"""pytest-xdist: workers measure one after the other and ship what they measured; the controller alone reports.

A parcel travels as base64 text on the report of a test's teardown, which survives every way of shipping a report, and
leaves the report before anybody else sees it. What no report could take, because the session ended in the middle of a
test, travels with the worker's last words. The history is the one thing that a worker writes itself, right after the
verdict: a store takes several writers, and runs that were saved survive whatever happens to the session.

Nothing of a load is imported here until there is one.
"""

from __future__ import annotations

import base64
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from pytest_ollama_perf.harness.evaluation import Evaluation


PAYLOAD_KEY = "ollama_perf"
"""Our part of a report, of a worker's input and of its output."""

USAGE_ERROR_KEY = "ollama_perf_wrong"
"""On the report of a collection: what a person wrote and we refuse."""


class DistributedSession(Protocol):
    """What both ends need of the room."""

    @property
    def evaluations(self) -> dict[str, list[Evaluation]]: ...  # by test

    @property
    def unsaved(self) -> list[str]: ...  # why runs are missing in the history

    def get_test_name(self, item: pytest.Item) -> str: ...

    def simulator_urls(self) -> tuple[str, ...]: ...


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is a worker."""
    return hasattr(config, "workerinput")


def is_controller(config: pytest.Config) -> bool:
    """Whether this process hands its tests to workers."""
    return not is_worker(config) and config.getoption("dist", default="no") != "no"


def get_session_id(config: pytest.Config) -> str:
    """Return the name of the session that all workers belong to; nothing in a process of its own."""
    return str(getattr(config, "workerinput", {}).get("testrunuid", ""))[:12]


def get_simulator_urls(config: pytest.Config) -> tuple[str, ...]:
    """Return the simulators that the controller has started for its workers, one for each URL or none at all."""
    return tuple(getattr(config, "workerinput", {}).get(PAYLOAD_KEY, ()))


def report_usage_error(config: pytest.Config, text: str) -> None:
    """Tell the controller what is wrong, for a usage error in a worker would only be a worker that crashed."""
    report = pytest.CollectReport(nodeid="", outcome="failed", longrepr=text, result=[])
    setattr(report, USAGE_ERROR_KEY, text)
    config.hook.pytest_collectreport(report=report)


class XdistWorker:
    """Ships what this worker measured."""

    def __init__(self, room: DistributedSession) -> None:
        self._session = room

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        test = self._session.get_test_name(item)
        if call.when == "teardown" and test in self._session.evaluations:
            setattr(report, PAYLOAD_KEY, _encode_payload(test, self._session.evaluations.pop(test)))
        return report

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        rest = [_encode_payload(test, trials) for test, trials in self._session.evaluations.items()]
        output: dict[str, Any] = session.config.workeroutput  # type: ignore[attr-defined]
        output[PAYLOAD_KEY] = {"parcels": rest, "unsaved": self._session.unsaved}


class XdistController:
    """Receives what workers measured, and puts it in the order in which the tests were collected."""

    def __init__(self, room: DistributedSession) -> None:
        self._session = room
        self._order: dict[str, int] = {}
        self._received: dict[str, dict[str, list[Evaluation]]] = {}  # by test and worker
        self._places: dict[str, int] = {}

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Start simulators once, for all workers on this machine."""
        if node.gateway.spec.popen:
            node.workerinput[PAYLOAD_KEY] = self._session.simulator_urls()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        self._order = self._order or {test: place for place, test in enumerate(ids)}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if wrong := report.__dict__.get(USAGE_ERROR_KEY):
            raise pytest.UsageError(wrong)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if parcel := report.__dict__.pop(PAYLOAD_KEY, None):
            self._receive(parcel, report.node, self._order.get(report.nodeid))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what no report could."""
        last = getattr(node, "workeroutput", {}).get(PAYLOAD_KEY, {})
        for parcel in last.get("parcels", ()):
            self._receive(parcel, node, None)
        self._session.unsaved.extend(text for text in last.get("unsaved", ()) if text not in self._session.unsaved)

    def _receive(self, parcel: str, node: Any, place: int | None) -> None:
        from pytest_ollama_perf.integrations.payload import unpack_evaluations

        test, trials = unpack_evaluations(base64.b64decode(parcel))
        self._received.setdefault(test, {})[node.gateway.id] = trials
        self._places.setdefault(test, len(self._order) if place is None else place)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, None, None]:
        for test in sorted(self._received, key=self._places.__getitem__):
            of_workers = self._received[test].values()
            self._session.evaluations[test] = [trial for trials in of_workers for trial in trials]
        yield


def _encode_payload(test: str, trials: list[Evaluation]) -> str:
    from pytest_ollama_perf.integrations.payload import pack_evaluations

    return base64.b64encode(pack_evaluations(test, trials)).decode("ascii")
