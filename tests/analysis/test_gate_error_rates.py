"""Small seeded versions of ``benchmarks/verdicts.py``, with room for chance: they fail when the method breaks."""

import math

import numpy as np
import pytest

from pytest_ollama_perf.analysis.gate import GateRule, judge_runs
from pytest_ollama_perf.analysis.run_value import POLICIES
from pytest_ollama_perf.core.verdict import VerdictStatus

RULE = GateRule.from_policy(POLICIES["tps"])
HISTORIES = 500


def campaign(sd, stored, effect, seed):
    draws = np.random.default_rng(seed).normal(0.0, sd, (HISTORIES, stored + 3))
    draws[:, stored:] += math.log1p(effect)
    words, spent = [], 0
    for row in draws.tolist():
        for runs in (1, 2, 3):
            found = judge_runs(row[:stored], row[stored : stored + runs], RULE)
            if not found.again:
                break
        words.append(found.status)
        spent += runs
    return words.count(VerdictStatus.REGRESSED) / HISTORIES, spent / HISTORIES


@pytest.mark.parametrize(
    ("sd", "stored", "alarms", "spent"), [(0.006, 5, 0.01, 1.1), (0.016, 3, 0.02, 1.7), (0.016, 10, 0.02, 1.3)]
)
def test_unchanged_builds_pass_and_cost_little(sd, stored, alarms, spent):
    failed, runs = campaign(sd, stored, 0.0, seed=1)
    assert failed <= alarms
    assert runs <= spent


@pytest.mark.parametrize(
    ("sd", "stored", "effect", "power"),
    [(0.006, 5, 0.05, 0.95), (0.016, 3, 0.10, 0.95), (0.016, 10, 0.05, 0.82), (0.016, 10, 0.10, 0.98)],
)
def test_slower_builds_are_caught(sd, stored, effect, power):
    assert campaign(sd, stored, effect, seed=2)[0] >= power
