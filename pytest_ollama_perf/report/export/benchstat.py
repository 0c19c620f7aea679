"""The text that Go's benchstat reads, in the lines that Ollama's own bench prints: one set of them for each request.

``test`` and ``load`` are benchstat's configuration keys, so that each test gets a table of its own; what may differ
between two files that are compared, such as the server's version, stands in comments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_ollama_perf.report import series
from pytest_ollama_perf.report.json_report import Document, LoadEntry, samples_of
from pytest_ollama_perf.report.layout import clean
from pytest_ollama_perf.sample import Sample, Stage
from pytest_ollama_perf.summary.values import decoded, prefilled


def text(document: Document) -> bytes:
    """Return the lines of all measured requests, and for each load the share of those that failed.

    benchstat takes no infinite time, so a failed request has no lines of its own: look at ``failed/request`` first.
    """
    lines = [line for test in document.tests for line in _test(clean(test.test), test.loads)]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")


def _test(test: str, loads: tuple[LoadEntry, ...]) -> Iterator[str]:
    yield f"test: {test}"
    several = any(found := series.apart(loads))
    for load, name in zip(loads, found, strict=True):
        prints = load.fingerprint
        yield f"# ollama {prints.server_version or 'unknown'}, {clean(load.model)} {prints.quantization}".rstrip()
        yield from (f"load: {name}",) if several else ()
        yield from (f"BenchmarkModel/name={_word(load.model)}/step={step}" for step in _of_load(load))
    yield from ("load:",) if several else ()


def _of_load(load: LoadEntry) -> Iterator[str]:
    for sample in samples_of(load):
        if sample.stage is Stage.MEASURED and sample.ok:
            yield from _steps(sample)
    if load.requests:
        yield f"errors {load.requests} {(load.requests - load.ok) / load.requests:.4f} failed/request"


def _steps(sample: Sample) -> Iterator[str]:
    for step, (tokens, seconds) in (("prefill", prefilled(sample)), ("generate", decoded(sample))):
        if tokens:
            yield f"{step} {tokens} {seconds * 1e9 / tokens:.2f} ns/token {tokens / seconds:.2f} token/sec"
    if sample.first_token_ns is not None:
        yield f"ttft 1 {sample.first_token_ns - sample.start_ns} ns/request"
    if sample.counters.load_duration_ns:
        yield f"load 1 {sample.counters.load_duration_ns} ns/request"
    yield f"total 1 {sample.done_ns - sample.start_ns} ns/request"


def _word(model: str) -> str:
    """Return a model's name as a part of a benchmark's name, which holds no spaces and no slashes of its own."""
    return re.sub(r"[\s/=]+", "_", clean(model, 200)) or "unknown"
