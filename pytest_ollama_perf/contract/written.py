"""A contract written from measured runs: limits that an unchanged server keeps, as far as the runs can tell. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from statistics import median
from typing import Any

from scipy.special import stdtrit

from pytest_ollama_perf.contract.reading import SCHEMA
from pytest_ollama_perf.metric import METRICS, Shape, Unit
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.summary import Summary
from pytest_ollama_perf.verdict.evidence import of_run
from pytest_ollama_perf.verdict.gate import Rule, fit
from pytest_ollama_perf.verdict.noise import measure_noise
from pytest_ollama_perf.verdict.run_value import GATING, Policy, cost, policy, value
from pytest_ollama_perf.verdict.wording import count, percent, show

KEPT = 0.99
"""How often one more run on an unchanged server is to keep a limit."""

SLACK_S = 0.005
"""Times get at least this much beyond what was measured: a pause of the machine, which a relative margin forgets."""

LIMITED = ("tps", "throughput", "ttft", "latency")
_SURE_FROM = (("p95", 59), ("p90", 29))
"""Requests from which on a percentile can be met beyond doubt, with none over (binomial, 5 %)."""


@dataclass(frozen=True)
class Measured:
    """Runs of one load, each on a freshly loaded model, and their numbers; ``words`` are what sets the load apart."""

    words: Mapping[str, Any]
    runs: tuple[Run, ...]
    summaries: tuple[Summary, ...]


def contract_text(model: str, common: Mapping[str, Any], loads: Sequence[Measured]) -> str:
    """Return the contract of ``model``; ``common`` are the words that all ``loads`` share."""
    seen = loads[0].runs[0].fingerprint
    runs = len(loads[0].runs)
    what = " ".join(part for part in (seen.model or model, seen.quantization) if part)
    rows = [
        f"# Measured: {what} on ollama {seen.server_version}, {count(runs, 'run')} of each load, the model loaded anew",
        f"# for each. One more run on a server that did not change keeps a limit {percent(KEPT)} of the time; tighten",
        "# it to what your users need. Regression clauses count once runs are stored: pytest --ollama-save",
        f"schema = {SCHEMA}",
        "",
        f"[model.{_quoted(model)}]",
        *(f"{word} = {_plain(given)}" for word, given in common.items()),
        *_required(model, loads),
    ]
    for load in loads:
        rows += ["", f"[[model.{_quoted(model)}.load]]", *(f"{word} = {_plain(v)}" for word, v in load.words.items())]
        rows += [row for metric in LIMITED for row in _clauses(metric, load)]
        rows.append('error_rate = "<= 0%"')
    return "\n".join(rows) + "\n"


def _required(model: str, loads: Sequence[Measured]) -> Iterator[str]:
    """Yield what must be as it was: the quantisation, and a model wholly in GPU memory or wholly outside it."""
    seen = loads[0].runs[0].fingerprint
    shares = {state.vram_share for load in loads for run in load.runs for state in run.before.values()}
    yield from ("", f"[model.{_quoted(model)}.require]") if seen.quantization or shares & {0.0, 1.0} else ()
    if seen.quantization:
        yield f"quantization = {_quoted(seen.quantization)}"
    if shares in ({0.0}, {1.0}):
        yield f'gpu_offload = "{100 if shares == {1.0} else 0}%"'


def _clauses(metric: str, load: Measured) -> Iterator[str]:
    stat = _stat(metric, min(summary.requests for summary in load.summaries))
    numbers = [summary.metrics[metric].get(stat) for summary in load.summaries if metric in summary.metrics]
    known = [number for number in numbers if number is not None and math.isfinite(number) and number > 0]
    if len(known) < len(load.runs):
        return
    one = policy(f"{metric}.{stat}" if stat else metric)
    clauses = [f"{stat} {_bound(one, known)}".strip()]
    told = f"{show(metric, median(known))}, {show(metric, min(known))} to {show(metric, max(known))}"
    if metric in GATING:
        share, note = _regression(policy(metric), load.runs)
        clauses += [f"regression <= {share}"] if share else []
        told += note
    texts = ", ".join(f'"{clause}"' for clause in clauses)
    yield f"{metric} = {f'[{texts}]' if len(clauses) > 1 else texts}  # {told}"


def _stat(metric: str, requests: int) -> str:
    """Return the highest percentile that so many requests can settle; nothing for a pooled or per-run number."""
    if METRICS[metric].shape is not Shape.PER_REQUEST:
        return ""
    return next((stat for stat, least in _SURE_FROM if requests >= least), "p50")


def _bound(one: Policy, numbers: Sequence[float]) -> str:
    """Return the limit: beyond what one more run is predicted to need, the usual margin and the worst run seen."""
    costs = [cost(one, number) for number in numbers]
    baseline = fit(costs, Rule.of(one))
    assert baseline is not None
    predicted = baseline.mean + float(stdtrit(baseline.df, KEPT)) * baseline.se(1)
    bound = value(one, max(predicted, baseline.mean + math.log1p(one.margin), *costs))
    if one.metric.unit is Unit.SECONDS:
        bound = max(bound, max(numbers) + SLACK_S)
    return f"{'>=' if one.metric.is_rate else '<='} {_rounded(one, bound)}"


def _rounded(one: Policy, bound: float) -> str:
    """Return the bound with two digits, rounded to the side that is easier to keep."""
    if one.metric.unit is not Unit.SECONDS:
        return _two_digits(bound, ROUND_FLOOR)
    return f"{_two_digits(bound, ROUND_CEILING)}s" if bound >= 1 else f"{_two_digits(bound * 1e3, ROUND_CEILING)}ms"


def _two_digits(number: float, rounding: str) -> str:
    exact = Decimal(number)
    step = Decimal(1).scaleb(exact.adjusted() - 1)
    return f"{(exact / step).quantize(Decimal(1), rounding) * step:f}"


def _regression(one: Policy, runs: Sequence[Run]) -> tuple[str, str]:
    """Return the margin worth setting, never tighter than three runs can show here, and what to say of it."""
    noise = measure_noise(one, [of_run(run).reading(one) for run in runs])
    if noise is not None and noise.beyond_use:
        return "", f"; too noisy for a regression clause (runs differ by {percent(noise.sd)})"
    share = max(one.margin, noise.margin if noise else 0.0)
    return percent(share).replace(" ", ""), f"; runs differ by {percent(noise.sd)}" if noise else ""


def _quoted(text: str) -> str:
    """Return a basic string of TOML."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _plain(given: Any) -> str:
    return _quoted(given) if isinstance(given, str) else str(given)
