"""Cold starts as text: each repeat, the medians, the limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pytest_ollama_perf.finding.coldstart import NUMBERS, ColdStart
from pytest_ollama_perf.finding.held import shown
from pytest_ollama_perf.report.findings import lines
from pytest_ollama_perf.report.layout import clean
from pytest_ollama_perf.report.rows import fitted
from pytest_ollama_perf.report.sweep import limits
from pytest_ollama_perf.verdict.wording import show

_INDENT = "  "
_HEADS = ("load time", "cold ttft", "latency", "warm ttft", "latency", "ratio")
_METRICS = ("load_time", "ttft", "latency", "ttft", "latency", "")


@lines.register
def _(finding: ColdStart, width: int) -> list[str]:
    text = fitted(list(_rows(finding)), width)
    return [*text, *limits(finding.held, width)]


def _rows(finding: ColdStart) -> Iterator[tuple[str, ...]]:
    yield f"{_INDENT}{clean(finding.model, 24)}", *_HEADS
    for turn, start in enumerate(finding.starts, 1):
        yield f"{_INDENT}start {turn}", *_numbers(start.get)
    if len(finding.starts) > 1:
        yield f"{_INDENT}median", *_numbers(finding.get)


def _numbers(get: Callable[[str], float | None]) -> Iterator[str]:
    for name, metric in zip(NUMBERS, _METRICS, strict=True):
        value = get(name)
        yield show(metric, value) if metric else ("-" if value is None else shown(value, "x"))
