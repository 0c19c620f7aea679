"""``pytest-ollama-perf history``: what is stored, of every test or of one."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, RenderableType

from pytest_ollama_perf.analysis.epochs import Acceptance, Change, StoredRuns, find_epoch_starts
from pytest_ollama_perf.cli.common import (
    add_store_options,
    build_table,
    build_text,
    draw_sparkline,
    find_test,
    format_day,
    format_minute,
    open_console,
    print_json,
    shorten_test_id,
    warn,
)
from pytest_ollama_perf.core.errors import ConfigError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.metrics.definitions import METRICS, Unit
from pytest_ollama_perf.metrics.format import format_value
from pytest_ollama_perf.metrics.summary import Summary, summarise
from pytest_ollama_perf.store import open_store
from pytest_ollama_perf.store.base import Store


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``history`` to the command line."""
    parser = subparsers.add_parser(
        "history",
        help="the stored runs of every test, or of one",
        description="Show the stored runs: a line for every test or, of one test, a line for every run. Times are UTC.",
    )
    parser.add_argument("test", nargs="?", metavar="TEST", help="a node id, or the end of one, as in test_chat_speed")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="how many runs, the newest (default 20)")
    add_store_options(parser)
    parser.set_defaults(run=main)


def main(options: argparse.Namespace) -> int:
    """Show what is stored. What that needs is imported here: other commands start without it."""
    return run_history(options)


LISTED_METRICS = (("tps", ""), ("ttft", "p50"), ("latency", "p50"))
"""The numbers of a run that a list has room for."""

_OTHER_COLUMNS = 62
_UNIT_SUFFIXES = {Unit.SECONDS: "s", Unit.TOKENS_PER_SECOND: ""}
"""What the name of a number says of its unit; tps is its own."""


def run_history(options: argparse.Namespace) -> int:
    """Print every test, or the runs of one."""
    if options.limit < 1:
        raise ConfigError(f"--limit {options.limit}: expected 1 or more")
    store = open_store(options.store)
    if options.test is None:
        _print_tests(store, options)
    else:
        _print_test(store, find_test(store, options.test), options)
    store.close()
    return 0


def _print_tests(store: Store, options: argparse.Namespace) -> None:
    histories = {test: store.read_history(test, limit=options.limit) for test in store.list_tests()}
    if options.json:
        print_json([_build_test_json(store, test, history, options.limit) for test, history in histories.items()])
        return
    out = open_console()
    if not histories:
        out.print(build_text(f"no run is stored in {store.name} yet: run pytest with --ollama-save"))
        return
    rows = build_table("test", "runs", "newest (UTC)", "tps", "", "ttft p50")
    rows.columns[4].justify = "left"
    for test, history in histories.items():
        rows.add_row(shorten_test_id(test, out.width - _OTHER_COLUMNS), *_format_newest(history))
    out.print(rows)
    warn(text for history in histories.values() for text in history.damaged)


def _format_newest(history: StoredRuns) -> tuple[str, ...]:
    if not history.runs:
        return ("0", "-", "-", "", "-")
    found = [summarise(run) for run in history.runs]
    speeds = [get_number(one, "tps", "") for one in found]
    first_tokens = get_number(found[-1], "ttft", "p50")
    return (
        str(len(found)),
        format_day(history.runs[-1].started_at),
        format_value("tps", speeds[-1]),
        draw_sparkline(speeds),
        format_value("ttft", first_tokens),
    )


def _print_test(store: Store, test: str, options: argparse.Namespace) -> None:
    if options.json:
        print_json(_build_test_json(store, test, store.read_history(test, limit=options.limit), options.limit))
        return
    history, waiting = store.read_history(test, limit=options.limit), store.read_pending(test, limit=options.limit)
    out = open_console()
    out.print(build_text(test, "bold"))
    _print_epochs(out, history)
    if waiting.runs:
        out.print(build_text(f"regressed, kept apart until accepted ({len(waiting.runs)}):", "red"))
        out.print(_build_rows([(run, "regressed") for run in waiting.runs], header=not history.runs))
    if not history.runs and not waiting.runs:
        out.print(build_text("no run can be read"))
    for bars in _draw_sparklines(history.runs):
        out.print(bars)
    warn(dict.fromkeys((*history.damaged, *waiting.damaged)))


