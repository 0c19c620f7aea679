"""What ``history`` prints: tests with their newest numbers, or the runs of one test with its epochs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, RenderableType

from pytest_ollama_perf.cli.place import find_test
from pytest_ollama_perf.cli.screen import console, day, line, minute, print_json, short, sparkline, table, warn
from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.metric import METRICS, Unit
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.store import Store, open_store
from pytest_ollama_perf.summary import Summary, summarise
from pytest_ollama_perf.verdict.epoch import Acceptance, Change, History, borders
from pytest_ollama_perf.verdict.wording import show

SHOWN = (("tps", ""), ("ttft", "p50"), ("latency", "p50"))
"""The numbers of a run that a list has room for."""

_OTHER_COLUMNS = 62
_UNIT = {Unit.SECONDS: "s", Unit.TOKENS_PER_SECOND: ""}
"""What the name of a number says of its unit; tps is its own."""


def run(options: argparse.Namespace) -> int:
    """Print every test, or the runs of one."""
    if options.limit < 1:
        raise ConfigError(f"--limit {options.limit}: expected 1 or more")
    store = open_store(options.store)
    if options.test is None:
        _tests(store, options)
    else:
        _test(store, find_test(store, options.test), options)
    store.close()
    return 0


def _tests(store: Store, options: argparse.Namespace) -> None:
    histories = {test: store.history(test, limit=options.limit) for test in store.tests()}
    if options.json:
        print_json([_plain_test(store, test, history, options.limit) for test, history in histories.items()])
        return
    out = console()
    if not histories:
        out.print(line(f"no run is stored in {store.name} yet: run pytest with --ollama-save"))
        return
    rows = table("test", "runs", "newest (UTC)", "tps", "", "ttft p50")
    rows.columns[4].justify = "left"
    for test, history in histories.items():
        rows.add_row(short(test, out.width - _OTHER_COLUMNS), *_newest(history))
    out.print(rows)
    warn(text for history in histories.values() for text in history.damaged)


def _newest(history: History) -> tuple[str, ...]:
    if not history.runs:
        return ("0", "-", "-", "", "-")
    found = [summarise(run) for run in history.runs]
    speeds = [number(one, "tps", "") for one in found]
    first_tokens = number(found[-1], "ttft", "p50")
    return (
        str(len(found)),
        day(history.runs[-1].started_at),
        show("tps", speeds[-1]),
        sparkline(speeds),
        show("ttft", first_tokens),
    )


def _test(store: Store, test: str, options: argparse.Namespace) -> None:
    if options.json:
        print_json(_plain_test(store, test, store.history(test, limit=options.limit), options.limit))
        return
    history, waiting = store.history(test, limit=options.limit), store.pending(test, limit=options.limit)
    out = console()
    out.print(line(test, "bold"))
    _epochs(out, history)
    if waiting.runs:
        out.print(line(f"regressed, kept apart until accepted ({len(waiting.runs)}):", "red"))
        out.print(_rows([(run, "regressed") for run in waiting.runs], header=not history.runs))
    if not history.runs and not waiting.runs:
        out.print(line("no run can be read"))
    for bars in _sparklines(history.runs):
        out.print(bars)
    warn(dict.fromkeys((*history.damaged, *waiting.damaged)))


def _epochs(out: Console, history: History) -> None:
    """Print the runs, and before the first run of an epoch why it is one."""
    accepted = {run for item in history.acceptances for run in item.runs}
    group: list[tuple[Run, str]] = []
    header = True
    for stored, reasons in zip(history.runs, borders(history), strict=True):
        if reasons and group:
            out.print(_rows(group, header=header))
            group, header = [], False
        for reason in reasons:
            out.print(line(_border(reason), "yellow"))
        group.append((stored, "accepted" if stored.id in accepted else "saved"))
    if group:
        out.print(_rows(group, header=header))


def _border(reason: Change | Acceptance) -> str:
    if isinstance(reason, Change):
        return f"-- {reason}"
    who = f" by {reason.who}" if reason.who else ""
    return f"-- accepted {minute(reason.at)}{who}: {reason.why}"


def _rows(runs: Sequence[tuple[Run, str]], *, header: bool) -> RenderableType:
    rows = table("started (UTC)", "commit", "kind", "run", "tps", "ttft p50", "latency", header=header, left=4)
    for column, width in zip(rows.columns, (16, 7, 9, 8, 8, 8, 8), strict=True):
        column.min_width = width
    for stored, kind in runs:
        found = summarise(stored)
        numbers = [show(metric, number(found, metric, stat)) for metric, stat in SHOWN]
        head = (line(stored.git_commit[:7] or "-"), kind, line(stored.id[:8]))
        rows.add_row(minute(stored.started_at), *head, *numbers)
    return rows


def _sparklines(runs: Sequence[Run]) -> Iterator[RenderableType]:
    found = [summarise(run) for run in runs]
    for metric, stat in SHOWN if len(runs) > 1 else ():
        values = [number(one, metric, stat) for one in found]
        known = [value for value in values if math.isfinite(value)]
        if known:
            name = f"{metric} {stat}".strip()
            between = f"{show(metric, min(known))} .. {show(metric, max(known))}"
            yield line(f"{name:12} {sparkline(values)}  {between}")


def number(found: Summary, metric: str, stat: str) -> float:
    """Return a number of a summary, ``NaN`` where it does not exist."""
    summary = found.metrics.get(metric)
    value = summary.get(stat) if summary else None
    return math.nan if value is None else value


def _plain_test(store: Store, test: str, history: History, limit: int) -> dict[str, Any]:
    waiting = store.pending(test, limit=limit)
    accepted = {run for item in history.acceptances for run in item.runs}
    edges = borders(history)
    runs = [
        _plain_run(run, "accepted" if run.id in accepted else "saved", [_border(reason)[3:] for reason in reasons])
        for run, reasons in zip(history.runs, edges, strict=True)
    ]
    return {
        "test": test,
        "runs": runs,
        "regressed": [_plain_run(run, "regressed", []) for run in waiting.runs],
        "acceptances": history.acceptances,
        "damaged": list(dict.fromkeys((*history.damaged, *waiting.damaged))),
    }


def _plain_run(run: Run, kind: str, border: Sequence[str]) -> dict[str, Any]:
    found = summarise(run)
    numbers = {
        "_".join(filter(None, (metric, stat, _UNIT[METRICS[metric].unit]))): number(found, metric, stat)
        for metric, stat in SHOWN
    }
    head = {"run": run.id, "started_at": run.started_at, "git_commit": run.git_commit, "kind": kind}
    return head | {"epoch_starts": list(border), "requests": found.requests, "ok": found.ok} | numbers
