"""How long verdicts take: one of 20 stored runs, and a suite of 200 tests, both from runs of 50 requests each.

    python benchmarks/verdict_speed.py

Exit status 1 when one verdict takes 5 ms or more (median of many, imports done), or 200 tests 5 s or more.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
from noise import WORLDS, requests

from pytest_ollama_perf.analysis.regression import judge_build, judge_test
from pytest_ollama_perf.analysis.run_value import RunEvidence, parse_minimal_record

STORED, REQUESTS, TESTS = 20, 50, 200


def runs(test: int, rng: np.random.Generator) -> list[RunEvidence]:
    costs = requests(rng, WORLDS["clean"].runs(rng, 1, STORED + 1)[0], REQUESTS)
    return [
        parse_minimal_record(
            {
                "test": f"test_{test}",
                "run": number,
                "requests": [{"eval_tps": rate, "ttft_s": 1 / rate} for rate in np.exp(-run).tolist()],
            }
        )
        for number, run in enumerate(costs)
    ]


def main() -> int:
    rng = np.random.default_rng(1)
    suite = [runs(test, rng) for test in range(TESTS)]
    times = []
    started = time.perf_counter()
    verdicts = []
    for test in suite:
        before = time.perf_counter()
        verdicts.append(judge_test(test[:STORED], test[STORED:]))
        times.append(time.perf_counter() - before)
    judge_build(verdicts)
    whole, one = time.perf_counter() - started, statistics.median(times)
    print(f"one verdict, {STORED} stored runs of {REQUESTS} requests, 2 metrics: {1e3 * one:.2f} ms (bar 5 ms)")
    print(f"{TESTS} tests: {whole:.2f} s (bar 5 s)")
    return 0 if one < 0.005 and whole < 5.0 else 1


if __name__ == "__main__":
    sys.exit(main())
