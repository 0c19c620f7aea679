"""Sending again what a full or restarting server turned away, where a load asks for that."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from pytest_ollama_perf.sample import Sample
from pytest_ollama_perf.workload import Workload

STATUSES = frozenset({502, 503, 504})
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


def wanted(workload: Workload, tries: Sequence[Sample]) -> bool:
    """Return whether the last of ``tries`` is to be followed by another."""
    return len(tries) <= workload.retries and tries[-1].status in STATUSES and not tries[-1].ok


def pause_s(seed: int, index: int, tries: int) -> float:
    """Return the seconds to wait after so many tries: doubling, give or take a half, so that clients spread out."""
    spread = random.Random(f"retry:{seed}:{index}:{tries}").uniform(0.5, 1.5)
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(tries - 1, 10)) * spread


def joined(tries: Sequence[Sample], turn: int = 1) -> Sample:
    """Return the one sample of a request: its last try, with when the first was sent and how that ended."""
    last = tries[-1]
    if turn != 1:
        last = msgspec.structs.replace(last, turn=turn)
    if len(tries) == 1:
        return last
    first = tries[0]
    return msgspec.structs.replace(
        last,
        attempt=sum(one.attempt for one in tries),
        first_sent_ns=first.sent_ns,
        first_error=f"{first.outcome.value}: {first.error}",
    )
