"""What each of several servers did of one load: its part, its speed, and whether one of them is slow."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import ClassVar

import msgspec

from pytest_ollama_perf.finding import Finding
from pytest_ollama_perf.run import Run, ServerFacts
from pytest_ollama_perf.sample import Sample
from pytest_ollama_perf.summary import Summary, summarise
from pytest_ollama_perf.verdict.wording import number, seconds

_LEAST = 5
"""Requests of a server below which nothing is said of its speed."""

_SLOWER_TPS = 0.85
_SLOWER_TTFT = 1.5
_LATER_S = 0.02
"""A server is slow below this share of the others' tokens/s, or above this multiple of their TTFT and by so much."""

_UNEVEN = 1.25
_CHANCE = 3.0
"""A load is uneven where a server got a quarter more than its part, beyond three standard deviations of chance."""


class ServerNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """One server. ``share`` is its part of all measured requests, ``expected`` the part it was to have, both 0..1.

    ``tps`` in tokens/s; ``ttft_p50`` and ``ttft_p95`` in seconds, infinite where requests failed; ``None`` where there
    is no such number. ``throughput`` is its tokens/s over the whole load.
    """

    name: str
    requests: int
    errors: int
    share: float
    expected: float
    tps: float | None
    throughput: float
    ttft_p50: float | None
    ttft_p95: float | None
    down: bool = False


class Servers(Finding, frozen=True, kw_only=True):
    """The servers of one load, in the order given.

    ``behind`` says that they stand behind one address, which named them; ``imbalance`` is the largest share over the
    share expected; ``uneven`` names the server that got plainly more than its part, ``slow`` those plainly slower than
    the others, each with why.
    """

    beside_numbers: ClassVar[bool] = True

    servers: tuple[ServerNumbers, ...]
    behind: bool
    imbalance: float
    uneven: str = ""
    slow: tuple[str, ...] = ()


def servers(run: Run, summary: Summary) -> tuple[Servers, ...]:
    """Return what the servers of ``run`` did; nothing where there is only one. ``summary`` is that of ``run``."""
    groups, behind = _grouped(run)
    if len(groups) < 2:
        return ()
    weights = {name: 1.0 if behind else _part(run.servers[name], samples) for name, samples in groups.items()}
    every = sum(weights.values())
    total = max(1, summary.requests)
    found = tuple(
        _numbers(run, name, samples, summary, len(samples) / total, weights[name] / every)
        for name, samples in groups.items()
    )
    busiest = max((one for one in found if one.expected), key=lambda one: one.share / one.expected)
    uneven = busiest.name if _is_uneven(busiest, total) else ""
    imbalance = busiest.share / busiest.expected
    return (Servers(servers=found, behind=behind, imbalance=imbalance, uneven=uneven, slow=slow(found)),)


def _part(facts: ServerFacts, samples: Sequence[Sample]) -> float:
    """The weight of a server, nothing where it was left out of the load."""
    return 0.0 if facts.down and not samples else facts.weight


def _grouped(run: Run) -> tuple[dict[str, list[Sample]], bool]:
    """Return the measured samples by server: by upstream where an entry named several, else by URL."""
    named = {sample.server for sample in run.measured if sample.server}
    behind = len(run.servers) < 2 and len(named) > 1
    groups: dict[str, list[Sample]] = defaultdict(list)
    for name in sorted(named) if behind else run.servers:
        groups[name] = []
    for sample in run.measured:
        groups[(sample.server or "not named") if behind else sample.url].append(sample)
    known = groups if behind else {name: groups[name] for name in run.servers}
    return dict(known), behind


def _numbers(
    run: Run, name: str, samples: Sequence[Sample], whole: Summary, share: float, expected: float
) -> ServerNumbers:
    mine = summarise(msgspec.structs.replace(run, samples=tuple(samples)))
    tps, ttft = mine.metrics.get("tps"), mine.metrics.get("ttft")
    return ServerNumbers(
        name=name,
        requests=mine.requests,
        errors=mine.requests - mine.ok,
        share=share,
        expected=expected,
        tps=tps.value if tps and mine.ok else None,
        throughput=mine.output_tokens / whole.wall_s if whole.wall_s else 0.0,
        ttft_p50=ttft.get("p50") if ttft else None,
        ttft_p95=ttft.get("p95") if ttft else None,
        down=name in run.servers and bool(run.servers[name].down),
    )


def _is_uneven(busiest: ServerNumbers, total: int) -> bool:
    spread = math.sqrt(total * busiest.expected * (1 - busiest.expected))
    more = busiest.requests - total * busiest.expected
    return busiest.share >= _UNEVEN * busiest.expected and more > _CHANCE * spread


def slow(found: Sequence[ServerNumbers]) -> tuple[str, ...]:
    """Return in words which servers are plainly slower than the median of the others; a few requests say nothing."""
    told = [one for one in found if one.requests - one.errors >= _LEAST]
    return tuple(text for one in told for text in _slow(one, [other for other in told if other is not one]))


def _slow(one: ServerNumbers, others: Sequence[ServerNumbers]) -> Iterable[str]:
    rates = [other.tps for other in others if other.tps]
    if one.tps and rates and one.tps < _SLOWER_TPS * median(rates):
        yield f"{one.name} makes {number(one.tps)} tokens/s, the others {number(median(rates))}"
        return
    waits = [other.ttft_p50 for other in others if other.ttft_p50 is not None and math.isfinite(other.ttft_p50)]
    mine = one.ttft_p50
    if mine is not None and waits and mine > max(_SLOWER_TTFT * median(waits), median(waits) + _LATER_S):
        yield f"{one.name} answers after {seconds(mine)} (ttft p50), the others after {seconds(median(waits))}"
