"""Charts of what experiments found, read from the findings in the JSON report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from statistics import median
from types import MappingProxyType
from typing import Any

from pytest_ollama_perf.analysis.drift import HistoryRun, HistoryView, MetricDrift
from pytest_ollama_perf.core.run import GpuStats, HostStats, Telemetry
from pytest_ollama_perf.core.sample import Phase, Sample
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.metrics import METRICS, Unit, format_label, format_number, format_percent, format_value
from pytest_ollama_perf.metrics.per_request import list_request_values
from pytest_ollama_perf.report.document import RowEntry
from pytest_ollama_perf.report.html import charts
from pytest_ollama_perf.report.html.charts import PHASE_NAMES, Cell, Chart
from pytest_ollama_perf.report.tables import clean

FindingData = Mapping[str, Any]

_AXIS_TITLES = MappingProxyType({"concurrency": "concurrency", "rate": "requests/s"})


def build_finding_charts(findings: Iterable[FindingData]) -> Iterator[Chart]:
    """Yield the charts of all findings; one of an unknown kind has none, its text says what it is."""
    for finding in findings:
        draw = _CHART_BUILDERS.get(str(finding.get("kind")))
        if draw:
            yield from draw(finding)


def _build_sweep_charts(finding: FindingData) -> Iterator[Chart]:
    axis = str(finding["axis"])
    name = _AXIS_TITLES.get(axis, axis)
    curves = list(finding["curves"])
    if not all(isinstance(level["at"].get(axis), int | float) for curve in curves for level in curve["levels"]):
        return
    made = [row for curve in curves for row in _build_throughput_rows(axis, curve)]
    if made:
        yield charts.draw_curve(
            "Throughput by load",
            _describe_sweep_chart("throughput", name, curves),
            name,
            "tokens/s of the whole system",
            made,
        )
    waited = [row for curve in curves for row in _build_ttft_rows(axis, curve)]
    if waited:
        yield charts.draw_curve(
            "Time to first token by load", _describe_sweep_chart("ttft", name, curves), name, "mean ttft (ms)", waited
        )


def _build_throughput_rows(axis: str, curve: FindingData) -> Iterator[Sequence[Cell]]:
    knee = curve.get("knee") or {}
    for level in curve["levels"]:
        if (value := level.get("throughput")) is not None:
            low, high = level.get("throughput_ci") or (value, value)
            mark = "knee" if knee.get("reached") and level["at"][axis] == knee.get("at") else None
            yield _format_curve_name(curve), level["at"][axis], value, low, high, mark


def _build_ttft_rows(axis: str, curve: FindingData) -> Iterator[Sequence[Cell]]:
    saturation = curve.get("saturation") or {}
    for level in curve["levels"]:
        if (value := level.get("ttft_mean_s")) is not None:
            low, high = (end if end is not None else value for end in level.get("ttft_mean_ci_s") or (value, value))
            mark = "saturation" if level["at"][axis] == saturation.get("at") else None
            yield _format_curve_name(curve), level["at"][axis], value * 1e3, low * 1e3, high * 1e3, mark


def _format_curve_name(curve: FindingData) -> str:
    return clean(", ".join(f"{axis} {value}" for axis, value in curve["at"].items()), 60) or "this sweep"


def _describe_sweep_chart(number: str, axis: str, curves: Iterable[FindingData]) -> str:
    knees = [f"{_format_curve_name(curve)}: knee at {knee['at']:g}" for curve in curves if (knee := curve.get("knee"))]
    return f"{number} over {axis}" + (f"; {'; '.join(knees)}" if knees else "")


def _build_cold_start_charts(finding: FindingData) -> Iterator[Chart]:
    rows = [row for number, start in enumerate(finding["starts"], 1) for row in _build_start_rows(number, start)]
    if rows:
        says = "Time to the first token on a cold model and on a loaded one (median)"
        yield charts.draw_stacked_bars("Cold and warm", says, "ttft (ms)", rows)


def _build_start_rows(number: int, start: FindingData) -> Iterator[Sequence[Cell]]:
    cold, warm, load = start.get("cold_ttft_s"), start.get("warm_ttft_s"), start.get("load_time_s")
    if cold is not None:
        loading = min(load or 0.0, cold)
        yield f"cold {number}", "loading the model", loading * 1e3
        yield f"cold {number}", "the rest", (cold - loading) * 1e3
    if warm is not None:
        yield f"warm {number}", "the rest", warm * 1e3


_CHART_BUILDERS: Mapping[str, Callable[[FindingData], Iterator[Chart]]] = MappingProxyType(
    {"sweep": _build_sweep_charts, "cold_start": _build_cold_start_charts}
)


_GIB = 1024**3


def describe_hardware(telemetry: Telemetry | None) -> Iterator[str]:
    """Yield one line for each GPU, one for the machine, and why something is missing."""
    if telemetry is None:
        return
    for gpu in telemetry.gpus:
        yield f"{clean(gpu.name, 80) or 'GPU'}: {', '.join(_describe_gpu(gpu))}"
    if telemetry.host and (known := ", ".join(_describe_host(telemetry.host))):
        yield f"machine: {known}"
    if telemetry.missing:
        yield f"telemetry: {clean(telemetry.missing)}"


def _describe_gpu(gpu: GpuStats) -> Iterator[str]:
    if gpu.utilization is not None:
        yield f"{format_percent(gpu.utilization)} busy"
    yield from _describe_memory(gpu.memory_bytes, gpu.memory_total_bytes)
    if gpu.power_w is not None:
        yield f"{format_number(gpu.power_w)} W" + (
            f" (at most {format_number(gpu.max_power_w)})" if gpu.max_power_w else ""
        )
    if gpu.energy_j is not None:
        yield f"{format_number(gpu.energy_j)} J"
    if gpu.max_temperature_c is not None:
        yield f"at most {format_number(gpu.max_temperature_c)} °C"
    if gpu.clock_mhz is not None:
        yield f"{format_number(gpu.clock_mhz)} MHz" + (
            f" (at least {format_number(gpu.min_clock_mhz)})" if gpu.min_clock_mhz else ""
        )
    yield from (f"throttled by {clean(why, 60)} in {format_percent(share)}" for why, share in gpu.throttled.items())


def _describe_host(host: HostStats) -> Iterator[str]:
    if host.cpu_share is not None:
        yield f"{format_percent(host.cpu_share)} of the CPUs busy"
    yield from _describe_memory(host.memory_bytes, host.memory_total_bytes)


def _describe_memory(used: int | None, total: int | None) -> Iterator[str]:
    if used is not None:
        yield (
            f"at most {format_number(used / _GIB)}"
            + (f" of {format_number(total / _GIB)}" if total else "")
            + " GiB in use"
        )


MAX_STEPS = 100
"""How many steps a distribution has at most: more than a chart of its size can show."""

MAX_LANES = 48
"""How many clients a timeline shows at most."""


def choose_axis(metric: str, values: Iterable[float]) -> tuple[float, str]:
    """Return what to multiply values with and how the axis is called: milliseconds where none reaches ten seconds."""
    unit = METRICS[metric].unit
    if unit is not Unit.SECONDS:
        return 1.0, f"{metric} ({unit.value})"
    highest = max((value for value in values if math.isfinite(value)), default=0.0)
    return (1e3, f"{metric} (ms)") if highest < 10 else (1.0, f"{metric} (s)")


def build_steps(name: str, values: Sequence[float], scale: float, most: int = MAX_STEPS) -> Iterator[tuple[Cell, ...]]:
    """Yield the empirical distribution of ``values`` in at most ``most`` steps, as ``(series, value, share)``.

    Failed requests, infinite times, count among all, so that a curve of a load with failures never reaches 100 %.
    """
    ordered = sorted(values)
    finite = [value for value in ordered if math.isfinite(value)]
    for at in _spread_positions(len(finite), most):
        yield name, _round_significant(finite[at] * scale), _round_significant((at + 1) / len(ordered))


def _spread_positions(count: int, most: int) -> Iterable[int]:
    """Return at most ``most`` positions out of ``count``, evenly spread, the first and last among them."""
    if count <= most:
        return range(count)
    return sorted({round(at * (count - 1) / (most - 1)) for at in range(most)})


def _round_significant(value: float) -> float:
    return float(f"{value:.4g}")


def compute_request_values(metric: str, samples: Sequence[Sample]) -> list[float]:
    """Return the values of a metric over measured samples; none where no request succeeded."""
    measured = [sample for sample in samples if sample.stage is Phase.MEASURED]
    return list_request_values(metric, measured) if any(sample.ok for sample in measured) else []


def assign_lanes(workload: Workload, samples: Sequence[Sample]) -> list[int]:
    """Return a lane for each sample, counted from 0: its client's, or in an open loop the first free one."""
    if workload.rate is None:
        return [sample.client for sample in samples]
    free: list[int] = []
    found = []
    for sample in samples:
        lane = next((lane for lane, until in enumerate(free) if until <= sample.start_ns), len(free))
        free[lane : lane + 1] = [sample.done_ns]
        found.append(lane)
    return found


