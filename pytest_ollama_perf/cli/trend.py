"""``pytest-ollama-perf trend``: detect slow drift."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import RenderableType

from pytest_ollama_perf.analysis.drift import REFERENCE_RUNS, TREND_RUNS, DriftPoint, DriftResult, detect_drift
from pytest_ollama_perf.analysis.epochs import select_baseline
from pytest_ollama_perf.analysis.gate import GateRule
from pytest_ollama_perf.analysis.run_value import GATING_METRICS, MetricPolicy, build_evidence, get_policy, to_value
from pytest_ollama_perf.cli.common import (
    add_store_options,
    build_table,
    build_text,
    draw_sparkline,
    find_test,
    format_day,
    label_loads,
    open_console,
    print_json,
    shorten_test_id,
    warn,
)
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.metrics import format_count, format_label, format_percent
from pytest_ollama_perf.store import open_store
from pytest_ollama_perf.store.base import Store


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the description and the arguments of ``trend``."""
    parser.description = (
        "Compare the newest 100 runs of the current epoch with its first 20 and warn about drift that no single "
        "comparison detects. A warning does not change the exit status; it is 2 if a record cannot be read."
    )
    parser.add_argument("test", nargs="?", metavar="TEST", help="a node id or the end of one; default: every test")
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="follow this metric (tps, ttft, latency, ttft.p95, ...); repeatable; default: tps and ttft",
    )
    add_store_options(parser)
    parser.set_defaults(run=main)


_OTHER_COLUMNS = 66
_LOAD_WIDTH = 16


@dataclass(frozen=True)
class DriftRow:
    """A metric of one load of a test over its current epoch; ``load`` is set if the test has several loads."""

    test: str
    load: str
    policy: MetricPolicy
    points: tuple[DriftPoint, ...]
    trend: DriftResult

    @property
    def state(self) -> str:
        """The state of the metric in words."""
        if self.trend.warns and self.trend.since is not None:
            return f"{format_percent(self.trend.slowdown)} slower since {format_day(self.trend.since)}"
        if self.trend.undecided:
            return f"not enough runs yet ({format_count(self.trend.undecided, 'more run')})"
        return f"no drift above {format_percent(self.trend.detectable or 0.0)}"


def main(options: argparse.Namespace) -> int:
    """Follow every test, or one; return 2 if a record could not be read."""
    policies = [get_policy(name) for name in options.metric or GATING_METRICS]
    store = open_store(options.store)
    tests = store.list_tests() if options.test is None else (find_test(store, options.test),)
    damaged: dict[str, None] = {}
    drifts = [drift for test in tests for drift in _compute_drifts(store, test, policies, damaged)]
    if options.json:
        print_json([_to_json(drift) for drift in drifts])
    elif drifts:
        _print_drifts(drifts)
    else:
        open_console().print(build_text(f"no run is stored in {store.name} yet: run pytest with --ollama-save"))
    store.close()
    warn(damaged)
    return 2 if damaged else 0


def _compute_drifts(
    store: Store, test: str, policies: Sequence[MetricPolicy], damaged: dict[str, None]
) -> Iterator[DriftRow]:
    """Yield a drift for each load of ``test`` and each metric that it has; add unreadable records to ``damaged``."""
    epochs = {identity: _read_epoch(store, test, identity, damaged) for identity in store.list_workloads(test) or ("",)}
    labels = label_loads({identity: runs[-1].workload for identity, runs in epochs.items() if runs})
    for identity, label in labels.items():
        runs = [build_evidence(run) for run in epochs[identity]]
        for one in policies:
            points = tuple(DriftPoint(each.at or 0.0, each.compute_cost(one)) for each in runs)
            if any(math.isfinite(point.cost) for point in points):
                yield DriftRow(test, label, one, points, detect_drift(points, GateRule.from_policy(one)))


def _read_epoch(store: Store, test: str, identity: str, damaged: dict[str, None]) -> list[Run]:
    """Return the first and the newest runs of the epoch that are comparable with its newest run."""
    newest = store.read_history(test, identity=identity or None, limit=1)
    damaged |= dict.fromkeys(newest.damaged)
    if not newest.runs:
        return []
    last = newest.runs[-1]
    epoch = store.read_comparable(test, last, first=REFERENCE_RUNS, newest=TREND_RUNS - REFERENCE_RUNS)
    damaged |= dict.fromkeys(epoch.damaged)
    return [*select_baseline(epoch, last).runs, last]


def _print_drifts(drifts: Sequence[DriftRow]) -> None:
    several = any(drift.load for drift in drifts)
    rows = build_table("test", *(["load"] if several else []), "metric", "runs", "newest 20", "trend")
    for column in (*rows.columns[1:-3], *rows.columns[-2:]):
        column.justify = "left"
    out = open_console()
    for drift in drifts:
        test = shorten_test_id(drift.test, out.width - _OTHER_COLUMNS - (_LOAD_WIDTH if several else 0))
        rows.add_row(test, *([drift.load] if several else []), *_format_cells(drift))
    out.print(rows)
    if any(drift.trend.undecided for drift in drifts):
        out.print(build_text(f"later runs are compared with the first {REFERENCE_RUNS} runs of the epoch", "dim"))


def _format_cells(drift: DriftRow) -> tuple[RenderableType, ...]:
    newest = [to_value(drift.policy, point.cost) for point in drift.points[-20:]]
    name = format_label(drift.policy.metric.name, drift.policy.stat)
    state = build_text(drift.state, "yellow" if drift.trend.warns else "")
    return (name, str(len(drift.points)), draw_sparkline(newest), state)


def _to_json(drift: DriftRow) -> dict[str, object]:
    return {
        "test": drift.test,
        "load": drift.load,
        "metric": drift.policy.name,
        "runs": len(drift.points),
        "warns": drift.trend.warns,
        "since": drift.trend.since,
        "slowdown": drift.trend.slowdown,
        "missing": drift.trend.missing,
        "undecided": drift.trend.undecided,
        "detectable": drift.trend.detectable,
        "text": drift.state,
        "unit": drift.policy.metric.unit.value,
        "values": [to_value(drift.policy, point.cost) for point in drift.points],
    }
