"""What experiments found, as lines of text: one function for each kind of finding, listed in ``FINDING_RENDERERS``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pytest_ollama_perf.analysis import BoundCheck, Finding, format_quantity
from pytest_ollama_perf.analysis.ab import ABComparison
from pytest_ollama_perf.analysis.cold_warm import COLD_WARM_METRICS, ColdStart
from pytest_ollama_perf.analysis.load_profile import Servers, ServerSummary, Timeline, TimelineWindow
from pytest_ollama_perf.analysis.scaling import LOAD_AXES, Curve, Sweep, SweepPoint, format_position
from pytest_ollama_perf.analysis.sustained import MaxConcurrency, Probe
from pytest_ollama_perf.core.verdict import FAILING_STATUSES
from pytest_ollama_perf.metrics import (
    format_count,
    format_label,
    format_number,
    format_percent,
    format_seconds,
    format_value,
)
from pytest_ollama_perf.report.facts import redact_url
from pytest_ollama_perf.report.tables import INDENT, build_change_rows, clean, fit_table, truncate_middle, wrap


def render_finding(finding: Finding, width: int) -> list[str]:
    """Return ``finding`` as lines of at most ``width`` columns, indented by two.

    Raises:
        TypeError: ``FINDING_RENDERERS`` has no function for it.
    """
    if renderer := FINDING_RENDERERS.get(type(finding)):
        return renderer(finding, width)
    raise TypeError(f"no renderer for {type(finding).__name__}: add it to FINDING_RENDERERS")


def render_findings(findings: Iterable[Finding], width: int) -> list[str]:
    """Return the lines of every finding, an empty line before each."""
    return [line for finding in findings for line in ("", *render_finding(finding, width))]


_AXIS_LABELS = {"concurrency": "clients", "rate": "req/s"}


def _render_sweep(finding: Sweep, width: int) -> list[str]:
    text: list[str] = []
    for curve in finding.curves:
        text += [""] if text else []
        if curve.at:
            text += wrap(clean(format_position(curve.at)), width, INDENT)
        text += _fit_nonempty_columns(list(_build_curve_rows(finding.axis, curve)), width)
        text += [
            line
            for description in _describe_curve(finding.axis, curve)
            for line in wrap(clean(description), width, INDENT, INDENT * 2)
        ]
    return [*text, *render_limits(finding.checks, width)]


def render_limits(held: Sequence[BoundCheck], width: int) -> list[str]:
    """Return the limits on what an experiment found as a table, a cross at those that are broken."""
    if not held:
        return []
    rows = [("", "limit", "found")]
    for each in held:
        mark = "x" if each.status in FAILING_STATUSES else " "
        found = "-" if each.value is None else format_quantity(each.value, each.unit)
        rows.append(
            (f"{INDENT}{mark} {clean(each.name, 40)}", f"{each.op} {format_quantity(each.bound, each.unit)}", found)
        )
    return ["", *fit_table(rows, width)]


def _fit_nonempty_columns(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return ``rows``, below two lines of headings, as a table without empty columns; nothing without rows."""
    if len(rows) <= 2:
        return []
    kept = [column for column in range(len(rows[0])) if any(row[column] for row in rows[2:])]
    return fit_table([[row[column] for column in kept] for row in rows], width)


def _build_curve_rows(axis: str, curve: Curve) -> Iterator[tuple[str, ...]]:
    yield "", "", "", "tok/s", "tok/s", "", "", "ttft", "ttft", "lat.", "queue", ""
    name = INDENT + _AXIS_LABELS.get(axis, axis)
    yield name, "ok", "tokens", "each", "system", "eff.", "req/s", "p50", "p95", "p95", "mean", "wall"
    if curve.single and curve.single.single:
        yield _build_sweep_row("1 alone" if axis == "rate" else "1", curve.single)
    for level in curve.levels:
        yield _build_sweep_row(clean(_format_axis_value(level.at[axis]), 20), level)


def _format_axis_value(value: float | str) -> str:
    return value if isinstance(value, str) else format_number(value, 9)


def _build_sweep_row(name: str, level: SweepPoint) -> tuple[str, ...]:
    return (
        f"{INDENT}{name}",
        format_percent(level.success_rate).replace(" ", ""),
        str(level.output_tokens) if level.output_tokens else "",
        _format_rate(level.tps),
        _format_rate(level.throughput),
        "" if level.efficiency is None else format_percent(round(level.efficiency, 2)).replace(" ", ""),
        _format_rate(level.qps),
        _format_time(level.ttft_p50_s),
        _format_time(level.ttft_p95_s),
        _format_time(level.latency_p95_s),
        _format_time(level.queue_mean_s),
        _format_time(level.wall_s),
    )


