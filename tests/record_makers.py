"""Run records in the minimal form, as another tool would write them."""

from __future__ import annotations

import math
import random


def record(run=0, factor=1.0, requests=10, test="chat", **fields):
    """A run ``factor`` times as slow as usual: 80 tokens/s, first token after 0.2 s, done after 1 s."""
    one = {"eval_tps": 80.0 / factor, "ttft_s": 0.2 * factor, "latency_s": 1.0 * factor}
    return {"test": test, "run": run, "requests": [one] * requests, "throughput_tps": 300.0 / factor} | fields


def records(count, sd=0.01, seed=1, factor=1.0, **fields):
    """``count`` runs whose speed spreads by ``sd``."""
    draw = random.Random(seed)
    return [record(run, factor * math.exp(draw.gauss(0.0, sd)), **fields) for run in range(count)]
