"""False alarms, power and runs spent of the gate on simulated histories, compared with the bar.

    python benchmarks/verdicts.py [--quick] [--seed N]

Exit status 1 when a row misses its bar. ``--quick`` takes a tenth of the histories and lets a row miss by two standard
errors of the simulation.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from noise import WORLDS, Floats, World, requests
from scipy.stats import mannwhitneyu, t

from pytest_ollama_perf.analysis.ab import LOOKS, REQUESTS_PER_SIDE, compare_costs
from pytest_ollama_perf.analysis.drift import REFERENCE_RUNS, DriftPoint, detect_drift
from pytest_ollama_perf.analysis.gate import ErrorBudget, GateRule, judge_runs
from pytest_ollama_perf.analysis.regression import judge_test
from pytest_ollama_perf.analysis.run_value import POLICIES, RunEvidence, compute_run_value, parse_minimal_record
from pytest_ollama_perf.core.verdict import VerdictStatus

RULE = GateRule.from_policy(POLICIES["tps"])
MAX_RUNS = RULE.max_runs
BUILDS_A_WEEK = 14
WEEKS = 26


@dataclass(frozen=True)
class Figure:
    """One simulated number and its bar; ``at_most`` or at least."""

    row: str
    what: str
    value: float
    error: float
    bar: float
    at_most: bool

    def missed(self, leniency: float) -> bool:
        beyond = self.value - self.bar if self.at_most else self.bar - self.value
        return beyond > leniency * self.error + 1e-12

    def __str__(self) -> str:
        share = self.what not in {"runs", "requests", "weeks"}
        sign = "<=" if self.at_most else ">="
        show = (lambda x: f"{100 * x:.2f} %") if share else (lambda x: f"{x:.2f}")
        return (
            f"{self.row:34} {self.what:22} {show(self.value):>9} +- {show(2 * self.error):8} {sign} {show(self.bar):9}"
        )


def share(row: str, what: str, hits: Sequence[bool], bar: float, *, at_most: bool) -> Figure:
    rate = float(np.mean(hits))
    return Figure(row, what, rate, math.sqrt(max(rate * (1 - rate), 1 / len(hits)) / len(hits)), bar, at_most)


def mean(row: str, what: str, values: Sequence[float], bar: float) -> Figure:
    return Figure(row, what, float(np.mean(values)), float(np.std(values) / math.sqrt(len(values))), bar, True)


def sequentially(decide: Callable[[int], VerdictStatus]) -> tuple[VerdictStatus, int]:
    """Ask for one run after the other until the verdict is conclusive."""
    for runs in range(1, MAX_RUNS + 1):
        word = decide(runs)
        if word is not VerdictStatus.UNSURE:
            break
    return word, runs


def gate(history: Floats, candidates: Floats, alpha: float = 1.0) -> tuple[VerdictStatus, int]:
    return sequentially(lambda runs: judge_runs(history, candidates[:runs], RULE, alpha).status)


def campaign(
    world: World, stored: int, effect: float, histories: int, rng: np.random.Generator
) -> list[tuple[VerdictStatus, int]]:
    """Judge ``histories`` builds; ``effect`` is how much slower the candidates are."""
    runs = world.runs(rng, histories, stored + MAX_RUNS)
    fresh = runs[:, stored:] + math.log1p(effect)
    return [
        gate(history, candidates) for history, candidates in zip(runs[:, :stored].tolist(), fresh.tolist(), strict=True)
    ]


def regressed(found: Sequence[tuple[VerdictStatus, int]]) -> list[bool]:
    return [word is VerdictStatus.REGRESSED for word, _ in found]


BAR = (
    ("quiet", 5, 0.01, {0.05: 0.95}, 1.1),
    ("clean", 3, 0.01, {0.10: 0.95}, 1.7),
    ("clean", 10, 0.015, {0.05: 0.85, 0.10: 0.98}, 1.3),
    ("typical", 10, 0.025, {0.05: 0.82, 0.10: 0.95}, 1.4),
    ("noisy", 10, 0.06, {0.20: 0.95}, 2.2),
)
"""World, stored runs; false alarms at most, power at least for each slowdown, runs spent unchanged at most."""

Judge = Callable[[World, int, float, int, np.random.Generator], list[tuple[VerdictStatus, int]]]


def against_history(histories: int, rng: np.random.Generator, judged: Judge, name: str) -> Iterator[Figure]:
    for world, stored, alarms, powers, spent in BAR:
        row = f"{world}, {stored} stored{name}"
        unchanged = judged(WORLDS[world], stored, 0.0, histories, rng)
        yield share(row, "false alarms", regressed(unchanged), alarms, at_most=True)
        yield mean(row, "runs", [float(runs) for _, runs in unchanged], spent)
        for effect, power in powers.items():
            found = judged(WORLDS[world], stored, effect, histories, rng)
            yield share(row, f"power at {effect:.0%}", regressed(found), power, at_most=False)


def from_records(
    world: World, stored: int, effect: float, histories: int, rng: np.random.Generator
) -> list[tuple[VerdictStatus, int]]:
    """The same down to single requests, through the records of ``pytest-ollama-perf judge``: tokens/s and TTFT gate."""
    found = []
    for row in world.runs(rng, histories, stored + MAX_RUNS):
        row[stored:] += math.log1p(effect)
        runs = [_record(costs, rng) for costs in requests(rng, row, 20)]
        found.append(sequentially(_judging(runs[:stored], runs[stored:])))
    return found


def _judging(history: Sequence[RunEvidence], candidates: Sequence[RunEvidence]) -> Callable[[int], VerdictStatus]:
    return lambda runs: judge_test(history, candidates[:runs]).status


def _record(costs: Floats, rng: np.random.Generator) -> RunEvidence:
    """TTFT has more noise than the rate of tokens."""
    first = costs + 0.05 * rng.normal(size=len(costs))
    fields = zip((80 * np.exp(-costs)).tolist(), (0.2 * np.exp(first)).tolist(), np.exp(costs).tolist(), strict=True)
    return parse_minimal_record(
        {"requests": [dict(zip(("eval_tps", "ttft_s", "latency_s"), each, strict=True)) for each in fields]}
    )


def side_by_side(histories: int, rng: np.random.Generator) -> Iterator[Figure]:
    """A/B: the machine's state is common to both sides of a block; each load and each request adds its own."""
    unchanged = [_duel(0.0, rng) for _ in range(histories)]
    slower = [_duel(0.03, rng) for _ in range(histories)]
    yield share(
        "A/B, clean",
        "false alarms",
        [word in {VerdictStatus.REGRESSED, VerdictStatus.FASTER} for word, _ in unchanged],
        0.015,
        at_most=True,
    )
    yield Figure("A/B, clean", "requests", float(np.median([spent for _, spent in unchanged])), 0.0, 64, True)
    caught = [word is VerdictStatus.REGRESSED and spent <= 128 for word, spent in slower]
    yield share("A/B, clean", "power at 3% within 128", caught, 0.90, at_most=False)


