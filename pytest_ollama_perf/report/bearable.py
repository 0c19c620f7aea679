"""A search for the largest bearable concurrency as text: one line a probe, in rising order, and the first breach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_ollama_perf.finding.bearable import Bearable, Probe
from pytest_ollama_perf.report.findings import lines
from pytest_ollama_perf.report.layout import clean, wrap
from pytest_ollama_perf.report.rows import fitted
from pytest_ollama_perf.report.sweep import limits
from pytest_ollama_perf.verdict.wording import label, percent, show

_INDENT = "  "
_HANGING = "    "


@lines.register
def _(finding: Bearable, width: int) -> list[str]:
    text = fitted(list(_rows(finding.probes)), width) if finding.probes else []
    if any(not probe.sure for probe in finding.probes):
        text.append(f"{_INDENT}?: too short to be sure; raise requests or repeats")
    told = _border(finding)
    return [*text, *wrap(told, width, _INDENT, _HANGING), *limits(finding.held, width)]


def _border(finding: Bearable) -> str:
    if breach := finding.breach:
        return f"first breach: {breach.concurrency} at once: {clean(breach.reason)}"
    if finding.concurrency < finding.maximum:
        return "the search ended before a breach was found"
    return f"no breach up to {finding.maximum} at once; raise maximum to find one"


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