def build_timeline_rows(
    workload: Workload, samples: Sequence[Sample], most: int
) -> tuple[list[tuple[Cell, ...]], int, int]:
    """Return the rows of a timeline, how many requests and how many lanes they show.

    The first ``most`` requests are shown, of the first ``LANES`` lanes.
    """
    ordered = sorted(samples, key=lambda sample: sample.start_ns)[:most]
    placed = [pair for pair in zip(assign_lanes(workload, ordered), ordered, strict=True) if pair[0] < MAX_LANES]
    if not placed:
        return [], 0, 0
    origin = min(sample.start_ns for _, sample in placed)
    end = max(sample.done_ns for _, sample in placed)
    least = (end - origin) / 2000
    rows: list[tuple[Cell, ...]] = [
        (
            lane + 1,
            phase,
            _to_relative_s(start, origin),
            _to_relative_s(until, origin),
            sample.index + 1,
            sample.stage.value,
        )
        for lane, sample in placed
        for phase, start, until in split_phases(sample)
        if until - start >= least
    ]
    return rows, len(placed), max(lane for lane, _ in placed) + 1


def _to_relative_s(time_ns: float, origin_ns: int) -> float:
    return round((time_ns - origin_ns) / 1e9, 4)


def split_phases(sample: Sample) -> Iterator[tuple[str, float, float]]:
    """Yield what a request did, as ``(phase, from, to)`` in nanoseconds, in the order of time and without gaps.

    The first token's arrival is the client's own clock; what came before it is cut by the server's counters, counted
    back from there. What they do not cover was the way to the server and back.
    """
    if sample.scheduled_ns is not None and sample.sent_ns > sample.scheduled_ns:
        yield PHASE_NAMES[0], sample.scheduled_ns, sample.sent_ns
    if not sample.ok:
        yield "failed", sample.sent_ns, sample.done_ns
        return
    first = sample.first_token_ns
    if first is None or sample.counters.total_duration_ns is None:
        yield "whole", sample.sent_ns, sample.done_ns
        return
    yield from _split_until_first_token(sample, first)
    yield "decode", first, sample.done_ns


