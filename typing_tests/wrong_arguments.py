"""Mistakes that type checkers must report, each on the line of its comment."""
# pyright: strict

from __future__ import annotations

import pytest_ollama_perf as perf


def run(ollama_perf: perf.Ollama, result: perf.LoadResult) -> None:
    ollama_perf.load(concurency=4)  # error
    ollama_perf.load(concurrency="4")  # error
    ollama_perf.load(endpoint="caht")  # error
    ollama_perf.find_max_concurrency(concurrency=4)  # error
    ollama_perf.compare(candidate={"modle": "b"})  # error
    ollama_perf.cold_start(rate=2)  # error
    result.check(max_ttft=1)  # error
    print(result.tsp)  # error
    print(result.ttft.p98)  # error


@perf.sweep(concurency=[1, 2])  # error
def test_sweep() -> None: ...


@perf.load(stages=[{"concurrency": 8, "until": "5m"}])  # error
def test_stages() -> None: ...
