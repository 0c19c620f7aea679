"""Which part of a request became slower: loading, the server's queue, prefill, decode, or network and client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from types import MappingProxyType

from pytest_ollama_perf.core.sample import Sample

PHASES = MappingProxyType(
    {
        "load": "loading the model",
        "queue": "the server's queue",
        "prefill": "prefill",
        "decode": "decode",
        "network": "network and client",
    }
)
"""Phases in the order of a request, and their names in a sentence."""

_MIN_SHARE = 0.2
_MIN_CHANGE = 0.03
_MIN_CHANGE_S = 0.001
_DEVIATIONS = 3.0


@dataclass(frozen=True)
class PhaseChange:
    """One phase in the baseline and now, in seconds; ``direction``: +1 grew, -1 shrank, 0 no clear change."""

    phase: str
    baseline_s: float
    now_s: float
    direction: int


def compute_phase_medians(samples: Iterable[Sample]) -> dict[str, float]:
    """Return the median seconds of each phase over the requests that succeeded; empty without server counters.

    Network and client is what is left of the latency: ``latency - total_duration``.
    """
    splits = [_split_phases(sample) for sample in samples if sample.ok and sample.counters.total_duration_ns]
    return {phase: median(split[phase] for split in splits) / 1e9 for phase in PHASES} if splits else {}


def _split_phases(sample: Sample) -> dict[str, int]:
    counters = sample.counters
    return {
        "load": counters.load_duration_ns or 0,
        "queue": counters.queue_ns or 0,
        "prefill": counters.prompt_eval_duration_ns or 0,
        "decode": counters.eval_duration_ns or 0,
        "network": max(0, sample.done_ns - sample.start_ns - (counters.total_duration_ns or 0)),
    }


def compare_phases(
    baseline: Sequence[Mapping[str, float]], now: Sequence[Mapping[str, float]]
) -> tuple[PhaseChange, ...]:
    """Compare the phases of the baseline's runs with those of the candidate runs.

    A phase moved where the medians differ by more than its usual spread between runs (three standard deviations by the
    MAD), by 3 % and 1 ms, and by at least a fifth of the largest move.
    """
    pairs = {phase: (_list_values(baseline, phase), _list_values(now, phase)) for phase in PHASES}
    known = {phase: (before, after) for phase, (before, after) in pairs.items() if before and after}
    largest = max((abs(median(after) - median(before)) for before, after in known.values()), default=0.0)
    return tuple(_compare_phase(phase, before, after, largest) for phase, (before, after) in known.items())


def _list_values(runs: Iterable[Mapping[str, float]], phase: str) -> list[float]:
    return [run[phase] for run in runs if phase in run]


def _compare_phase(phase: str, before: Sequence[float], after: Sequence[float], largest: float) -> PhaseChange:
    was, is_ = median(before), median(after)
    spread = 1.4826 * median(abs(value - was) for value in before)
    least = max(_MIN_CHANGE_S, _MIN_CHANGE * was, _DEVIATIONS * spread, _MIN_SHARE * largest)
    direction = 0 if abs(is_ - was) < least else 1 if is_ > was else -1
    return PhaseChange(phase, was, is_, direction)


def explain_phases(found: Sequence[PhaseChange]) -> str:
    """Name the phases that changed: "the server's queue grew, prefill and decode did not"; empty if none did."""
    grew = [PHASES[move.phase] for move in found if move.direction > 0]
    shrank = [PHASES[move.phase] for move in found if move.direction < 0]
    still = [PHASES[move.phase] for move in found if move.phase in _NAMED_WHEN_UNCHANGED and not move.direction]
    if not grew and not shrank:
        return ""
    parts = [f"{_join_names(names)} {verb}" for names, verb in ((grew, "grew"), (shrank, "shrank")) if names]
    rest = [f"{_join_names(still)} did not"] if still else []
    return ", ".join([*parts, *rest])


_NAMED_WHEN_UNCHANGED = frozenset({"queue", "prefill", "decode"})


def _join_names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