def _print_epochs(out: Console, history: StoredRuns) -> None:
    """Print the runs, and before the first run of an epoch why it is one."""
    accepted = {run for item in history.acceptances for run in item.runs}
    group: list[tuple[Run, str]] = []
    header = True
    for stored, reasons in zip(history.runs, find_epoch_starts(history), strict=True):
        if reasons and group:
            out.print(_build_rows(group, header=header))
            group, header = [], False
        for reason in reasons:
            out.print(build_text(_format_border(reason), "yellow"))
        group.append((stored, "accepted" if stored.id in accepted else "saved"))
    if group:
        out.print(_build_rows(group, header=header))


def _format_border(reason: Change | Acceptance) -> str:
    if isinstance(reason, Change):
        return f"-- {reason}"
    who = f" by {reason.who}" if reason.who else ""
    return f"-- accepted {format_minute(reason.at)}{who}: {reason.why}"


def _build_rows(runs: Sequence[tuple[Run, str]], *, header: bool) -> RenderableType:
    rows = build_table("started (UTC)", "commit", "kind", "run", "tps", "ttft p50", "latency", header=header, left=4)
    for column, width in zip(rows.columns, (16, 7, 9, 8, 8, 8, 8), strict=True):
        column.min_width = width
    for stored, kind in runs:
        found = summarise(stored)
        numbers = [format_value(metric, get_number(found, metric, stat)) for metric, stat in LISTED_METRICS]
        head = (build_text(stored.git_commit[:7] or "-"), kind, build_text(stored.id[:8]))
        rows.add_row(format_minute(stored.started_at), *head, *numbers)
    return rows


def _draw_sparklines(runs: Sequence[Run]) -> Iterator[RenderableType]:
    found = [summarise(run) for run in runs]
    for metric, stat in LISTED_METRICS if len(runs) > 1 else ():
        values = [get_number(one, metric, stat) for one in found]
        known = [value for value in values if math.isfinite(value)]
        if known:
            name = f"{metric} {stat}".strip()
            between = f"{format_value(metric, min(known))} .. {format_value(metric, max(known))}"
            yield build_text(f"{name:12} {draw_sparkline(values)}  {between}")


def get_number(found: Summary, metric: str, stat: str) -> float:
    """Return a number of a summary, ``NaN`` where it does not exist."""
    summary = found.metrics.get(metric)
    value = summary.get(stat) if summary else None
    return math.nan if value is None else value


def _build_test_json(store: Store, test: str, history: StoredRuns, limit: int) -> dict[str, Any]:
    waiting = store.read_pending(test, limit=limit)
    accepted = {run for item in history.acceptances for run in item.runs}
    edges = find_epoch_starts(history)
    runs = [
        _build_run_json(
            run, "accepted" if run.id in accepted else "saved", [_format_border(reason)[3:] for reason in reasons]
        )
        for run, reasons in zip(history.runs, edges, strict=True)
    ]
    return {
        "test": test,
        "runs": runs,
        "regressed": [_build_run_json(run, "regressed", []) for run in waiting.runs],
        "acceptances": history.acceptances,
        "damaged": list(dict.fromkeys((*history.damaged, *waiting.damaged))),
    }


def _build_run_json(run: Run, kind: str, border: Sequence[str]) -> dict[str, Any]:
    found = summarise(run)
    numbers = {
        "_".join(filter(None, (metric, stat, _UNIT_SUFFIXES[METRICS[metric].unit]))): get_number(found, metric, stat)
        for metric, stat in LISTED_METRICS
    }
    head = {"run": run.id, "started_at": run.started_at, "git_commit": run.git_commit, "kind": kind}
    return head | {"epoch_starts": list(border), "requests": found.requests, "ok": found.ok} | numbers
