"""Samples as columns: every number is written as its distance from what the numbers before it foretell."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Annotated, Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from pytest_ollama_perf.sample import Counters, Outcome, Sample, Stage
from pytest_ollama_perf.store.columns import (
    BadColumn,
    Column,
    Holes,
    Ints,
    WordColumn,
    pack,
    pack_in_full,
    pack_words,
    unpack,
    unpack_in_full,
    unpack_words,
)
from pytest_ollama_perf.store.seal import plain

_US = 1000
_COUNTERS = tuple(name for name in Counters.__struct_fields__ if name != "total_duration_ns")
_TEXTS = ("url", "request_id", "error", "done_reason", "server", "first_error")
_FINEST = 500
"""A tick is at most this part of the median gap between two chunks."""

Values = Sequence[int | None]
Known = list[int]


class SampleTable(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One column for each field of a sample; ``*_us`` are whole microseconds.

    Foretold are: ``index`` by the row, ``sent_us`` by the send before, ``scheduled_us``, ``first_sent_us`` and
    ``header_us`` by the send, ``turn`` by 1,
    ``first_token_us`` by the header, ``first_answer_us`` and ``first_chunk_us`` by the first token, ``done_us`` by the
    last chunk (each by what comes before where there is none), ``line_count`` by the chunks, ``read_count`` by the
    lines, ``total_duration_ns`` by the time from sent to done.
    """

    count: Annotated[int, msgspec.Meta(ge=0)]
    origin_ns: Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
    tick_us: Annotated[int, msgspec.Meta(ge=1)]
    index: Column = None
    client: Column = None
    url: WordColumn = ""
    request_id: WordColumn = ""
    stage: WordColumn = ""
    outcome: WordColumn = ""
    error: WordColumn = ""
    status: Column = None
    sent_us: str = ""
    scheduled_us: Column = None
    connect_us: Column = None
    header_us: Column = None
    first_token_us: Column = None
    first_answer_us: Column = None
    first_chunk_us: Column = None
    chunk_count: Column = None
    chunk_ticks: str = ""
    done_us: Column = None
    line_count: Column = None
    read_count: Column = None
    bytes_received: Column = None
    read_lag_us: Column = None
    done_reason: WordColumn = ""
    attempt: Column = None
    server: WordColumn = ""
    first_sent_us: Column = None
    first_error: WordColumn = ""
    turn: Column = None
    total_duration_ns: Column = None
    load_duration_ns: Column = None
    prompt_eval_count: Column = None
    prompt_eval_cached_count: Column = None
    prompt_eval_duration_ns: Column = None
    eval_count: Column = None
    eval_duration_ns: Column = None


def fold(samples: Sequence[Sample]) -> SampleTable:
    """Return ``samples`` as columns; ``OverflowError`` for times that no clock shows."""
    origin = samples[0].sent_ns if samples else 0
    numbers = [sample.index for sample in samples]
    return SampleTable(
        count=len(samples),
        origin_ns=origin,
        index=pack(_less(numbers, range(len(samples)))),
        client=pack([sample.client for sample in samples]),
        status=pack([sample.status for sample in samples]),
        attempt=pack([sample.attempt for sample in samples]),
        turn=pack([sample.turn - 1 for sample in samples]) if any(sample.turn != 1 for sample in samples) else None,
        bytes_received=pack([sample.bytes_received for sample in samples]),
        **_words(samples, numbers),
        **_times(samples, origin),
        **_counters(samples),
    )


def _counters(samples: Sequence[Sample]) -> dict[str, Any]:
    return {name: pack([getattr(sample.counters, name) for sample in samples]) for name in _COUNTERS}


def _words(samples: Sequence[Sample], numbers: Known) -> dict[str, Any]:
    columns = {
        "stage": [sample.stage.value for sample in samples],
        "outcome": [sample.outcome.value for sample in samples],
    }
    for name in _TEXTS:
        columns[name] = [plain(getattr(sample, name)) for sample in samples]
    return {name: pack_words(words, numbers) for name, words in columns.items()}


