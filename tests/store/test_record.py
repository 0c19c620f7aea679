"""A run as one file: what comes back is what went in, and nothing else ever passes for it."""

from __future__ import annotations

import base64
import json
import random
import uuid
import zlib
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_makers import make_run

from pytest_ollama_perf.core import CorruptRecordError, NewerSchemaError, StoreError
from pytest_ollama_perf.core.run import ClientStats, Fingerprint, ModelState, Run
from pytest_ollama_perf.core.sample import Counters, Outcome, Phase, Sample
from pytest_ollama_perf.core.workload import (
    Arrival,
    Endpoint,
    Prefix,
    Timeouts,
    Workload,
    compute_identity,
    hash_prompts,
)
from pytest_ollama_perf.metrics.summary import summarise
from pytest_ollama_perf.store.columns import ColumnError, pack_in_full, unpack, unpack_in_full
from pytest_ollama_perf.store.files import MAX_FILE_BYTES, encode_checked
from pytest_ollama_perf.store.record import decode_run, encode_run

US = 1000
TIMES = st.integers(-(10**15), 10**18)
SMALL = st.integers(0, 10**6)
WORDS = st.text(max_size=12)
SECONDS = st.floats(0, 1e9)
MAYBE_TIME = st.none() | TIMES
COUNTERS = st.builds(Counters, **{name: st.none() | st.integers(-5, 2**80) for name in Counters.__struct_fields__})
SAMPLES = st.builds(
    Sample,
    index=SMALL,
    client=SMALL,
    url=WORDS,
    request_id=WORDS | st.from_regex(r"[a-f]{3}-\{?[0-9]{1,7}\}?", fullmatch=True),
    stage=st.sampled_from(Phase),
    outcome=st.sampled_from(Outcome),
    sent_ns=TIMES,
    done_ns=TIMES,
    error=WORDS,
    status=st.none() | st.integers(100, 599),
    scheduled_ns=MAYBE_TIME,
    connect_ns=st.none() | SMALL,
    header_ns=MAYBE_TIME,
    first_token_ns=MAYBE_TIME,
    first_answer_ns=MAYBE_TIME,
    chunk_ns=st.lists(TIMES, max_size=6).map(tuple),
    line_count=SMALL,
    read_count=SMALL,
    bytes_received=SMALL,
    read_lag_ns=SMALL,
    done_reason=WORDS,
    counters=COUNTERS,
    attempt=SMALL,
    server=WORDS,
)
WORKLOADS = st.builds(
    Workload,
    model=WORDS,
    endpoint=st.sampled_from(Endpoint),
    concurrency=st.none() | SMALL,
    rate=st.none() | SECONDS,
    arrival=st.sampled_from(Arrival),
    prefix=st.sampled_from(Prefix),
    think=st.booleans() | WORDS,
    keep_alive=WORDS | SECONDS,
    prompts=st.lists(WORDS, max_size=3).map(tuple),
    options=st.dictionaries(WORDS, st.integers(-5, 5) | st.booleans() | WORDS | SECONDS, max_size=3),
    timeouts=st.builds(Timeouts, connect_s=SECONDS),
    salt=WORDS,
)
STATES = st.dictionaries(
    WORDS, st.builds(ModelState, loaded=st.booleans(), size=st.none() | SMALL, digest=WORDS), max_size=2
)
RUNS = st.builds(
    Run,
    id=WORDS,
    test=WORDS,
    session=WORDS,
    started_at=SECONDS,
    git_commit=WORDS,
    workload=WORKLOADS,
    fingerprint=st.builds(
        Fingerprint,
        gpu=WORDS,
        vram_share=st.none() | st.floats(0, 1),
        server_env=st.dictionaries(WORDS, WORDS, max_size=2),
    ),
    samples=st.lists(SAMPLES, max_size=5).map(tuple),
    load_time_s=st.none() | SECONDS,
    before=STATES,
    after=STATES,
    watch=st.builds(ClientStats, cpu_share=SECONDS),
    aborted=WORDS,
)


