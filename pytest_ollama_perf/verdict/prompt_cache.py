"""Which prompts the server did not read because it still knew them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_ollama_perf.run import Run
from pytest_ollama_perf.sample import Counters
from pytest_ollama_perf.workload import Prefix


@dataclass(frozen=True)
class CachedPrompts:
    """``requests`` of ``of`` had more than half of their prompt cached; ``told`` by the server or inferred from times.

    ``tokens`` is the share of prompt tokens that were cached, 0 where the server does not say.
    """

    requests: int
    of: int
    told: bool
    tokens: float = 0.0


def cached_prompts(run: Run) -> CachedPrompts | None:
    """Return what was cached, or nothing: also where a warm prefix was asked for.

    Later turns of a chat are left out.
    """
    if run.workload.prefix is Prefix.WARM:
        return None
    # a later turn of a chat begins with the earlier ones: what the server kept of those is no accident
    first = [sample for sample in run.measured if sample.ok and sample.turn == 1]
    counters = [sample.counters for sample in first if sample.counters.prompt_eval_count]
    told = any(one.prompt_eval_cached_count for one in counters)
    requests = _told(counters) if told else _inferred(counters, _slowest(run))
    if not requests:
        return None
    return CachedPrompts(requests, len(counters), told, _share(counters))


def _told(counters: Sequence[Counters]) -> int:
    """A template's opening is the same in every prompt; more than half of the prompt is not the template."""
    return sum((one.prompt_eval_cached_count or 0) * 2 > (one.prompt_eval_count or 0) for one in counters)


def _share(counters: Sequence[Counters]) -> float:
    return sum(one.prompt_eval_cached_count or 0 for one in counters) / sum(
        one.prompt_eval_count or 0 for one in counters
    )


_LONG, _VERY_LONG = 256, 512
_STEPS, _STEPS_ALONE = 4.0, 1.5
_FASTER = 10.0


def _inferred(counters: Sequence[Counters], slowest: float) -> int:
    """Servers before 0.33.3 do not say what was cached; the time tells for long prompts.

    Reading a cached prompt costs about one decode step (1.1-3.4 steps measured, 200 for the same 1000 tokens uncached).
    On the fastest GPUs prefill becomes compute-bound near 40 tokens a step, so 512 uncached tokens take over ten steps.
    The step is the fastest of the run: other requests' prefills only ever make steps longer. A prompt counts as cached
    at 1.5 steps or fewer from 512 tokens on; or, from 256 on, at 4 steps or fewer where another request of the same run
    needed ten times as long for a token.
    """
    steps = [step for step in map(_step, counters) if step]
    if not steps:
        return 0
    return sum(_looks_cached(one, min(steps), slowest) for one in counters)


def _looks_cached(one: Counters, step: float, slowest: float) -> bool:
    count, took = one.prompt_eval_count or 0, one.prompt_eval_duration_ns
    if not took or count < _LONG:
        return False
    alone = count >= _VERY_LONG and took <= _STEPS_ALONE * step
    return alone or (took <= _STEPS * step and _FASTER * took / count <= slowest)


def _step(one: Counters) -> float | None:
    """Nanoseconds of one decode step."""
    count = one.eval_count or 0
    return one.eval_duration_ns / (count - 1) if one.eval_duration_ns and count >= 2 else None


def _slowest(run: Run) -> float:
    """The longest prefill per token of a long prompt, in nanoseconds, warm-up included; 0 where there is none."""
    long = (
        sample.counters for sample in run.samples if sample.ok and (sample.counters.prompt_eval_count or 0) >= _LONG
    )
    return max(((one.prompt_eval_duration_ns or 0) / (one.prompt_eval_count or 1) for one in long), default=0.0)
