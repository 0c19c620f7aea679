"""The course of a load as text: one line a window."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_ollama_perf.finding.timeline import Span, Timeline
from pytest_ollama_perf.report.findings import lines
from pytest_ollama_perf.report.rows import fitted
from pytest_ollama_perf.verdict.wording import number, percent, show

_INDENT = "  "


@lines.register
def _(finding: Timeline, width: int) -> list[str]:
    text = fitted(list(_rows(finding)), width)
    if finding.change is not None:
        text.append(f"{_INDENT}throughput in the last third: {percent(finding.change, signed=True)} against the first")
    return text


def _rows(finding: Timeline) -> Iterator[tuple[str, ...]]:
    moving = any(span.level is not None for span in finding.spans)
    yield f"{_INDENT}from", *(["load"] if moving else []), "requests", "tokens/s", "ttft p50", "p95", "errors"
    for span in finding.spans:
        yield f"{_INDENT}{_time(span.begin_s)}", *([_load(span)] if moving else []), *_numbers(span)


def _numbers(span: Span) -> tuple[str, ...]:
    ttft = show("ttft", span.ttft_p50_s), show("ttft", span.ttft_p95_s)
    return str(span.requests), number(span.throughput), *ttft, str(span.failed)


def _load(span: Span) -> str:
    return "-" if span.level is None else number(span.level, 2)


def _time(seconds_s: float) -> str:
    """Return ``1:30:00``, ``1:30`` or ``2.5 s``."""
    if not float(seconds_s).is_integer():
        return f"0:{seconds_s:04.1f}"
    minutes, rest = divmod(int(seconds_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