def _times(samples: Sequence[Sample], origin: int) -> dict[str, Any]:
    sent = [_us(sample.sent_ns, origin) for sample in samples]
    done = [_us(sample.done_ns, origin) for sample in samples]
    header = [_us_or_none(sample.header_ns, origin) for sample in samples]
    first = [_us_or_none(sample.first_token_ns, origin) for sample in samples]
    chunks = [[_us(chunk, origin) for chunk in sample.chunk_ns] for sample in samples]
    starts = [chunk[0] if chunk else None for chunk in chunks]
    tick, ticks = _ticks(chunks)
    lasts = [chunk[0] + tick * sum(steps) if chunk else None for chunk, steps in zip(chunks, ticks, strict=True)]
    begun = _or(header, sent)
    spoken = _or(first, begun)
    return {
        "tick_us": tick,
        "sent_us": pack_in_full(np.array(_less(sent, [0, *sent][: len(sent)]), dtype=np.int64)),
        "scheduled_us": pack(_less([_us_or_none(sample.scheduled_ns, origin) for sample in samples], sent)),
        "first_sent_us": pack(_less([_us_or_none(sample.first_sent_ns, origin) for sample in samples], sent)),
        "connect_us": pack([_us_or_none(sample.connect_ns, 0) for sample in samples]),
        "header_us": pack(_less(header, sent)),
        "first_token_us": pack(_less(first, begun)),
        "first_answer_us": pack(_less([_us_or_none(sample.first_answer_ns, origin) for sample in samples], spoken)),
        "first_chunk_us": pack(_less(starts, spoken)),
        "chunk_ticks": pack_in_full(np.array([step for steps in ticks for step in steps], dtype=np.int64)),
        "done_us": pack(_less(done, _or(lasts, spoken))),
        "read_lag_us": pack([_us(sample.read_lag_ns, 0) for sample in samples]),
        **_counts(samples, _whole(sent, done)),
    }


def _counts(samples: Sequence[Sample], whole_ns: Known) -> dict[str, Column]:
    chunks = [len(sample.chunk_ns) for sample in samples]
    lines = [sample.line_count for sample in samples]
    return {
        "chunk_count": pack(chunks),
        "line_count": pack(_less(lines, chunks)),
        "read_count": pack(_less([sample.read_count for sample in samples], lines)),
        "total_duration_ns": pack(_less([sample.counters.total_duration_ns for sample in samples], whole_ns)),
    }


