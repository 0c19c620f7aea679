"""A search for the largest bearable concurrency as text: one line a probe, in rising order, and the first breach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_ollama_perf.finding.bearable import Bearable, Probe
from pytest_ollama_perf.report.findings import lines
from pytest_ollama_perf.report.layout import clean, table, wrap
from pytest_ollama_perf.report.sweep import limits
from pytest_ollama_perf.verdict.wording import label, percent, show

_INDENT = "  "
_HANGING = "    "


@lines.register
def _(finding: Bearable, width: int) -> list[str]:
    text = table(list(_rows(finding.probes)), 3)
    breach = finding.breach
    if breach:
        told = f"first breach: {breach.concurrency} at once: {clean(breach.reason)}"
    else:
        told = f"no breach up to {finding.maximum} at once; raise maximum to find one"
    return [*text, *wrap(told, width, _INDENT, _HANGING), *limits(finding.held, width)]


def _rows(probes: Sequence[Probe]) -> Iterator[tuple[str, ...]]:
    yield f"{_INDENT}  at once", "ok", "tps", "ttft p95", "latency p95", "requests", "decided by"
    for probe in sorted(probes, key=lambda probe: probe.concurrency):
        mark = " " if probe.bearable else "x"
        requests = f"{probe.runs} x {probe.requests // probe.runs}" if probe.runs > 1 else str(probe.requests)
        yield (
            f"{_INDENT}{mark} {probe.concurrency}",
            percent(probe.success_rate).replace(" ", ""),
            show("tps", probe.tps).removesuffix(" /s"),
            show("ttft", probe.ttft_p95_s),
            show("latency", probe.latency_p95_s),
            requests,
            f"{label(probe.metric, probe.stat)}{'' if probe.sure else '?'}",
        )