def _format_rate(value: float | None) -> str:
    return "" if value is None else format_number(value)


def _format_time(value: float | None) -> str:
    if value is None:
        return ""
    return "failed" if math.isinf(value) else format_seconds(value, 2 if value < 1 else 3).replace(" ", "")


def _describe_curve(axis: str, curve: Curve) -> Iterator[str]:
    """Say what the curve shows, one sentence a line."""
    if axis in LOAD_AXES and curve.knee:
        yield _describe_knee(axis, curve)
    if saturation := curve.saturation:
        yield (
            f"saturation: from {_format_axis_point(axis, saturation.after)} to "
            f"{format_number(saturation.at)} the load grew "
            f"{format_number(saturation.load_growth, 2)}-fold, the mean TTFT {_format_growth(saturation.ttft_growth)} "
            f"to {_format_time(saturation.ttft_s)}"
        )
    if curve.slots is not None:
        requests = "request ran" if curve.slots == 1 else "requests ran"
        yield f"slots: {curve.slots} {requests} concurrently while others waited (OLLAMA_NUM_PARALLEL)"
    if curve.stopped:
        yield curve.stopped


def _describe_knee(axis: str, curve: Curve) -> str:
    knee = curve.knee
    assert knee is not None
    metric = "qps" if curve.levels[0].throughput is None else "throughput"
    speed = f"{format_number(knee.throughput)} {'requests' if metric == 'qps' else 'tokens'}/s"
    if len(curve.levels) == 1:
        return f"knee: at least two levels are needed; this one reached {speed}"
    if not knee.reached:
        return f"knee: not reached, {_format_axis_point(axis, knee.at)} still brought more ({speed})"
    between = f", between {format_number(knee.after)} and {format_number(knee.at)}" if knee.after is not None else ""
    return f"knee: {_format_axis_point(axis, knee.at)}; throughput stops growing there{between}, at {speed}"


def _format_growth(growth: float) -> str:
    return "without limit" if math.isinf(growth) else f"{format_number(growth, 2)}-fold"


def _format_axis_point(axis: str, value: float) -> str:
    return format_position({axis: int(value) if axis == "concurrency" else value})


def _render_max_concurrency(finding: MaxConcurrency, width: int) -> list[str]:
    text = fit_table(list(_build_probe_rows(finding.probes)), width) if finding.probes else []
    if any(not probe.conclusive for probe in finding.probes):
        text.append(f"{INDENT}?: too few requests to be conclusive; raise requests or repeats")
    breach = _describe_breach(finding)
    return [*text, *wrap(breach, width, INDENT, INDENT * 2), *render_limits(finding.checks, width)]


def _describe_breach(finding: MaxConcurrency) -> str:
    if breach := finding.breach:
        return f"first breach: concurrency {breach.concurrency}: {clean(breach.reason)}"
    if finding.concurrency < finding.maximum:
        return "the search ended before a breach was found"
    return f"no breach up to concurrency {finding.maximum}; raise maximum to find one"


def _build_probe_rows(probes: Sequence[Probe]) -> Iterator[tuple[str, ...]]:
    yield f"{INDENT}  clients", "ok", "tps", "ttft p95", "latency p95", "requests", "decided by"
    for probe in sorted(probes, key=lambda probe: probe.concurrency):
        mark = " " if probe.sustained else "x"
        requests = f"{probe.runs} x {probe.requests // probe.runs}" if probe.runs > 1 else str(probe.requests)
        yield (
            f"{INDENT}{mark} {probe.concurrency}",
            format_percent(probe.success_rate).replace(" ", ""),
            format_value("tps", probe.tps).removesuffix(" /s"),
            format_value("ttft", probe.ttft_p95_s),
            format_value("latency", probe.latency_p95_s),
            requests,
            f"{format_label(probe.metric, probe.stat)}{'' if probe.conclusive else '?'}",
        )


_COLD_START_HEADS = ("load time", "cold ttft", "latency", "warm ttft", "latency", "ratio")
_COLD_START_METRICS = ("load_time", "ttft", "latency", "ttft", "latency", "")


def _render_cold_start(finding: ColdStart, width: int) -> list[str]:
    text = fit_table(list(_build_start_rows(finding)), width)
    return [*text, *render_limits(finding.checks, width)]


def _build_start_rows(finding: ColdStart) -> Iterator[tuple[str, ...]]:
    yield f"{INDENT}{clean(finding.model, 24)}", *_COLD_START_HEADS
    for turn, start in enumerate(finding.starts, 1):
        yield f"{INDENT}start {turn}", *_format_start_cells(start.get)
    if len(finding.starts) > 1:
        yield f"{INDENT}median", *_format_start_cells(finding.get)


