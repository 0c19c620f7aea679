"""What ``trend`` prints: for every test and metric, how far the runs have drifted from where their epoch began."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import RenderableType

from pytest_ollama_perf.cli.place import find_test
from pytest_ollama_perf.cli.screen import console, day, line, print_json, short, sparkline, table, warn
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.store import open_store
from pytest_ollama_perf.verdict.epoch import History, epoch_of
from pytest_ollama_perf.verdict.evidence import of_run
from pytest_ollama_perf.verdict.gate import Rule
from pytest_ollama_perf.verdict.run_value import GATING, Policy, policy, value
from pytest_ollama_perf.verdict.trend import REFERENCE, Point, Trend, trend
from pytest_ollama_perf.verdict.wording import count, label, percent
from pytest_ollama_perf.workload import identity

_OTHER_COLUMNS = 58


@dataclass(frozen=True)
class Drift:
    """A metric of one load of a test over its current epoch."""

    test: str
    policy: Policy
    points: tuple[Point, ...]
    found: Trend

    @property
    def state(self) -> str:
        if self.found.missing:
            return f"needs {count(self.found.missing, 'more run')}"
        if not self.found.warns or self.found.since is None:
            return "steady"
        return f"{percent(self.found.slowdown)} slower since {day(self.found.since)}"


def run(options: argparse.Namespace) -> int:
    """Follow every test, or one."""
    policies = [policy(name) for name in options.metric or GATING]
    store = open_store(options.store)
    tests = store.tests() if options.test is None else (find_test(store, options.test),)
    histories = {test: store.history(test, limit=None) for test in tests}
    drifts = [drift for test, history in histories.items() for drift in _drifts(test, history, policies)]
    if options.json:
        print_json([_plain(drift) for drift in drifts])
    elif drifts:
        _print(drifts)
    else:
        console().print(line(f"no run is stored in {store.name} yet: run pytest with --ollama-save"))
    warn(text for history in histories.values() for text in history.damaged)
    store.close()
    return 0


def _drifts(test: str, history: History, policies: Sequence[Policy]) -> Iterator[Drift]:
    """Yield a drift for each metric that the newest run of each load of ``test`` has."""
    newest = {identity(stored.workload): stored for stored in history.runs}
    for last in newest.values():
        runs = [of_run(stored) for stored in _epoch(history, last)]
        for one in policies:
            points = tuple(Point(each.at or 0.0, each.reading(one)) for each in runs)
            if any(math.isfinite(point.cost) for point in points):
                yield Drift(test, one, points, trend(points, Rule.of(one)))


def _epoch(history: History, last: Run) -> list[Run]:
    return [*epoch_of(history, last).runs, last]


def _print(drifts: Sequence[Drift]) -> None:
    rows = table("test", "metric", "runs", "newest 20", "trend")
    for column in rows.columns[3:]:
        column.justify = "left"
    out = console()
    for drift in drifts:
        rows.add_row(*_cells(drift, out.width - _OTHER_COLUMNS))
    out.print(rows)
    if any(drift.found.missing for drift in drifts):
        out.print(line(f"the first {REFERENCE} runs of an epoch are what later ones are held against", "dim"))


def _cells(drift: Drift, width: int) -> tuple[RenderableType, ...]:
    newest = [value(drift.policy, point.cost) for point in drift.points[-20:]]
    name = label(drift.policy.metric.name, drift.policy.stat)
    state = line(drift.state, "yellow" if drift.found.warns else "")
    return (short(drift.test, width), name, str(len(drift.points)), sparkline(newest), state)


def _plain(drift: Drift) -> dict[str, object]:
    return {
        "test": drift.test,
        "metric": drift.policy.name,
        "runs": len(drift.points),
        "warns": drift.found.warns,
        "since": drift.found.since,
        "slowdown": drift.found.slowdown,
        "missing": drift.found.missing,
        "text": drift.state,
        "unit": drift.policy.metric.unit.value,
        "values": [value(drift.policy, point.cost) for point in drift.points],
    }