def _ticks(chunks: Sequence[Sequence[int]]) -> tuple[int, list[list[int]]]:
    """Return the tick in microseconds and the gaps of each request's chunks in ticks, rounded down to whole ones."""
    gaps = sorted(later - earlier for chunk in chunks for earlier, later in pairwise(chunk))
    median = gaps[len(gaps) // 2] if gaps else 0
    tick = 1 << max(0, (max(0, median) // _FINEST).bit_length() - 1)
    places = [[(time - chunk[0]) // tick for time in chunk] for chunk in chunks]
    return tick, [[later - earlier for earlier, later in pairwise(place)] for place in places]


def unfold(table: SampleTable) -> tuple[Sample, ...]:
    """Return the samples of ``table``; ``BadColumn`` where its columns do not fit each other."""
    sent = np.cumsum(unpack_in_full(table.sent_us, table.count)).tolist()
    numbers = _sum(_known(table.index, table.count), range(table.count))
    columns = {
        "index": numbers,
        "client": _known(table.client, table.count),
        "status": unpack(table.status, table.count),
        "attempt": _known(table.attempt, table.count),
        "turn": [1 + (turn or 0) for turn in unpack(table.turn, table.count)],
        "bytes_received": _known(table.bytes_received, table.count),
        **_unfold_words(table, numbers),
        **_unfold_times(table, sent),
    }
    rows = zip(*columns.values(), strict=True)
    return tuple(Sample(**dict(zip(columns, row, strict=True))) for row in rows)


def _unfold_words(table: SampleTable, numbers: Known) -> dict[str, Sequence[Any]]:
    words = {name: unpack_words(getattr(table, name), numbers) for name in _TEXTS}
    stages = [Stage(word) for word in unpack_words(table.stage, numbers)]
    outcomes = [Outcome(word) for word in unpack_words(table.outcome, numbers)]
    return words | {"stage": stages, "outcome": outcomes}


def _unfold_times(table: SampleTable, sent: Known) -> dict[str, Sequence[Any]]:
    count, origin = table.count, table.origin_ns
    header = _plus(unpack(table.header_us, count), sent)
    begun = _or(header, sent)
    first = _plus(unpack(table.first_token_us, count), begun)
    spoken = _or(first, begun)
    starts = _plus(unpack(table.first_chunk_us, count), spoken)
    counts = _known(table.chunk_count, count)
    chunks = _unfold_chunks(table, counts, [start for start in starts if start is not None])
    lasts = [(chunk[-1] - origin) // _US if chunk else None for chunk in chunks]
    done = _sum(_known(table.done_us, count), _or(lasts, spoken))
    return {
        "sent_ns": _ns(sent, origin),
        "scheduled_ns": _ns(_plus(unpack(table.scheduled_us, count), sent), origin),
        "first_sent_ns": _ns(_plus(unpack(table.first_sent_us, count), sent), origin),
        "connect_ns": _ns(unpack(table.connect_us, count), 0),
        "header_ns": _ns(header, origin),
        "first_token_ns": _ns(first, origin),
        "first_answer_ns": _ns(_plus(unpack(table.first_answer_us, count), spoken), origin),
        "chunk_ns": chunks,
        "done_ns": _ns(done, origin),
        "read_lag_ns": _ns(_known(table.read_lag_us, count), 0),
        **_unfold_counts(table, counts, _whole(sent, done)),
    }


def _unfold_counts(table: SampleTable, chunks: Known, whole_ns: Known) -> dict[str, Sequence[Any]]:
    lines = _sum(_known(table.line_count, table.count), chunks)
    totals = _plus(unpack(table.total_duration_ns, table.count), whole_ns)
    columns = [unpack(getattr(table, name), table.count) for name in _COUNTERS]
    counters = [
        Counters(total_duration_ns=total, **dict(zip(_COUNTERS, row, strict=True)))
        for total, row in zip(totals, zip(*columns, strict=True), strict=True)
    ]
    return {
        "line_count": lines,
        "read_count": _sum(_known(table.read_count, table.count), lines),
        "counters": counters,
    }


def _unfold_chunks(table: SampleTable, counts: Known, starts_us: Known) -> list[tuple[int, ...]]:
    """Return every request's chunk times in nanoseconds; ``starts_us`` are those of the requests that have any."""
    some = [count for count in counts if count]
    if min(counts, default=0) < 0 or len(some) != len(starts_us):
        raise BadColumn("chunks without a first one")
    steps = unpack_in_full(table.chunk_ticks, sum(some) - len(some)) * table.tick_us
    begins = np.cumsum([0, *some[:-1]]) if some else np.zeros(0, dtype=np.int64)
    places = np.zeros(sum(some), dtype=np.int64)
    places[_others(len(places), begins)] = steps
    places = np.cumsum(places)
    places += np.repeat(np.array(starts_us, dtype=np.int64) - places[begins], some)
    flat = (places * _US + table.origin_ns).tolist()
    ends = list(accumulate(counts, initial=0))
    return [tuple(flat[begin:end]) for begin, end in pairwise(ends)]


def _others(length: int, begins: Ints) -> NDArray[np.bool_]:
    mask = np.ones(length, dtype=np.bool_)
    mask[begins] = False
    return mask


def _us(time_ns: int, origin: int) -> int:
    return (time_ns - origin) // _US


def _us_or_none(time_ns: int | None, origin: int) -> int | None:
    return None if time_ns is None else (time_ns - origin) // _US


def _ns(times_us: Values, origin: int) -> list[int | None]:
    return [None if time is None else time * _US + origin for time in times_us]


def _whole(sent_us: Known, done_us: Known) -> Known:
    return [(done - sent) * _US for sent, done in zip(sent_us, done_us, strict=True)]


def _or(values: Values, otherwise: Known) -> Known:
    return [other if value is None else value for value, other in zip(values, otherwise, strict=True)]


def _less(values: Values, foretold: Sequence[int]) -> list[int | None]:
    return [None if value is None else value - known for value, known in zip(values, foretold, strict=True)]


def _plus(rest: Values, foretold: Sequence[int]) -> list[int | None]:
    return [None if value is None else value + known for value, known in zip(rest, foretold, strict=True)]


def _sum(rest: Known, foretold: Sequence[int]) -> Known:
    return [value + known for value, known in zip(rest, foretold, strict=True)]


def _known(column: Column, count: int) -> Known:
    """Return the values of a column that has one in every row."""
    if not count:
        return []
    if column is None or isinstance(column, Holes):
        raise BadColumn("a row without a value that every request has")
    return cast("Known", unpack(column, count))