def _format_start_cells(get: Callable[[str], float | None]) -> Iterator[str]:
    for name, metric in zip(COLD_WARM_METRICS, _COLD_START_METRICS, strict=True):
        value = get(name)
        yield format_value(metric, value) if metric else ("-" if value is None else format_quantity(value, "x"))


_COMPARISON_HEADS = ("", "baseline", "candidate", "change", "95% CI", "margin")


def _render_comparison(finding: ABComparison, width: int) -> list[str]:
    """The sides, the table, and how much was measured for it."""
    sides = [("baseline", finding.baseline), ("candidate", finding.candidate)]
    lines = [line for name, what in sides for line in wrap(f"{name}: {clean(what)}", width, INDENT, INDENT * 2)]
    table = fit_table([_COMPARISON_HEADS, *build_change_rows(finding.rows)], width) if finding.rows else []
    return [*lines, "", *table, "", *wrap(_describe_comparison_size(finding), width, INDENT, INDENT)]


def _describe_comparison_size(finding: ABComparison) -> str:
    blocks = format_count(finding.blocks, "block")
    return f"{blocks} ABBA of {finding.requests} requests per side, the model reloaded for every turn"


_SERVER_HEADS = ("", "sent", "share", "errors", "tps", "tokens/s", "ttft p50", "p95")
_SERVER_NAME_WIDTH = 22


def _render_servers(finding: Servers, width: int) -> list[str]:
    """A row for each server; then the one that got more than its part, and those that are slow."""
    head = f"{INDENT}{len(finding.servers)} servers{' behind one address' if finding.behind else ''}:"
    rows = [_SERVER_HEADS, *map(_build_server_row, finding.servers)]
    notes = [f"uneven: {_describe_uneven_server(finding)}"] if finding.uneven is not None else []
    notes += [f"slow: {text}" for text in finding.slow]
    lines = [line for text in notes for line in wrap(clean(text), width, INDENT, INDENT * 2)]
    return [head, *fit_table(rows, width), *lines]


def _build_server_row(one: ServerSummary) -> tuple[str, ...]:
    name = truncate_middle((redact_url(one.name) or "not named").removeprefix("http://"), _SERVER_NAME_WIDTH)
    return (
        f"{INDENT}{'x' if one.down else ' '} {name}",
        str(one.requests),
        format_percent(one.share).replace(" ", ""),
        str(one.errors),
        format_value("tps", one.tps),
        format_number(one.throughput),
        format_value("ttft", one.ttft_p50),
        format_value("ttft", one.ttft_p95),
    )


def _describe_uneven_server(finding: Servers) -> str:
    assert finding.uneven is not None
    one = finding.servers[finding.uneven]
    return (
        f"{redact_url(one.name) or 'not named'} received {format_percent(one.share)} of the requests instead of "
        f"{format_percent(one.expected)}"
    )


def _render_timeline(finding: Timeline, width: int) -> list[str]:
    text = fit_table(list(_build_span_rows(finding)), width)
    if finding.change is not None:
        text.append(
            f"{INDENT}throughput in the last third: {format_percent(finding.change, signed=True)} against the first"
        )
    return text


def _build_span_rows(finding: Timeline) -> Iterator[tuple[str, ...]]:
    moving = any(span.level is not None for span in finding.spans)
    yield f"{INDENT}from", *(["load"] if moving else []), "requests", "tokens/s", "ttft p50", "p95", "errors"
    for span in finding.spans:
        yield (
            f"{INDENT}{_format_clock(span.begin_s)}",
            *([_format_span_load(span)] if moving else []),
            *_format_span_cells(span),
        )


def _format_span_cells(span: TimelineWindow) -> tuple[str, ...]:
    ttft = format_value("ttft", span.ttft_p50_s), format_value("ttft", span.ttft_p95_s)
    return str(span.requests), format_number(span.throughput), *ttft, str(span.failed)


def _format_span_load(span: TimelineWindow) -> str:
    return "-" if span.level is None else format_number(span.level, 2)


def _format_clock(seconds_s: float) -> str:
    """Return ``1:30:00``, ``1:30`` or ``2.5 s``."""
    if not float(seconds_s).is_integer():
        return f"0:{seconds_s:04.1f}"
    minutes, rest = divmod(int(seconds_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


FINDING_RENDERERS: Mapping[type[Finding], Callable[[Any, int], list[str]]] = MappingProxyType(
    {
        Sweep: _render_sweep,
        MaxConcurrency: _render_max_concurrency,
        ColdStart: _render_cold_start,
        ABComparison: _render_comparison,
        Servers: _render_servers,
        Timeline: _render_timeline,
    }
)
"""The function for each kind of finding: the finding and a width in, lines of text out."""
