"""``pytest-ollama-perf trend``: slow drift that no single comparison sees."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import RenderableType

from pytest_ollama_perf.analysis.drift import REFERENCE_RUNS, DriftPoint, DriftResult, detect_drift
from pytest_ollama_perf.analysis.epochs import StoredRuns, select_baseline
from pytest_ollama_perf.analysis.gate import GateRule
from pytest_ollama_perf.analysis.run_value import GATING_METRICS, MetricPolicy, build_evidence, get_policy, to_value
from pytest_ollama_perf.cli.common import (
    add_store_options,
    build_table,
    build_text,
    draw_sparkline,
    find_test,
    format_day,
    open_console,
    print_json,
    shorten_test_id,
    warn,
)
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.workload import compute_identity
from pytest_ollama_perf.metrics.format import format_count, format_label, format_percent
from pytest_ollama_perf.store import open_store


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``trend`` to the command line."""
    parser = subparsers.add_parser(
        "trend",
        help="slow drift that no single comparison sees",
        description="Hold the runs of the current epoch against its first 20 and warn where they have drifted away. "
        "A warning is no failure: the exit status stays 0.",
    )
    parser.add_argument("test", nargs="?", metavar="TEST", help="a node id, or the end of one; default: every test")
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="follow this metric (tps, ttft, latency, ttft.p95, ...); may be repeated; default: those that gate",
    )
    add_store_options(parser)
    parser.set_defaults(run=main)


def main(options: argparse.Namespace) -> int:
    """Follow the runs. What that needs is imported here: other commands start without scipy."""
    return run_trend(options)


_OTHER_COLUMNS = 58


@dataclass(frozen=True)
class DriftRow:
    """A metric of one load of a test over its current epoch."""

    test: str
    policy: MetricPolicy
    points: tuple[DriftPoint, ...]
    trend: DriftResult

    @property
    def state(self) -> str:
        if self.trend.missing:
            return f"needs {format_count(self.trend.missing, 'more run')}"
        if not self.trend.warns or self.trend.since is None:
            return "steady"
        return f"{format_percent(self.trend.slowdown)} slower since {format_day(self.trend.since)}"


def run_trend(options: argparse.Namespace) -> int:
    """Follow every test, or one."""
    policies = [get_policy(name) for name in options.metric or GATING_METRICS]
    store = open_store(options.store)
    tests = store.list_tests() if options.test is None else (find_test(store, options.test),)
    histories = {test: store.read_history(test, limit=None) for test in tests}
    drifts = [drift for test, history in histories.items() for drift in _compute_drifts(test, history, policies)]
    if options.json:
        print_json([_to_json(drift) for drift in drifts])
    elif drifts:
        _print_drifts(drifts)
    else:
        open_console().print(build_text(f"no run is stored in {store.name} yet: run pytest with --ollama-save"))
    warn(text for history in histories.values() for text in history.damaged)
    store.close()
    return 0


def _compute_drifts(test: str, history: StoredRuns, policies: Sequence[MetricPolicy]) -> Iterator[DriftRow]:
    """Yield a drift for each metric that the newest run of each load of ``test`` has."""
    newest = {compute_identity(stored.workload): stored for stored in history.runs}
    for last in newest.values():
        runs = [build_evidence(stored) for stored in _list_epoch_runs(history, last)]
        for one in policies:
            points = tuple(DriftPoint(each.at or 0.0, each.compute_cost(one)) for each in runs)
            if any(math.isfinite(point.cost) for point in points):
                yield DriftRow(test, one, points, detect_drift(points, GateRule.from_policy(one)))


def _list_epoch_runs(history: StoredRuns, last: Run) -> list[Run]:
    return [*select_baseline(history, last).runs, last]


def _print_drifts(drifts: Sequence[DriftRow]) -> None:
    rows = build_table("test", "metric", "runs", "newest 20", "trend")
    for column in rows.columns[3:]:
        column.justify = "left"
    out = open_console()
    for drift in drifts:
        rows.add_row(*_format_cells(drift, out.width - _OTHER_COLUMNS))
    out.print(rows)
    if any(drift.trend.missing for drift in drifts):
        out.print(
            build_text(f"the first {REFERENCE_RUNS} runs of an epoch are what later ones are held against", "dim")
        )


def _format_cells(drift: DriftRow, width: int) -> tuple[RenderableType, ...]:
    newest = [to_value(drift.policy, point.cost) for point in drift.points[-20:]]
    name = format_label(drift.policy.metric.name, drift.policy.stat)
    state = build_text(drift.state, "yellow" if drift.trend.warns else "")
    return (shorten_test_id(drift.test, width), name, str(len(drift.points)), draw_sparkline(newest), state)


def _to_json(drift: DriftRow) -> dict[str, object]:
    return {
        "test": drift.test,
        "metric": drift.policy.name,
        "runs": len(drift.points),
        "warns": drift.trend.warns,
        "since": drift.trend.since,
        "slowdown": drift.trend.slowdown,
        "missing": drift.trend.missing,
        "text": drift.state,
        "unit": drift.policy.metric.unit.value,
        "values": [to_value(drift.policy, point.cost) for point in drift.points],
    }
