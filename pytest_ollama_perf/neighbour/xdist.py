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
    from pytest_ollama_perf.trial import Trial

KEY = "ollama_perf"
"""Our part of a report, of a worker's input and of its output."""

WRONG = "ollama_perf_wrong"
"""On the report of a collection: what a person wrote and we refuse."""


class Room(Protocol):
    """What both ends need of the room."""

    @property
    def kept(self) -> dict[str, list[Trial]]: ...  # by test

    @property
    def unsaved(self) -> list[str]: ...  # why runs are missing in the history

    def name_of(self, item: pytest.Item) -> str: ...

    def simulated(self) -> tuple[str, ...]: ...


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is a worker."""
    return hasattr(config, "workerinput")


def is_controller(config: pytest.Config) -> bool:
    """Whether this process hands its tests to workers."""
    return not is_worker(config) and config.getoption("dist", default="no") != "no"


def session_of(config: pytest.Config) -> str:
    """Return the name of the session that all workers belong to; nothing in a process of its own."""
    return str(getattr(config, "workerinput", {}).get("testrunuid", ""))[:12]


def running(config: pytest.Config) -> tuple[str, ...]:
    """Return the simulators that the controller has started for its workers, one for each URL or none at all."""
    return tuple(getattr(config, "workerinput", {}).get(KEY, ()))


def refuse(config: pytest.Config, text: str) -> None:
    """Tell the controller what is wrong, for a usage error in a worker would only be a worker that crashed."""
    report = pytest.CollectReport(nodeid="", outcome="failed", longrepr=text, result=[])
    setattr(report, WRONG, text)
    config.hook.pytest_collectreport(report=report)


class Worker:
    """Ships what this worker measured."""

    def __init__(self, room: Room) -> None:
        self._room = room

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        test = self._room.name_of(item)
        if call.when == "teardown" and test in self._room.kept:
            setattr(report, KEY, _parcel(test, self._room.kept.pop(test)))
        return report

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        rest = [_parcel(test, trials) for test, trials in self._room.kept.items()]
        output: dict[str, Any] = session.config.workeroutput  # type: ignore[attr-defined]
        output[KEY] = {"parcels": rest, "unsaved": self._room.unsaved}


class Controller:
    """Receives what workers measured, and puts it in the order in which the tests were collected."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._order: dict[str, int] = {}
        self._received: dict[str, dict[str, list[Trial]]] = {}  # by test and worker
        self._places: dict[str, int] = {}

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Start simulators once, for all workers on this machine."""
        if node.gateway.spec.popen:
            node.workerinput[KEY] = self._room.simulated()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        self._order = self._order or {test: place for place, test in enumerate(ids)}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if wrong := report.__dict__.get(WRONG):
            raise pytest.UsageError(wrong)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if parcel := report.__dict__.pop(KEY, None):
            self._receive(parcel, report.node, self._order.get(report.nodeid))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what no report could."""
        last = getattr(node, "workeroutput", {}).get(KEY, {})
        for parcel in last.get("parcels", ()):
            self._receive(parcel, node, None)
        self._room.unsaved.extend(text for text in last.get("unsaved", ()) if text not in self._room.unsaved)

    def _receive(self, parcel: str, node: Any, place: int | None) -> None:
        from pytest_ollama_perf.parcel import unpack

        test, trials = unpack(base64.b64decode(parcel))
        self._received.setdefault(test, {})[node.gateway.id] = trials
        self._places.setdefault(test, len(self._order) if place is None else place)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, None, None]:
        for test in sorted(self._received, key=self._places.__getitem__):
            of_workers = self._received[test].values()
            self._room.kept[test] = [trial for trials in of_workers for trial in trials]
        yield


def _parcel(test: str, trials: list[Trial]) -> str:
    from pytest_ollama_perf.parcel import pack

    return base64.b64encode(pack(test, trials)).decode("ascii")