def tick_of(run: Run) -> int:
    """The documented tick in ns: the power of two of us nearest below 1/500 of the median gap, at least 1 us."""
    gaps = sorted(
        b // US - a // US
        for s in run.samples
        for chunks in [[chunk - run.samples[0].sent_ns for chunk in s.chunk_ns]]
        for a, b in pairwise(chunks)
    )
    tick = 1
    while gaps and 2 * tick <= gaps[len(gaps) // 2] // 500:
        tick *= 2
    return tick * US


def without_times(sample: Sample) -> Sample:
    return msgspec.structs.replace(
        sample,
        sent_ns=0,
        done_ns=0,
        scheduled_ns=None,
        connect_ns=None,
        header_ns=None,
        first_token_ns=None,
        first_answer_ns=None,
        chunk_ns=(),
        read_lag_ns=0,
    )


@given(RUNS)
@settings(max_examples=120, deadline=None)
def test_a_run_comes_back_up_to_the_documented_resolution(run: Run) -> None:
    back = decode_run(encode_run(run), "x")
    kept = msgspec.structs.replace(run.workload, prompts=(), prompt_set=hash_prompts(run.workload.prompts))
    assert msgspec.structs.replace(back, samples=()) == msgspec.structs.replace(run, samples=(), workload=kept)
    assert compute_identity(back.workload) == compute_identity(run.workload)
    assert [without_times(s) for s in back.samples] == [without_times(s) for s in run.samples]
    tick = tick_of(run)
    for found, given_ in zip(back.samples, run.samples, strict=True):
        for name in (
            "sent_ns",
            "done_ns",
            "scheduled_ns",
            "connect_ns",
            "header_ns",
            "first_token_ns",
            "first_answer_ns",
            "read_lag_ns",
        ):
            before, after = getattr(given_, name), getattr(found, name)
            assert (before is None) == (after is None), name
            assert before is None or 0 <= before - after < US, name
        assert len(found.chunk_ns) == len(given_.chunk_ns)
        for number, (before, after) in enumerate(zip(given_.chunk_ns, found.chunk_ns, strict=True)):
            assert 0 <= before - after < (tick + US if number else US)


def test_times_stay_in_order() -> None:
    run = make_run(requests=40, tokens=30)
    for sample in decode_run(encode_run(run), "x").samples:
        times = [sample.sent_ns, sample.header_ns, sample.first_token_ns, *sample.chunk_ns, sample.done_ns]
        assert times == sorted(times)


def test_metrics_of_a_stored_run_are_those_of_the_run() -> None:
    run = make_run(requests=50, tokens=64)
    before, after = summarise(run), summarise(decode_run(encode_run(run), "x"))
    assert after.metrics["tps"].value == before.metrics["tps"].value
    for name in ("ttft", "latency", "itl", "tpot"):
        for stat, value in before.metrics[name].stats.items():
            assert after.metrics[name].stats[stat] == pytest.approx(value, rel=0.003, abs=2e-6), (name, stat)


@pytest.mark.parametrize("gap_ns", [260_000, 4_000_000, 7_000_000, 20_000_000, 50_000_000])
def test_fifty_requests_of_64_tokens_take_less_than_10_kb(gap_ns: int) -> None:
    run_id = uuid.UUID(int=random.Random(gap_ns).getrandbits(128)).hex
    run = make_run(run_id, requests=50, tokens=64, gap_ns=gap_ns, session=run_id[::-1])
    assert len(encode_run(run)) < 10_000


def test_one_member_stands_on_a_line() -> None:
    lines = encode_run(make_run()).decode().splitlines()
    assert lines[0] == '{"schema":1,'
    assert lines[1] == '"id":"r1",'
    assert any(line.startswith('"eval_count":8') for line in lines)


def test_a_reformatted_record_is_the_same_record() -> None:
    run = make_run()
    pretty = json.dumps(json.loads(encode_run(run)), indent=4, sort_keys=True).replace("\n", "\r\n").encode()
    assert decode_run(pretty, "x") == decode_run(encode_run(run), "x")


def test_prompts_are_kept_as_their_hash() -> None:
    secret = Workload(model="m", prompts=("my secret prompt", "another"))
    data = encode_run(make_run(workload=secret))
    assert b"secret" not in data
    assert compute_identity(decode_run(data, "x").workload) == compute_identity(secret)


@pytest.mark.parametrize(
    "changed",
    [{"salt": "x"}, {"timeouts": Timeouts(total_s=1)}, {"keep_alive": 3}, {"drain_s": 1.0}, {"model": "other"}],
)
def test_what_is_not_the_load_leaves_the_identity(changed: dict[str, Any]) -> None:
    assert compute_identity(Workload(**{"model": "m"} | changed)) == compute_identity(Workload(model="m"))


@pytest.mark.parametrize(
    "changed",
    [
        {"concurrency": 2},
        {"num_ctx": 8192},
        {"num_predict": 32},
        {"options": {"num_thread": 2}},
        {"seed": 2},
        {"prompts": ("a",)},
        {"requests": 50},
        {"think": "high"},
        {"endpoint": Endpoint.CHAT},
    ],
)
def test_what_is_the_load_changes_the_identity(changed: dict[str, Any]) -> None:
    assert compute_identity(Workload(**{"model": "m"} | changed)) != compute_identity(Workload(model="m"))


def test_the_identity_is_the_same_in_every_version() -> None:
    assert compute_identity(Workload(model="m")) == "9f3b339f05f3a8bb"
    assert compute_identity(Workload(model="m", think_time_s=(0, 2), options={"top_k": 1})) == compute_identity(
        Workload(model="m", think_time_s=(0.0, 2.0), options={"top_k": 1.0})
    )


@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    ).map(lambda value: json.dumps(value).encode())
)
@settings(deadline=None)
def test_foreign_content_is_a_corrupt_record_that_names_the_file(data: bytes) -> None:
    with pytest.raises((CorruptRecordError, NewerSchemaError), match=r"^/store/x\.json "):
        decode_run(data, "/store/x.json")


DATA = encode_run(make_run())