def _duel(effect: float, rng: np.random.Generator, load_sd: float = 0.007) -> tuple[VerdictStatus, int]:
    state = WORLDS["clean"].runs(rng, 1, LOOKS[-1])[0]
    own = load_sd * rng.normal(size=(2, LOOKS[-1]))
    sides = requests(rng, state + own, REQUESTS_PER_SIDE, sd=0.015)
    sides[1] += math.log1p(effect)
    a, b = ([compute_run_value(POLICIES["tps"], np.exp(-block).tolist()) for block in side] for side in sides)
    blocks = LOOKS[0]
    while (found := compare_costs(a[:blocks], b[:blocks], POLICIES["tps"].prior_sd)).more:
        blocks += found.more
    return found.status, 2 * REQUESTS_PER_SIDE * blocks


def suite(builds: int, rng: np.random.Generator, tests: int = 20) -> Iterator[Figure]:
    """Twenty tests in one build, one metric each; in the second campaign one of them is 10 % slower."""
    alarms = [any(_build(0.0, tests, rng)) for _ in range(builds)]
    yield share("suite of 20 tests", "builds failed", alarms, 0.02, at_most=True)
    found = [_build(0.10, tests, rng)[0] for _ in range(builds)]
    yield share("suite of 20 tests", "power at 10% in one", found, 0.95, at_most=False)


def _build(effect: float, tests: int, rng: np.random.Generator) -> list[bool]:
    runs = WORLDS["clean"].runs(rng, tests, 10 + MAX_RUNS)
    runs[0, 10:] += math.log1p(effect)
    family, failed = ErrorBudget(tests), []
    for row in runs.tolist():
        failed.append(gate(row[:10], row[10:], family.alpha)[0] is VerdictStatus.REGRESSED)
        family = family.spend(failed[-1])
    return failed


