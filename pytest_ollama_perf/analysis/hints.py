"""Hints that a run gives in addition to the verdict. A hint never changes the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import mean

from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.sample import Outcome, Sample
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.metrics.format import format_count, format_seconds
from pytest_ollama_perf.metrics.summary import Summary, has_short_steady_window


def find_hints(run: Run, summary: Summary) -> tuple[str, ...]:
    """Return the hints of ``run``, one line each."""
    return (*_suggest_slots(run), *_explain_refusals(summary), *_explain_whole_run(run, summary))


_REQUESTS_PER_CLIENT = 3
"""Requests per client from which the time in which all clients are busy usually is long enough."""


def _explain_whole_run(run: Run, summary: Summary) -> Iterator[str]:
    if summary.ok and run.workload.rate is None and has_short_steady_window(run):
        yield (
            "throughput covers the whole run, because the time in which all clients were busy is too short; "
            f"use {_REQUESTS_PER_CLIENT * run.workload.clients} requests or more"
        )


def _suggest_slots(run: Run) -> Iterator[str]:
    """Name the number of slots if requests clearly waited for one."""
    urls = sorted({sample.url for sample in run.measured})
    for url in urls:
        samples = [sample for sample in run.measured if sample.url == url and sample.ok]
        slots = count_slots(samples)
        if slots is None:
            continue
        where = f"{sanitize(url)}: " if len(urls) > 1 else ""
        waited = format_seconds(mean(sample.counters.queue_ns or 0 for sample in samples) / 1e9)
        ran = "requests ran one at a time" if slots == 1 else f"at most {slots} requests ran concurrently"
        yield f"{where}{ran} and waited {waited} for a slot; OLLAMA_NUM_PARALLEL is probably {slots}"


_MIN_WAITING_SHARE = 0.2
_EDGE_SHARE = 0.05


def count_slots(samples: Sequence[Sample]) -> int | None:
    """Return how many of one server's requests ran at the same time, or ``None`` where none had to wait for a slot.

    A request ran for the last ``prompt_eval + eval`` of its time; 5 % at both ends are left out, since clocks and
    counters do not meet exactly. Waiting means a fifth of the time spent running, on average, while more requests were
    in flight than ran.
    """
    served = [sample for sample in samples if _compute_running_ns(sample) and sample.counters.queue_ns is not None]
    if len(served) < 2:
        return None
    if sum(sample.counters.queue_ns or 0 for sample in served) < _MIN_WAITING_SHARE * sum(
        map(_compute_running_ns, served)
    ):
        return None
    slots = _count_overlap(
        _trim_span(sample.done_ns - _compute_running_ns(sample), sample.done_ns) for sample in served
    )
    return slots if slots < _count_overlap((sample.sent_ns, sample.done_ns) for sample in served) else None


def _compute_running_ns(sample: Sample) -> int:
    return (sample.counters.prompt_eval_duration_ns or 0) + (sample.counters.eval_duration_ns or 0)


def _trim_span(start: int, end: int) -> tuple[int, int]:
    edge = int(_EDGE_SHARE * (end - start))
    return start + edge, end - edge


def _count_overlap(spans: Iterable[tuple[int, int]]) -> int:
    """Return the largest number of spans that overlap; an end at a start comes first."""
    steps = sorted(step for start, end in spans for step in ((start, 1), (end, -1)))
    at_once = most = 0
    for _, change in steps:
        at_once += change
        most = max(most, at_once)
    return most


def _explain_refusals(summary: Summary) -> Iterator[str]:
    busy = summary.outcomes.get(Outcome.BUSY.value, 0)
    if busy:
        yield f"the server turned {format_count(busy, 'request')} away: its OLLAMA_MAX_QUEUE was full during a load"
    slow = summary.outcomes.get(Outcome.FIRST_TOKEN_TIMEOUT.value, 0)
    if slow:
        yield f"{format_count(slow, 'request')} got no first token in time; raise the timeout or lower the load"
