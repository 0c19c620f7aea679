"""``pytest-ollama-perf show``: one stored run, whole."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from pytest_ollama_perf.cli.common import (
    add_store_options,
    build_table,
    build_text,
    find_run,
    format_minute,
    open_console,
    print_json,
)
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.workload import Workload, collect_identity_fields, compute_identity
from pytest_ollama_perf.metrics.definitions import METRICS
from pytest_ollama_perf.metrics.format import format_count, format_seconds, format_value
from pytest_ollama_perf.metrics.summary import Summary, summarise
from pytest_ollama_perf.store import open_store


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the description and the arguments of ``show``."""
    parser.description = "Show one run: its load, its server, its numbers."
    parser.add_argument("wanted", metavar="RUN", help="the id of a run (or its beginning) or the file of a record")
    add_store_options(parser)
    parser.set_defaults(run=main)


_SHOWN_STATS = ("p50", "p95", "p99", "min", "max")


def main(options: argparse.Namespace) -> int:
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