def _split_until_first_token(sample: Sample, first: int) -> Iterator[tuple[str, float, float]]:
    counters = sample.counters
    spent = (counters.load_duration_ns or 0, counters.queue_ns or 0, counters.prompt_eval_duration_ns or 0)
    room = first - sample.sent_ns
    shrink = min(1.0, room / sum(spent)) if sum(spent) else 1.0
    at = first - sum(spent) * shrink
    yield "on its way", sample.sent_ns, at
    for phase, duration in zip(("load", "queue", "prefill"), spent, strict=True):
        yield phase, at, at + duration * shrink
        at += duration * shrink


def count_by_server(samples: Iterable[Sample]) -> list[tuple[Cell, ...]]:
    """Return what each server answered, ``(server, outcome, requests, ttft in ms)``; nothing where only one did."""
    measured = [sample for sample in samples if sample.stage is Phase.MEASURED]
    counts = Counter((get_server_name(sample), sample.ok) for sample in measured)
    servers = sorted({name for name, _ in counts})
    if len(servers) < 2:
        return []
    return [
        (name, "ok" if ok else "failed", counts[name, ok], _compute_median_ttft(measured, name) if ok else None)
        for name in servers
        for ok in (True, False)
        if counts[name, ok]
    ]


def get_server_name(sample: Sample) -> str:
    """Return who answered: the upstream that a header named, else the address."""
    return sample.server or sample.url


