"""A user's tests as type checkers see them; ``reveal_type`` pins what they infer. The tests are checked, not run."""
# pyright: strict

from __future__ import annotations

import pytest
from typing_extensions import reveal_type

import pytest_ollama_perf as perf


@perf.load(model="llama3.2:3b", concurrency=4, max_p95_ttft="500ms", min_tps=40, max_error_rate="1%")
def test_load(ollama_load: perf.LoadResult) -> None:
    reveal_type(ollama_load.tps)  # expect: float
    reveal_type(ollama_load.throughput)  # expect: float
    reveal_type(ollama_load.ttft)  # expect: MetricSummary
    reveal_type(ollama_load.ttft.p95)  # expect: float
    reveal_type(ollama_load.metric("latency").mean)  # expect: float
    reveal_type(ollama_load.verdict)  # expect: Verdict
    reveal_type(ollama_load.verdict.reason)  # expect: str
    reveal_type(ollama_load.samples[0].ok)  # expect: bool
    reveal_type(ollama_load.run.id)  # expect: str
    reveal_type(ollama_load.check(max_p99_latency="10s"))  # expect: Verdict
    assert ollama_load.ttft.p50 < 0.3


@perf.sweep(concurrency=[1, 2, 4, 8], num_predict=64, min_knee=4)
def test_sweep(ollama_sweep: perf.SweepResult) -> None:
    reveal_type(ollama_sweep.levels)  # expect: tuple[SweepPointResult, ...]
    reveal_type(ollama_sweep.level(concurrency=4).ttft.p95)  # expect: float
    reveal_type(ollama_sweep.levels[0].concurrency)  # expect: int
    reveal_type(ollama_sweep.levels[0].efficiency)  # expect: float
    reveal_type(ollama_sweep.knee.concurrency)  # expect: int
    reveal_type(ollama_sweep.best.throughput)  # expect: float
    reveal_type(ollama_sweep.speedup)  # expect: float
    reveal_type(ollama_sweep.slots)  # expect: int | None
    reveal_type(ollama_sweep.curves)  # expect: tuple[CurveResult, ...]


@perf.ab(baseline={"model": "a"}, candidate={"model": "b", "url": "http://gpu-box:11434"}, requests=8)
def test_ab(ollama_ab: perf.ABResult) -> None:
    reveal_type(ollama_ab.tps)  # expect: ABChange
    reveal_type(ollama_ab.tps.change)  # expect: float
    reveal_type(ollama_ab.change("ttft.p50").high)  # expect: float
    reveal_type(ollama_ab.blocks)  # expect: int
    assert ollama_ab.tps.change > -0.05


@perf.max_concurrency(max_latency=5, min_concurrency=8)
def test_max_concurrency(ollama_max_concurrency: perf.MaxConcurrencyResult) -> None:
    reveal_type(ollama_max_concurrency.concurrency)  # expect: int
    reveal_type(ollama_max_concurrency.conclusive)  # expect: bool
    if ollama_max_concurrency.breach is not None:
        reveal_type(ollama_max_concurrency.breach.concurrency)  # expect: int


@perf.cold_start(repeats=3, max_load_time="60s")
def test_cold_start(ollama_cold_start: perf.ColdStartResult) -> None:
    reveal_type(ollama_cold_start.load_time)  # expect: float
    reveal_type(ollama_cold_start.ratio)  # expect: float
    reveal_type(ollama_cold_start.cold[0].ttft.max)  # expect: float


def test_code(ollama_perf: perf.Ollama, ollama_warm_up: perf.WarmUp, ollama_simulator: perf.Simulators) -> None:
    reveal_type(ollama_warm_up("llama3.2:3b"))  # expect: dict[str, float]
    reveal_type(ollama_simulator(slots=4).url)  # expect: str
    reveal_type(ollama_perf.load(concurrency=4, think_time=("100ms", 2)))  # expect: LoadResult
    reveal_type(ollama_perf.load(stages=[{"concurrency": 8, "for": "5m"}]).qps)  # expect: float
    reveal_type(ollama_perf.sweep(rate=[1, 2]).knee.rate)  # expect: float
    reveal_type(ollama_perf.compare(candidate={"num_ctx": 8192}).ttft.low)  # expect: float
    reveal_type(ollama_perf.find_max_concurrency(max_ttft="1s").concurrency)  # expect: int
    reveal_type(ollama_perf.cold_start(repeats=2).warm_ttft)  # expect: float
    reveal_type(ollama_perf.url)  # expect: str


async def test_async(ollama_perf: perf.Ollama) -> None:
    reveal_type(await ollama_perf.aload(concurrency=2))  # expect: LoadResult


@perf.load(concurrency=2)
class TestClass:
    pytestmark = perf.load(model="tiny")

    def test_method(self, ollama_load: perf.LoadResult) -> None:
        reveal_type(ollama_load.error_rate)  # expect: float


@pytest.mark.parametrize("num_ctx", [pytest.param(8192, marks=perf.load(model="tiny"))])
def test_parameters(ollama_load: perf.LoadResult, num_ctx: int) -> None:
    reveal_type(perf.load(concurrency=4))  # expect: MarkDecorator
