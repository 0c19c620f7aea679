"""Samples as columns: every number is written as its distance from what the numbers before it foretell."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Annotated, Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from pytest_ollama_perf.core.sample import Counters, Outcome, Phase, Sample
from pytest_ollama_perf.store.columns import (
    ColumnError,
    IntArray,
    NumberColumn,
    SparseColumn,
    TextColumn,
    pack,
    pack_in_full,
    pack_texts,
    unpack,
    unpack_in_full,
    unpack_texts,
)
from pytest_ollama_perf.store.files import escape_surrogates

_NS_PER_US = 1000
_COUNTER_FIELDS = tuple(name for name in Counters.__struct_fields__ if name != "total_duration_ns")
_TEXT_FIELDS = ("url", "request_id", "error", "done_reason", "server", "first_error")
_MIN_TICKS_PER_GAP = 500
"""A tick is at most this part of the median gap between two chunks."""

OptionalInts = Sequence[int | None]
IntList = list[int]


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
    index: NumberColumn = None
    client: NumberColumn = None
    url: TextColumn = ""
    request_id: TextColumn = ""
    stage: TextColumn = ""
    outcome: TextColumn = ""
    error: TextColumn = ""
    status: NumberColumn = None
    sent_us: str = ""
    scheduled_us: NumberColumn = None
    connect_us: NumberColumn = None
    header_us: NumberColumn = None
    first_token_us: NumberColumn = None
    first_answer_us: NumberColumn = None
    first_chunk_us: NumberColumn = None
    chunk_count: NumberColumn = None
    chunk_ticks: str = ""
    done_us: NumberColumn = None
    line_count: NumberColumn = None
    read_count: NumberColumn = None
    bytes_received: NumberColumn = None
    read_lag_us: NumberColumn = None
    done_reason: TextColumn = ""
    attempt: NumberColumn = None
    server: TextColumn = ""
    first_sent_us: NumberColumn = None
    first_error: TextColumn = ""
    turn: NumberColumn = None
    total_duration_ns: NumberColumn = None
    load_duration_ns: NumberColumn = None
    prompt_eval_count: NumberColumn = None
    prompt_eval_cached_count: NumberColumn = None
    prompt_eval_duration_ns: NumberColumn = None
    eval_count: NumberColumn = None
    eval_duration_ns: NumberColumn = None


def pack_samples(samples: Sequence[Sample]) -> SampleTable:
    """Return ``samples`` as columns; ``OverflowError`` for times that no clock shows."""
    origin = samples[0].sent_ns if samples else 0
    numbers = [sample.index for sample in samples]
    return SampleTable(
        count=len(samples),
        origin_ns=origin,
        index=pack(_subtract_predicted(numbers, range(len(samples)))),
        client=pack([sample.client for sample in samples]),
        status=pack([sample.status for sample in samples]),
        attempt=pack([sample.attempt for sample in samples]),
        turn=pack([sample.turn - 1 for sample in samples]) if any(sample.turn != 1 for sample in samples) else None,
        bytes_received=pack([sample.bytes_received for sample in samples]),
        **_pack_text_fields(samples, numbers),
        **_pack_times(samples, origin),
        **_pack_counters(samples),
    )


def _pack_counters(samples: Sequence[Sample]) -> dict[str, Any]:
    return {name: pack([getattr(sample.counters, name) for sample in samples]) for name in _COUNTER_FIELDS}


def _pack_text_fields(samples: Sequence[Sample], numbers: IntList) -> dict[str, Any]:
    columns = {
        "stage": [sample.stage.value for sample in samples],
        "outcome": [sample.outcome.value for sample in samples],
    }
    for name in _TEXT_FIELDS:
        columns[name] = [escape_surrogates(getattr(sample, name)) for sample in samples]
    return {name: pack_texts(words, numbers) for name, words in columns.items()}


def _pack_times(samples: Sequence[Sample], origin: int) -> dict[str, Any]:
    sent = [_to_us(sample.sent_ns, origin) for sample in samples]
    done = [_to_us(sample.done_ns, origin) for sample in samples]
    header = [_to_us_or_none(sample.header_ns, origin) for sample in samples]
    first = [_to_us_or_none(sample.first_token_ns, origin) for sample in samples]
    chunks = [[_to_us(chunk, origin) for chunk in sample.chunk_ns] for sample in samples]
    starts = [chunk[0] if chunk else None for chunk in chunks]
    tick, ticks = _compute_ticks(chunks)
    lasts = [chunk[0] + tick * sum(steps) if chunk else None for chunk, steps in zip(chunks, ticks, strict=True)]
    begun = _fill_missing(header, sent)
    spoken = _fill_missing(first, begun)
    return {
        "tick_us": tick,
        "sent_us": pack_in_full(np.array(_subtract_predicted(sent, [0, *sent][: len(sent)]), dtype=np.int64)),
        "scheduled_us": pack(
            _subtract_predicted([_to_us_or_none(sample.scheduled_ns, origin) for sample in samples], sent)
        ),
        "first_sent_us": pack(
            _subtract_predicted([_to_us_or_none(sample.first_sent_ns, origin) for sample in samples], sent)
        ),
        "connect_us": pack([_to_us_or_none(sample.connect_ns, 0) for sample in samples]),
        "header_us": pack(_subtract_predicted(header, sent)),
        "first_token_us": pack(_subtract_predicted(first, begun)),
        "first_answer_us": pack(
            _subtract_predicted([_to_us_or_none(sample.first_answer_ns, origin) for sample in samples], spoken)
        ),
        "first_chunk_us": pack(_subtract_predicted(starts, spoken)),
        "chunk_ticks": pack_in_full(np.array([step for steps in ticks for step in steps], dtype=np.int64)),
        "done_us": pack(_subtract_predicted(done, _fill_missing(lasts, spoken))),
        "read_lag_us": pack([_to_us(sample.read_lag_ns, 0) for sample in samples]),
        **_pack_counts(samples, _compute_totals_ns(sent, done)),
    }


def _pack_counts(samples: Sequence[Sample], whole_ns: IntList) -> dict[str, NumberColumn]:
    chunks = [len(sample.chunk_ns) for sample in samples]
    lines = [sample.line_count for sample in samples]
    return {
        "chunk_count": pack(chunks),
        "line_count": pack(_subtract_predicted(lines, chunks)),
        "read_count": pack(_subtract_predicted([sample.read_count for sample in samples], lines)),
        "total_duration_ns": pack(
            _subtract_predicted([sample.counters.total_duration_ns for sample in samples], whole_ns)
        ),
    }


def _compute_ticks(chunks: Sequence[Sequence[int]]) -> tuple[int, list[list[int]]]:
    """Return the tick in microseconds and the gaps of each request's chunks in ticks, rounded down to whole ones."""
    gaps = sorted(later - earlier for chunk in chunks for earlier, later in pairwise(chunk))
    median = gaps[len(gaps) // 2] if gaps else 0
    tick = 1 << max(0, (max(0, median) // _MIN_TICKS_PER_GAP).bit_length() - 1)
    places = [[(time - chunk[0]) // tick for time in chunk] for chunk in chunks]
    return tick, [[later - earlier for earlier, later in pairwise(place)] for place in places]


def unpack_samples(table: SampleTable) -> tuple[Sample, ...]:
    """Return the samples of ``table``; ``BadColumn`` where its columns do not fit each other."""
    sent = np.cumsum(unpack_in_full(table.sent_us, table.count)).tolist()
    numbers = _add_known(_unpack_required(table.index, table.count), range(table.count))
    columns = {
        "index": numbers,
        "client": _unpack_required(table.client, table.count),
        "status": unpack(table.status, table.count),
        "attempt": _unpack_required(table.attempt, table.count),
        "turn": [1 + (turn or 0) for turn in unpack(table.turn, table.count)],
        "bytes_received": _unpack_required(table.bytes_received, table.count),
        **_unpack_text_fields(table, numbers),
        **_unpack_times(table, sent),
    }
    rows = zip(*columns.values(), strict=True)
    return tuple(Sample(**dict(zip(columns, row, strict=True))) for row in rows)


def _unpack_text_fields(table: SampleTable, numbers: IntList) -> dict[str, Sequence[Any]]:
    words = {name: unpack_texts(getattr(table, name), numbers) for name in _TEXT_FIELDS}
    stages = [Phase(word) for word in unpack_texts(table.stage, numbers)]
    outcomes = [Outcome(word) for word in unpack_texts(table.outcome, numbers)]
    return words | {"stage": stages, "outcome": outcomes}


def _unpack_times(table: SampleTable, sent: IntList) -> dict[str, Sequence[Any]]:
    count, origin = table.count, table.origin_ns
    header = _add_predicted(unpack(table.header_us, count), sent)
    begun = _fill_missing(header, sent)
    first = _add_predicted(unpack(table.first_token_us, count), begun)
    spoken = _fill_missing(first, begun)
    starts = _add_predicted(unpack(table.first_chunk_us, count), spoken)
    counts = _unpack_required(table.chunk_count, count)
    chunks = _unpack_chunks(table, counts, [start for start in starts if start is not None])
    lasts = [(chunk[-1] - origin) // _NS_PER_US if chunk else None for chunk in chunks]
    done = _add_known(_unpack_required(table.done_us, count), _fill_missing(lasts, spoken))
    return {
        "sent_ns": _to_ns(sent, origin),
        "scheduled_ns": _to_ns(_add_predicted(unpack(table.scheduled_us, count), sent), origin),
        "first_sent_ns": _to_ns(_add_predicted(unpack(table.first_sent_us, count), sent), origin),
        "connect_ns": _to_ns(unpack(table.connect_us, count), 0),
        "header_ns": _to_ns(header, origin),
        "first_token_ns": _to_ns(first, origin),
        "first_answer_ns": _to_ns(_add_predicted(unpack(table.first_answer_us, count), spoken), origin),
        "chunk_ns": chunks,
        "done_ns": _to_ns(done, origin),
        "read_lag_ns": _to_ns(_unpack_required(table.read_lag_us, count), 0),
        **_unpack_counts(table, counts, _compute_totals_ns(sent, done)),
    }


def _unpack_counts(table: SampleTable, chunks: IntList, whole_ns: IntList) -> dict[str, Sequence[Any]]:
    lines = _add_known(_unpack_required(table.line_count, table.count), chunks)
    totals = _add_predicted(unpack(table.total_duration_ns, table.count), whole_ns)
    columns = [unpack(getattr(table, name), table.count) for name in _COUNTER_FIELDS]
    counters = [
        Counters(total_duration_ns=total, **dict(zip(_COUNTER_FIELDS, row, strict=True)))
        for total, row in zip(totals, zip(*columns, strict=True), strict=True)
    ]
    return {
        "line_count": lines,
        "read_count": _add_known(_unpack_required(table.read_count, table.count), lines),
        "counters": counters,
    }


def _unpack_chunks(table: SampleTable, counts: IntList, starts_us: IntList) -> list[tuple[int, ...]]:
    """Return every request's chunk times in nanoseconds; ``starts_us`` are those of the requests that have any."""
    some = [count for count in counts if count]
    if min(counts, default=0) < 0 or len(some) != len(starts_us):
        raise ColumnError("chunks without a first one")
    steps = unpack_in_full(table.chunk_ticks, sum(some) - len(some)) * table.tick_us
    begins = np.cumsum([0, *some[:-1]]) if some else np.zeros(0, dtype=np.int64)
    places = np.zeros(sum(some), dtype=np.int64)
    places[_mask_except(len(places), begins)] = steps
    places = np.cumsum(places)
    places += np.repeat(np.array(starts_us, dtype=np.int64) - places[begins], some)
    flat = (places * _NS_PER_US + table.origin_ns).tolist()
    ends = list(accumulate(counts, initial=0))
    return [tuple(flat[begin:end]) for begin, end in pairwise(ends)]


def _mask_except(length: int, begins: IntArray) -> NDArray[np.bool_]:
    mask = np.ones(length, dtype=np.bool_)
    mask[begins] = False
    return mask


def _to_us(time_ns: int, origin: int) -> int:
    return (time_ns - origin) // _NS_PER_US


def _to_us_or_none(time_ns: int | None, origin: int) -> int | None:
    return None if time_ns is None else (time_ns - origin) // _NS_PER_US


def _to_ns(times_us: OptionalInts, origin: int) -> list[int | None]:
    return [None if time is None else time * _NS_PER_US + origin for time in times_us]


def _compute_totals_ns(sent_us: IntList, done_us: IntList) -> IntList:
    return [(done - sent) * _NS_PER_US for sent, done in zip(sent_us, done_us, strict=True)]


def _fill_missing(values: OptionalInts, otherwise: IntList) -> IntList:
    return [other if value is None else value for value, other in zip(values, otherwise, strict=True)]


def _subtract_predicted(values: OptionalInts, foretold: Sequence[int]) -> list[int | None]:
    return [None if value is None else value - known for value, known in zip(values, foretold, strict=True)]


def _add_predicted(rest: OptionalInts, foretold: Sequence[int]) -> list[int | None]:
    return [None if value is None else value + known for value, known in zip(rest, foretold, strict=True)]


def _add_known(rest: IntList, foretold: Sequence[int]) -> IntList:
    return [value + known for value, known in zip(rest, foretold, strict=True)]


def _unpack_required(column: NumberColumn, count: int) -> IntList:
    """Return the values of a column that has one in every row."""
    if not count:
        return []
    if column is None or isinstance(column, SparseColumn):
        raise ColumnError("a row without a value that every request has")
    return cast("IntList", unpack(column, count))