def _compute_median_ttft(samples: Iterable[Sample], name: str) -> float | None:
    found = list_request_values("ttft", [sample for sample in samples if sample.ok and get_server_name(sample) == name])
    return _round_significant(median(found) * 1e3) if found else None


def sign_margin(row: RowEntry) -> float | None:
    """Return the margin with the sign that a change for the worse has."""
    if row.margin is None:
        return None
    return -abs(row.margin) if METRICS[row.metric].is_higher_better else abs(row.margin)


def build_change_charts(rows: Sequence[RowEntry]) -> Iterator[Chart]:
    """Yield the chart of what changed against the baseline, where there is one."""
    known = [row for row in rows if row.change is not None]
    if not known:
        return
    caption = (
        f"{_format_row_name(row)} {format_percent(row.change, signed=True)}" for row in known if row.change is not None
    )
    cells = [
        (_format_row_name(row), row.change, row.low, row.high, sign_margin(row), row.status.value) for row in known
    ]
    yield charts.draw_changes(f"Changes against the baseline: {', '.join(caption)}", cells)


def _format_row_name(row: RowEntry) -> str:
    return format_label(row.metric, row.stat) + (f", {clean(row.where, 40)}" if row.where else "")


def list_baseline_values(past: HistoryView | None, metric: str) -> list[float]:
    """Return the values of the requests of all runs compared with, failed ones infinite; empty without a past."""
    stored = past.baseline.get(metric, ()) if past else ()
    return [math.inf if value is None else value for value in stored]


def build_history_charts(past: HistoryView | None) -> Iterator[Chart]:
    """Yield for every metric the chart of all runs, where there is more than the one just measured."""
    if past is None or all(run.now for run in past.runs):
        return
    for metric in past.drift:
        values = [value for run in past.runs if (value := run.values.get(metric)) is not None]
        if not values:
            continue
        scale, axis = choose_axis(metric, values)
        drift = past.drift[metric]
        newest = past.runs[-1].epoch
        rows = [
            _build_history_row(number, run, metric, scale, drift, newest) for number, run in enumerate(past.runs, 1)
        ]
        title = f"{metric} of every run"
        yield charts.draw_history(
            title, _describe_history_chart(metric, values, drift, past.runs), axis, [row for row in rows if row]
        )


def _build_history_row(
    number: int, run: HistoryRun, metric: str, scale: float, drift: MetricDrift, newest: int
) -> tuple[Cell, ...]:
    value = run.values.get(metric)
    reference = drift.reference if run.epoch == newest else None
    return (
        number,
        datetime.fromtimestamp(run.started_at, timezone.utc).strftime("%Y-%m-%d %H:%M"),
        None if value is None else value * scale,
        run.epoch,
        _classify_run(run, metric),
        clean(run.border, 200) or None,
        None if reference is None else reference * scale,
    )


def _classify_run(run: HistoryRun, metric: str) -> str:
    if run.now:
        return "now"
    if metric in run.outlier:
        return "left out"
    return "compared" if run.compared else "not compared"


def _describe_history_chart(
    metric: str, values: Sequence[float], drift: MetricDrift, runs: Sequence[HistoryRun]
) -> str:
    text = (
        f"{metric} of {len(runs)} runs, from {format_value(metric, min(values))} to {format_value(metric, max(values))}"
    )
    borders = [clean(run.border, 80) for run in runs if run.border]
    text += f", in {len(borders) + 1} epochs (the last since: {borders[-1]})" if borders else ""
    if drift.warns and drift.since is not None:
        since = datetime.fromtimestamp(drift.since, timezone.utc).strftime("%Y-%m-%d")
        return (
            f"{text}; drifts since {since}: {format_percent(drift.slowdown)} slower than the first runs of this epoch"
        )
    return f"{text}; {drift.missing} more runs are needed to see a drift" if drift.missing else f"{text}; no drift"
