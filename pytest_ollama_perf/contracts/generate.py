"""A contract written from measured runs: limits that an unchanged server keeps, as far as the runs show. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from statistics import median
from typing import Any

from scipy.special import stdtrit

from pytest_ollama_perf.analysis.gate import GateRule, fit_baseline
from pytest_ollama_perf.analysis.noise import measure_noise
from pytest_ollama_perf.analysis.run_value import (
    GATING_METRICS,
    MetricPolicy,
    build_evidence,
    get_policy,
    to_cost,
    to_value,
)
from pytest_ollama_perf.contracts.parse import SCHEMA_VERSION
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.metrics import METRICS, Shape, Unit, format_count, format_percent, format_value
from pytest_ollama_perf.metrics.summary import Summary

KEEP_PROBABILITY = 0.99
"""How often one more run on an unchanged server is to keep a limit."""

SLACK_S = 0.005
"""Times get at least this much beyond what was measured: a pause of the machine, which a relative margin forgets."""

LIMITED_METRICS = ("tps", "throughput", "ttft", "latency")
_SURE_FROM = (("p95", 59), ("p90", 29))
"""Requests from which on a percentile can be met beyond doubt, with none over (binomial, 5 %)."""


@dataclass(frozen=True)
class MeasuredRuns:
    """Runs of one load, each on a freshly loaded model, and their numbers; ``options`` distinguish the load."""

    options: Mapping[str, Any]
    runs: tuple[Run, ...]
    summaries: tuple[Summary, ...]


def generate_contract(model: str, common: Mapping[str, Any], loads: Sequence[MeasuredRuns]) -> str:
    """Return the contract of ``model``; ``common`` are the options that all ``loads`` share."""
    seen = loads[0].runs[0].fingerprint
    runs = len(loads[0].runs)
    what = " ".join(part for part in (seen.model or model, seen.quantization) if part)
    rows = [
        f"# Measured: {what} on ollama {seen.server_version}, {format_count(runs, 'run')} of each load, the model "
        "reloaded",
        f"# for each. One more run on a server that did not change keeps a limit "
        f"{format_percent(KEEP_PROBABILITY)} of the time; tighten",
        "# it to what your users need. Regression clauses count once runs are stored: pytest --ollama-save",
        f"schema = {SCHEMA_VERSION}",
        "",
        f"[model.{_quote_text(model)}]",
        *(f"{option} = {_format_value(given)}" for option, given in common.items()),
        *_generate_require(model, loads),
    ]
    for load in loads:
        rows += [
            "",
            f"[[model.{_quote_text(model)}.load]]",
            *(f"{option} = {_format_value(v)}" for option, v in load.options.items()),
        ]
        rows += [row for metric in LIMITED_METRICS for row in _generate_clauses(metric, load)]
        rows.append('error_rate = "<= 0%"')
    return "\n".join(rows) + "\n"


def _generate_require(model: str, loads: Sequence[MeasuredRuns]) -> Iterator[str]:
    """Yield what must be as it was: the quantisation, and a model wholly in GPU memory or wholly outside it."""
    seen = loads[0].runs[0].fingerprint
    shares = {state.vram_share for load in loads for run in load.runs for state in run.before.values()}
    yield from ("", f"[model.{_quote_text(model)}.require]") if seen.quantization or shares & {0.0, 1.0} else ()
    if seen.quantization:
        yield f"quantization = {_quote_text(seen.quantization)}"
    if shares in ({0.0}, {1.0}):
        yield f'gpu_offload = "{100 if shares == {1.0} else 0}%"'


def _generate_clauses(metric: str, load: MeasuredRuns) -> Iterator[str]:
    stat = _select_stat(metric, min(summary.requests for summary in load.summaries))
    numbers = [summary.metrics[metric].get(stat) for summary in load.summaries if metric in summary.metrics]
    known = [number for number in numbers if number is not None and math.isfinite(number) and number > 0]
    if len(known) < len(load.runs):
        return
    one = get_policy(f"{metric}.{stat}" if stat else metric)
    clauses = [f"{stat} {_compute_bound(one, known)}".strip()]
    comment = (
        f"{format_value(metric, median(known))}, {format_value(metric, min(known))} to "
        f"{format_value(metric, max(known))}"
    )
    if metric in GATING_METRICS:
        share, note = _compute_margin(get_policy(metric), load.runs)
        clauses += [f"regression <= {share}"] if share else []
        comment += note
    texts = ", ".join(f'"{clause}"' for clause in clauses)
    yield f"{metric} = {f'[{texts}]' if len(clauses) > 1 else texts}  # {comment}"


def _select_stat(metric: str, requests: int) -> str:
    """Return the highest percentile that this number of requests can settle; nothing for a pooled or per-run number."""
    if METRICS[metric].shape is not Shape.PER_REQUEST:
        return ""
    return next((stat for stat, least in _SURE_FROM if requests >= least), "p50")


def _compute_bound(one: MetricPolicy, numbers: Sequence[float]) -> str:
    """Return the limit: beyond what one more run is predicted to need, the usual margin and the worst run seen."""
    costs = [to_cost(one, number) for number in numbers]
    baseline = fit_baseline(costs, GateRule.from_policy(one))
    assert baseline is not None
    predicted = baseline.mean + float(stdtrit(baseline.df, KEEP_PROBABILITY)) * baseline.compute_independent_se(1)
    bound = to_value(one, max(predicted, baseline.mean + math.log1p(one.margin), *costs))
    if one.metric.unit is Unit.SECONDS:
        bound = max(bound, max(numbers) + SLACK_S)
    return f"{'>=' if one.metric.is_higher_better else '<='} {_format_bound(one, bound)}"


def _format_bound(one: MetricPolicy, bound: float) -> str:
    """Return the bound with two digits, rounded to the side that is easier to keep."""
    if one.metric.unit is not Unit.SECONDS:
        return _round_two_digits(bound, ROUND_FLOOR)
    return (
        f"{_round_two_digits(bound, ROUND_CEILING)}s"
        if bound >= 1
        else f"{_round_two_digits(bound * 1e3, ROUND_CEILING)}ms"
    )


def _round_two_digits(number: float, rounding: str) -> str:
    exact = Decimal(number)
    step = Decimal(1).scaleb(exact.adjusted() - 1)
    return f"{(exact / step).quantize(Decimal(1), rounding) * step:f}"


def _compute_margin(one: MetricPolicy, runs: Sequence[Run]) -> tuple[str, str]:
    """Return the margin worth setting, never tighter than three runs can show here, and what to say of it."""
    noise = measure_noise(one, [build_evidence(run).compute_cost(one) for run in runs])
    if noise is not None and noise.is_unusable:
        return "", f"; too noisy for a regression clause (runs differ by {format_percent(noise.sd)})"
    share = max(one.margin, noise.margin if noise else 0.0)
    return format_percent(share).replace(" ", ""), f"; runs differ by {format_percent(noise.sd)}" if noise else ""


def _quote_text(text: str) -> str:
    """Return a basic string of TOML."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _format_value(given: Any) -> str:
    return _quote_text(given) if isinstance(given, str) else str(given)
