"""``pytest-ollama-perf history``: the stored runs of all tests or of one."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from rich.console import Console, RenderableType

from pytest_ollama_perf.analysis.epochs import Acceptance, Change, StoredRuns, find_epoch_starts
from pytest_ollama_perf.cli.common import (
    add_store_options,
    build_table,
    build_text,
    draw_sparkline,
    find_run,
    find_test,
    format_day,
    format_minute,
    label_loads,
    open_console,
    print_json,
    shorten_test_id,
    warn,
)
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.workload import Workload, collect_identity_fields, compute_identity
from pytest_ollama_perf.metrics import METRICS, Unit, format_count, format_seconds, format_value
from pytest_ollama_perf.metrics.summary import Summary, summarise
from pytest_ollama_perf.store import open_store
from pytest_ollama_perf.store.base import Store


def configure_history(parser: argparse.ArgumentParser) -> None:
    """Add the description and the arguments of ``history``."""
    parser.description = (
        "Show the stored runs: one line for each test and load, or all runs of one test. Times are UTC. "
        "The exit status is 2 if a record cannot be read."
    )
    parser.add_argument(
        "test", nargs="?", metavar="TEST", help="a node id or the end of one, for example test_chat_speed"
    )
    parser.add_argument(
        "--limit", type=int, default=20, metavar="N", help="show the newest N runs of each load (default: 20)"
    )
    add_store_options(parser)
    parser.set_defaults(run=run_history)


LISTED_METRICS = (("tps", ""), ("ttft", "p50"), ("latency", "p50"))
"""The metrics of a run that a list shows."""

_OTHER_COLUMNS = 62
_LOAD_WIDTH = 16
_UNIT_SUFFIXES = {Unit.SECONDS: "s", Unit.TOKENS_PER_SECOND: ""}
"""The unit in the name of a number in JSON; tps is a unit itself."""


def run_history(options: argparse.Namespace) -> int:
    """Print every test, or the runs of one; return 2 if a record could not be read."""
    if options.limit < 1:
        raise ConfigError(f"--limit {options.limit}: expected 1 or more")
    store = open_store(options.store)
    tests = store.list_tests() if options.test is None else (find_test(store, options.test),)
    histories = [_read_test(store, test, options.limit) for test in tests]
    if options.json:
        found = [_build_test_json(history) for history in histories]
        print_json(found if options.test is None else found[0])
    elif options.test is None:
        _print_tests(store, histories)
    else:
        _print_test(histories[0])
    store.close()
    damaged = list(dict.fromkeys(text for history in histories for text in history.damaged))
    warn(damaged)
    return 2 if damaged else 0


class LoadHistory(NamedTuple):
    """The runs of one load of a test, and its label if the test has several loads."""

    label: str
    saved: StoredRuns
    waiting: tuple[Run, ...]


class TestHistory(NamedTuple):
    """All loads of a test: the levels of a sweep, cold and warm, or just one."""

    test: str
    loads: tuple[LoadHistory, ...]
    waiting: tuple[Run, ...]
    acceptances: tuple[Acceptance, ...]
    damaged: tuple[str, ...]


def _read_test(store: Store, test: str, limit: int) -> TestHistory:
    pending = store.read_pending(test, limit=limit)
    saved = {
        identity: store.read_history(test, identity=identity, limit=limit) for identity in store.list_workloads(test)
    }
    saved = saved or {"": store.read_history(test, limit=limit)}
    waiting: dict[str, list[Run]] = {identity: [] for identity in saved}
    for run in pending.runs:
        waiting.setdefault(compute_identity(run.workload), []).append(run)
    known = {name: (*history.runs, *waiting[name]) for name, history in saved.items()}
    labels = label_loads({name: runs[-1].workload for name, runs in known.items() if runs})
    loads = [LoadHistory(labels[name], saved[name], tuple(waiting[name])) for name in saved if name in labels]
    damaged = [text for history in (*saved.values(), pending) for text in history.damaged]
    return TestHistory(test, tuple(loads), pending.runs, pending.acceptances, tuple(dict.fromkeys(damaged)))


def _print_tests(store: Store, histories: Sequence[TestHistory]) -> None:
    out = open_console()
    if not histories:
        out.print(build_text(f"no run is stored in {store.name} yet: run pytest with --ollama-save"))
        return
    several = any(len(history.loads) > 1 for history in histories)
    rows = build_table("test", *(["load"] if several else []), "runs", "newest (UTC)", "tps", "", "ttft p50")
    rows.columns[-2].justify = "left"
    if several:
        rows.columns[1].justify = "left"
    width = out.width - _OTHER_COLUMNS - (_LOAD_WIDTH if several else 0)
    for history in histories:
        for load in history.loads or (LoadHistory("", StoredRuns(), ()),):
            label = [load.label] if several else []
            rows.add_row(shorten_test_id(history.test, width), *label, *_format_newest(load.saved))
    out.print(rows)


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


def _print_test(history: TestHistory) -> None:
    out = open_console()
    out.print(build_text(history.test, "bold"))
    for load in history.loads:
        if load.label:
            out.print(build_text(f"{load.label}:", "bold"))
        _print_epochs(out, load.saved)
        if load.waiting:
            out.print(build_text(f"regressed, not part of the baseline until accepted ({len(load.waiting)}):", "red"))
            out.print(_build_rows([(run, "regressed") for run in load.waiting], header=not load.saved.runs))
        for bars in _draw_sparklines(load.saved.runs):
            out.print(bars)
    if not history.loads:
        out.print(build_text("no run can be read"))


def _print_epochs(out: Console, history: StoredRuns) -> None:
    """Print the runs, and before the first run of an epoch what started it."""
    accepted = {run for item in history.acceptances for run in item.runs}
    group: list[tuple[Run, str]] = []
    header = True
    for stored, reasons in zip(history.runs, find_epoch_starts(history), strict=True):
        if reasons and group:
            out.print(_build_rows(group, header=header))
            group, header = [], False
        for reason in reasons:
            out.print(build_text(f"-- {_describe_border(reason)}", "yellow"))
        group.append((stored, "accepted" if stored.id in accepted else "saved"))
    if group:
        out.print(_build_rows(group, header=header))


def _describe_border(reason: Change | Acceptance) -> str:
    if isinstance(reason, Change):
        return str(reason)
    who = f" by {reason.who}" if reason.who else ""
    return f"accepted {format_minute(reason.at)}{who}: {reason.why}"


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
    """Return a number of a summary, ``NaN`` if it does not exist."""
    summary = found.metrics.get(metric)
    value = summary.get(stat) if summary else None
    return math.nan if value is None else value


def _build_test_json(history: TestHistory) -> dict[str, Any]:
    return {
        "test": history.test,
        "runs": [run for load in history.loads for run in _list_saved_json(load)],
        "regressed": [
            {"load": load.label, **_build_run_json(run, "regressed", [])}
            for load in history.loads
            for run in load.waiting
        ],
        "acceptances": history.acceptances,
        "damaged": history.damaged,
    }


def _list_saved_json(load: LoadHistory) -> list[dict[str, Any]]:
    accepted = {run for item in load.saved.acceptances for run in item.runs}
    edges = find_epoch_starts(load.saved)
    return [
        {"load": load.label}
        | _build_run_json(
            run, "accepted" if run.id in accepted else "saved", [_describe_border(reason) for reason in reasons]
        )
        for run, reasons in zip(load.saved.runs, edges, strict=True)
    ]


def _build_run_json(run: Run, kind: str, border: Sequence[str]) -> dict[str, Any]:
    found = summarise(run)
    numbers = {
        "_".join(filter(None, (metric, stat, _UNIT_SUFFIXES[METRICS[metric].unit]))): get_number(found, metric, stat)
        for metric, stat in LISTED_METRICS
    }
    head = {"run": run.id, "started_at": run.started_at, "git_commit": run.git_commit, "kind": kind}
    return head | {"epoch_starts": list(border), "requests": found.requests, "ok": found.ok} | numbers


def configure_show(parser: argparse.ArgumentParser) -> None:
    """Add the description and the arguments of ``show``."""
    parser.description = "Show one run: its load, its server, its numbers."
    parser.add_argument("wanted", metavar="RUN", help="the id of a run (or its beginning) or the file of a record")
    add_store_options(parser)
    parser.set_defaults(run=run_show)


_SHOWN_STATS = ("p50", "p95", "p99", "min", "max")


def run_show(options: argparse.Namespace) -> int:
    """Print the run."""
    store = open_store(options.store)
    found = find_run(store, options.wanted)
    store.close()
    if options.json:
        print_json(_to_json(found))
    else:
        _print_run(found)
    return 0


def _print_run(found: Run) -> None:
    summary = summarise(found)
    facts = build_table("", "", header=False, left=2)
    for name, text in _list_facts(found, summary):
        facts.add_row(build_text(name, "dim"), build_text(text))
    out = open_console()
    out.print(build_text(found.test or "(no test named)", "bold"))
    out.print(facts)
    if not summary.metrics:
        out.print(build_text("no request succeeded: there are no numbers"))
        return
    numbers = build_table("metric", "value", *_SHOWN_STATS)
    for name, metric in summary.metrics.items():
        stats = (format_value(name, metric.stats.get(stat)) for stat in _SHOWN_STATS)
        numbers.add_row(
            name, format_value(name, metric.value if metric.value is not None else metric.stats.get("mean")), *stats
        )
    out.print(numbers)
    out.print(build_text("value is the mean where the metric has one value per request", "dim"))


def _list_facts(found: Run, summary: Summary) -> Iterator[tuple[str, str]]:
    yield "run", found.id
    yield "started", f"{format_minute(found.started_at)} UTC"
    yield "commit", found.git_commit or "unknown"
    yield "session", found.session or "unknown"
    yield "server", _join_pairs(_describe_fingerprint(found))
    yield "load", _join_pairs(_describe_workload(found.workload))
    yield "client", _join_pairs(found.fingerprint.client)
    yield "requests", f"{summary.requests} measured, {summary.ok} ok, {summary.warmup} warm-up dropped"
    failed = {name: number for name, number in summary.outcomes.items() if name != "ok"}
    if failed:
        yield "failed", ", ".join(format_count(number, name) for name, number in failed.items())
    if found.load_time_s is not None:
        yield "model load", format_seconds(found.load_time_s)
    if found.aborted:
        yield "aborted", found.aborted


def _describe_fingerprint(found: Run) -> dict[str, str]:
    prints = found.fingerprint
    share = "" if prints.vram_share is None else f"{100 * prints.vram_share:.3g} %"
    digest = prints.model_digest.removeprefix("sha256:")[:12]
    named = {
        "ollama": prints.server_version,
        "model": prints.model,
        "digest": digest,
        "quantization": prints.quantization,
    }
    named |= {"gpu": prints.gpu, "driver": prints.driver, "gpu offload": share}
    return {name: text for name, text in named.items() if text} | prints.server_env


def _describe_workload(workload: Workload) -> dict[str, str]:
    """Return what makes the load: how much of it, and every field that is not as usual."""
    usual = collect_identity_fields(Workload(model=workload.model))
    always = {"endpoint", "concurrency", "requests", "num_predict", "num_ctx"}
    return {
        name: str(getattr(value, "value", value))
        for name, value in collect_identity_fields(workload).items()
        if value is not None and (name in always or value != usual[name])
    }


def _join_pairs(pairs: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in pairs.items()) or "unknown"


def _to_json(found: Run) -> dict[str, Any]:
    summary = summarise(found)
    carried = {name: getattr(found, name) for name in found.__struct_fields__ if name != "samples"}
    numbers = {
        name: {"unit": METRICS[name].unit.value, "value": metric.value, **metric.stats}
        for name, metric in summary.metrics.items()
    }
    counted = msgspec.to_builtins(summary)
    return carried | {"identity": compute_identity(found.workload), "summary": counted | {"metrics": numbers}}