@given(st.integers(0, len(DATA) - 1), st.integers(0, 255), st.booleans())
@settings(max_examples=400, deadline=None)
def test_a_damaged_byte_never_gives_another_run(position: int, byte: int, cut: bool) -> None:
    damaged = DATA[:position] if cut else DATA[:position] + bytes([byte]) + DATA[position + 1 :]
    try:
        run = decode_run(damaged, "x")
    except (CorruptRecordError, NewerSchemaError):
        return
    assert run == decode_run(DATA, "x")


def body(**changed: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DATA)
    del found["check"]
    return found | changed


def columns(**changed: Any) -> bytes:
    return encode_checked(body(samples=body()["samples"] | changed))


@pytest.mark.parametrize(
    "changed",
    [
        {"count": 10**12},
        {"count": -1},
        {"count": 5},
        {"tick_us": 0},
        {"origin_ns": 10**30},
        {"chunk_count": 10**9},
        {"chunk_count": -1},
        {"chunk_count": [1, 2]},
        {"chunk_count": 10**30},
        {"stage": "lunch"},
        {"outcome": {"words": ["ok"], "rows": 3}},
        {"request_id": {"words": [], "rows": 0}},
        {"sent_us": "0,1,1,"},
        {"sent_us": "0,1,9,00000"},
        {"sent_us": "0,0,1,00000"},
        {"sent_us": "a,b,c"},
        {"sent_us": "0,1,1,\u00e900"},
        {"sent_us": "0,1,1,~~~~~"},
        {"sent_us": "0,4611686018427387904,8,{{{{{{{{{{"},
        {"status": {"empty": [9], "values": 1}},
        {"status": {"empty": [0, 0], "values": 1}},
        {"client": None},
        {"client": {"empty": [0], "values": 1}},
        {"more": 1},
        {"index": "nonsense"},
    ],
)
def test_sealed_columns_that_do_not_fit_are_corrupt(changed: dict[str, Any]) -> None:
    with pytest.raises(CorruptRecordError, match=r"^x "):
        decode_run(columns(**changed), "x")


@pytest.mark.parametrize(
    "changed",
    [
        {"workload": None},
        {"started_at": "now"},
        {"samples": []},
        {"surprise": 1},
        {"schema": 1.5},
        {"schema": True},
        {"schema": 0},
    ],
)
def test_sealed_members_of_a_wrong_kind_are_corrupt(changed: dict[str, Any]) -> None:
    with pytest.raises(CorruptRecordError, match=r"^x "):
        decode_run(encode_checked(body(**changed)), "x")


def test_a_bomb_is_not_unfolded() -> None:
    press = zlib.compressobj(9, wbits=-15)
    bomb = base64.b85encode(press.compress(bytes(10**8)) + press.flush()).decode()
    with pytest.raises(ColumnError, match="100000000 values in"):
        unpack_in_full(f"0,1,1,{bomb}", 10**8)
    with pytest.raises(ColumnError, match="wrong length"):
        unpack_in_full(f"0,1,1,{bomb}", 1000)


def test_even_a_million_equal_values_can_be_read_back() -> None:
    import numpy as np

    values = np.full(10**6, 7)
    assert (unpack_in_full(pack_in_full(values), 10**6) == values).all()
    assert unpack("0,1,1,00", 1) == [0]


def test_depth_and_size_are_bounded() -> None:
    with pytest.raises(CorruptRecordError):
        decode_run(b"[" * 10**6, "x")
    with pytest.raises(CorruptRecordError, match="at most"):
        decode_run(bytes(MAX_FILE_BYTES + 1), "x")


def test_a_newer_schema_is_refused_with_what_to_do() -> None:
    with pytest.raises(NewerSchemaError) as caught:
        decode_run(encode_checked({"schema": 7, "anything": "new"}), "a/b.json")
    assert str(caught.value) == (
        "a/b.json has schema 7, newer than this version understands (up to 1): upgrade pytest-ollama-perf to read it"
    )


def test_an_older_record_is_brought_up_step_by_step() -> None:
    old = body(schema=1)
    old["trial"] = old.pop("test")
    steps = {
        1: lambda found: {("middle" if name == "trial" else name): value for name, value in found.items()},
        2: lambda found: {("test" if name == "middle" else name): value for name, value in found.items()},
    }
    run = decode_run(encode_checked(old), "x", upgrades=steps, newest=3)
    assert (run.schema, run.test) == (3, make_run().test)


SAMPLE = make_run().samples[0]


@pytest.mark.parametrize(
    "run",
    [
        make_run(started_at=float("nan")),
        make_run(load_time_s=float("inf")),
        make_run(workload=Workload(model="m", options={"x": {1, 2}.union})),
        make_run(samples=[SAMPLE, msgspec.structs.replace(SAMPLE, sent_ns=2**200)]),
    ],
)
def test_what_cannot_be_read_back_is_not_written(run: Run) -> None:
    with pytest.raises(StoreError, match=r"^run r1 cannot be stored: "):
        encode_run(run)


def test_text_that_is_no_unicode_is_kept_as_an_escape() -> None:
    run = decode_run(encode_run(make_run(test="t\udcff.py::x", aborted="\ud800")), "x")
    assert (run.test, run.aborted) == ("t\\udcff.py::x", "\\ud800")