def drift(histories: int, rng: np.random.Generator, world: str = "clean") -> Iterator[Figure]:
    later = WEEKS * BUILDS_A_WEEK
    runs = WORLDS[world].runs(rng, histories, REFERENCE_RUNS + later)
    slope = np.concatenate([np.zeros(REFERENCE_RUNS), np.arange(1, later + 1)]) * math.log1p(0.01) / BUILDS_A_WEEK
    row = f"drift 1 % a week, {BUILDS_A_WEEK} builds a week"
    quiet = [_warned_after(history) for history in runs.tolist()]
    found = [_warned_after(history) for history in (runs + slope).tolist()]
    yield share(row, f"warned in {WEEKS} weeks", [weeks < WEEKS for weeks in quiet], 0.05, at_most=True)
    yield mean(row, "weeks", found, 3.0)


def _warned_after(costs: Sequence[float]) -> float:
    sums = detect_drift([DriftPoint(float(at), cost) for at, cost in enumerate(costs)], RULE).sums
    return next((run + 1 for run, total in enumerate(sums) if total > 6.0), WEEKS * BUILDS_A_WEEK) / BUILDS_A_WEEK


def rivals(histories: int, rng: np.random.Generator) -> Iterator[str]:
    """The obvious rules on the same worlds: one new run of 50 requests against 10 stored ones."""
    yield (
        f"{'rule':32}" + "".join(f"{world:>10}" for world in ("clean", "typical", "noisy")) + f"{'5 %':>10}{'10 %':>10}"
    )
    for name, rule in (
        ("mean 5 % worse than the last run", _mean_against_last),
        ("Mann-Whitney, requests pooled", _mann_whitney),
        ("textbook t interval", _textbook_t),
    ):
        cases = (("clean", 0.0), ("typical", 0.0), ("noisy", 0.0), ("clean", 0.05), ("clean", 0.10))
        rates = [np.mean([rule(row) for row in _rows(world, effect, histories, rng)]) for world, effect in cases]
        yield f"{name:32}" + "".join(f"{rate:10.3f}" for rate in rates)
    cases = (("clean", 0.0), ("typical", 0.0), ("noisy", 0.0), ("clean", 0.05), ("clean", 0.10))
    rates = [np.mean(regressed(campaign(WORLDS[world], 10, effect, 10 * histories, rng))) for world, effect in cases]
    yield f"{'the gate, up to 3 runs':32}" + "".join(f"{rate:10.3f}" for rate in rates)
    modes = campaign(WORLDS["two modes"], 10, 0.0, 10 * histories, rng)
    yield f"the gate where a start lands in one of two modes 6 % apart: {np.mean(regressed(modes)):.3f} false alarms"


def _rows(world: str, effect: float, histories: int, rng: np.random.Generator) -> Floats:
    runs = WORLDS[world].runs(rng, histories, 11)
    runs[:, 10] += math.log1p(effect)
    return requests(rng, runs, 50)


def _mean_against_last(row: Floats) -> bool:
    rates = np.exp(-row).mean(axis=1)
    return bool(rates[-1] < 0.95 * rates[-2])


def _mann_whitney(row: Floats) -> bool:
    return bool(mannwhitneyu(row[-1], row[:-1].ravel(), alternative="greater").pvalue < 0.01)


def _textbook_t(row: Floats) -> bool:
    runs = row.mean(axis=1)
    history = runs[:-1]
    reach = t.ppf(0.99, len(history) - 1) * history.std(ddof=1) * math.sqrt(1 + 1 / len(history))
    return bool(runs[-1] - history.mean() > reach)


def figures(scale: float, rng: np.random.Generator) -> Iterator[Figure]:
    yield from against_history(int(20_000 * scale), rng, campaign, "")
    yield from against_history(int(8_000 * scale), rng, from_records, ", requests, 2 metrics")
    yield from side_by_side(int(4_000 * scale), rng)
    yield from suite(int(10_000 * scale), rng)
    yield from drift(int(2_000 * scale), rng)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng, started = np.random.default_rng(options.seed), time.perf_counter()
    leniency, scale = (2.0, 0.1) if options.quick else (0.0, 1.0)
    missed = 0
    for figure in figures(scale, rng):
        miss = figure.missed(leniency)
        missed += miss
        print(figure, "MISSED" if miss else "met", flush=True)
    print()
    for line in rivals(int(800 * scale), rng):
        print(line, flush=True)
    print(f"\n{missed} missed, seed {options.seed}, {time.perf_counter() - started:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
