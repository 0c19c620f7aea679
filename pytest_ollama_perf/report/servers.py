"""The text of several servers of one load: a line for each, and which stands out."""

from __future__ import annotations

from pytest_ollama_perf.finding.servers import ServerNumbers, Servers
from pytest_ollama_perf.report.facts import public_url
from pytest_ollama_perf.report.findings import lines
from pytest_ollama_perf.report.layout import clean, cut_middle, wrap
from pytest_ollama_perf.report.rows import INDENT, fitted
from pytest_ollama_perf.verdict.wording import number, percent, show

_HEADS = ("", "sent", "share", "errors", "tps", "tokens/s", "ttft p50", "p95")
_NAME = 22


@lines.register
def _(finding: Servers, width: int) -> list[str]:
    """A row for each server; then the one that got more than its part, and those that are slow."""
    head = f"{INDENT}{len(finding.servers)} servers{' behind one address' if finding.behind else ''}:"
    rows = [_HEADS, *map(_row, finding.servers)]
    told = [f"uneven: {_most(finding)}"] if finding.uneven else []
    told += [f"slow: {text}" for text in finding.slow]
    said = [line for text in told for line in wrap(clean(text), width, INDENT, INDENT * 2)]
    return [head, *fitted(rows, width), *said]


def _row(one: ServerNumbers) -> tuple[str, ...]:
    name = cut_middle(public_url(one.name).removeprefix("http://"), _NAME)
    return (
        f"{INDENT}{'x' if one.down else ' '} {name}",
        str(one.requests),
        percent(one.share).replace(" ", ""),
        str(one.errors),
        show("tps", one.tps),
        number(one.throughput),
        show("ttft", one.ttft_p50),
        show("ttft", one.ttft_p95),
    )


def _most(finding: Servers) -> str:
    one = next(one for one in finding.servers if one.name == finding.uneven)
    return f"{public_url(one.name)} got {percent(one.share)} of the requests, where {percent(one.expected)} were due"
