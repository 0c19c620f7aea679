"""What ``show`` prints: one run with its load, its server and every number."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from pytest_ollama_perf.cli.place import find_run
from pytest_ollama_perf.cli.screen import console, line, minute, print_json, table
from pytest_ollama_perf.metric import METRICS
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.store import open_store
from pytest_ollama_perf.summary import Summary, summarise
from pytest_ollama_perf.verdict.wording import count, seconds, show
from pytest_ollama_perf.workload import Workload, asked, identity

_STATS = ("p50", "p95", "p99", "min", "max")


def run(options: argparse.Namespace) -> int:
    """Print the run."""
    store = open_store(options.store)
    found = find_run(store, options.wanted)
    store.close()
    if options.json:
        print_json(_plain(found))
    else:
        _print(found)
    return 0


def _print(found: Run) -> None:
    summary = summarise(found)
    facts = table("", "", header=False, left=2)
    for name, text in _facts(found, summary):
        facts.add_row(line(name, "dim"), line(text))
    out = console()
    out.print(line(found.test or "(no test named)", "bold"))
    out.print(facts)
    if not summary.metrics:
        out.print(line("no request succeeded: there are no numbers"))
        return
    numbers = table("metric", "value", *_STATS)
    for name, metric in summary.metrics.items():
        stats = (show(name, metric.stats.get(stat)) for stat in _STATS)
        numbers.add_row(
            name, show(name, metric.value if metric.value is not None else metric.stats.get("mean")), *stats
        )
    out.print(numbers)
    out.print(line("value is the mean where the metric has one value per request", "dim"))


def _facts(found: Run, summary: Summary) -> Iterator[tuple[str, str]]:
    yield "run", found.id
    yield "started", f"{minute(found.started_at)} UTC"
    yield "commit", found.git_commit or "unknown"
    yield "session", found.session or "unknown"
    yield "server", _joined(_fingerprint(found))
    yield "load", _joined(_changed(found.workload))
    yield "client", _joined(found.fingerprint.client)
    yield "requests", f"{summary.requests} measured, {summary.ok} ok, {summary.warmup} warm-up dropped"
    failed = {name: number for name, number in summary.outcomes.items() if name != "ok"}
    if failed:
        yield "failed", ", ".join(count(number, name) for name, number in failed.items())
    if found.load_time_s is not None:
        yield "model load", seconds(found.load_time_s)
    if found.aborted:
        yield "aborted", found.aborted


def _fingerprint(found: Run) -> dict[str, str]:
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


def _changed(workload: Workload) -> dict[str, str]:
    """Return what makes the load: how much of it, and every field that is not as usual."""
    usual = asked(Workload(model=workload.model))
    always = {"endpoint", "concurrency", "requests", "num_predict", "num_ctx"}
    return {
        name: str(getattr(value, "value", value))
        for name, value in asked(workload).items()
        if value is not None and (name in always or value != usual[name])
    }


def _joined(pairs: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in pairs.items()) or "unknown"


def _plain(found: Run) -> dict[str, Any]:
    summary = summarise(found)
    carried = {name: getattr(found, name) for name in found.__struct_fields__ if name != "samples"}
    numbers = {
        name: {"unit": METRICS[name].unit.value, "value": metric.value, **metric.stats}
        for name, metric in summary.metrics.items()
    }
    counted = msgspec.to_builtins(summary)
    return carried | {"identity": identity(found.workload), "summary": counted | {"metrics": numbers}}
