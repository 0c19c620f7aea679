"""Charts of what experiments found, read from the findings as they stand in the JSON report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pytest_ollama_perf.report.layout import clean
from pytest_ollama_perf.report.page import charts
from pytest_ollama_perf.report.page.charts import Cell, Chart

Found = Mapping[str, Any]

_AXES = MappingProxyType({"concurrency": "requests at once", "rate": "requests a second"})


def charts_of(findings: Iterable[Found]) -> Iterator[Chart]:
    """Yield the charts of all findings; one of an unknown kind has none, its text says what it is."""
    for finding in findings:
        draw = _DRAWN.get(str(finding.get("kind")))
        if draw:
            yield from draw(finding)


def _sweep(finding: Found) -> Iterator[Chart]:
    axis = str(finding["axis"])
    name = _AXES.get(axis, axis)
    curves = list(finding["curves"])
    if not all(isinstance(level["at"].get(axis), int | float) for curve in curves for level in curve["levels"]):
        return
    made = [row for curve in curves for row in _throughput(axis, curve)]
    if made:
        yield charts.curve(
            "Throughput by load", _says("throughput", name, curves), name, "tokens/s of the whole system", made
        )
    waited = [row for curve in curves for row in _ttft(axis, curve)]
    if waited:
        yield charts.curve("Time to first token by load", _says("ttft", name, curves), name, "mean ttft (ms)", waited)


def _throughput(axis: str, curve: Found) -> Iterator[Sequence[Cell]]:
    knee = curve.get("knee") or {}
    for level in curve["levels"]:
        if (value := level.get("throughput")) is not None:
            low, high = level.get("throughput_ci") or (value, value)
            mark = "knee" if knee.get("reached") and level["at"][axis] == knee.get("at") else None
            yield _where(curve), level["at"][axis], value, low, high, mark


def _ttft(axis: str, curve: Found) -> Iterator[Sequence[Cell]]:
    avalanche = curve.get("avalanche") or {}
    for level in curve["levels"]:
        if (value := level.get("ttft_mean_s")) is not None:
            low, high = (end if end is not None else value for end in level.get("ttft_mean_ci_s") or (value, value))
            mark = "avalanche" if level["at"][axis] == avalanche.get("at") else None
            yield _where(curve), level["at"][axis], value * 1e3, low * 1e3, high * 1e3, mark


def _where(curve: Found) -> str:
    return clean(", ".join(f"{axis} {value}" for axis, value in curve["at"].items()), 60) or "this sweep"


def _says(number: str, axis: str, curves: Iterable[Found]) -> str:
    knees = [f"{_where(curve)}: knee at {knee['at']:g}" for curve in curves if (knee := curve.get("knee"))]
    return f"{number} over {axis}" + (f"; {'; '.join(knees)}" if knees else "")


def _cold_start(finding: Found) -> Iterator[Chart]:
    rows = [row for number, start in enumerate(finding["starts"], 1) for row in _start(number, start)]
    if rows:
        says = "Time to the first token on a cold model, and beside it on a loaded one (median)"
        yield charts.bars("Cold and warm", says, "ttft (ms)", rows)


def _start(number: int, start: Found) -> Iterator[Sequence[Cell]]:
    cold, warm, load = start.get("cold_ttft_s"), start.get("warm_ttft_s"), start.get("load_time_s")
    if cold is not None:
        loading = min(load or 0.0, cold)
        yield f"cold {number}", "loading the model", loading * 1e3
        yield f"cold {number}", "the rest", (cold - loading) * 1e3
    if warm is not None:
        yield f"warm {number}", "the rest", warm * 1e3


_DRAWN: Mapping[str, Callable[[Found], Iterator[Chart]]] = MappingProxyType({"sweep": _sweep, "coldstart": _cold_start})
