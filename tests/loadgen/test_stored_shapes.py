"""What a shaped load leaves comes back from the history as it was."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from run_makers import run_of, sample

from pytest_ollama_perf.core.verdict import Verdict, VerdictStatus
from pytest_ollama_perf.core.workload import ChatMessage, Stage, compute_identity
from pytest_ollama_perf.harness.evaluation import MeasuredLoad, TestResult
from pytest_ollama_perf.metrics.summary import summarise
from pytest_ollama_perf.report.document import ReportMeta, build_report, parse_document, to_samples
from pytest_ollama_perf.store.record import decode_run, encode_run

TRIES = st.one_of(st.none(), st.integers(0, 10**6))


@given(st.lists(st.tuples(TRIES, st.text(max_size=10), st.integers(1, 5)), min_size=1, max_size=5))
def test_turns_and_first_attempts_come_back(rows) -> None:
    samples = [
        sample(
            number,
            sent=1000 + number,
            turn=turn,
            first_sent_ns=None if before is None else (1000 + number) * 1_000_000 - before * 1000,
            first_error=text.encode("utf-8", "ignore").decode(),
        )
        for number, (before, text, turn) in enumerate(rows)
    ]
    kept = decode_run(encode_run(run_of(*samples)), "it").measured
    assert [(one.turn, one.first_sent_ns) for one in kept] == [(one.turn, one.first_sent_ns) for one in samples]
    assert [one.start_ns for one in kept] == [one.start_ns for one in samples]


SHAPES = {
    "stages": (Stage(level=4, seconds=2.5, ramp=True),),
    "messages": ((ChatMessage(role="user", content="Why?"),),),
    "weights": (1.5,),
    "images": ("iVBORw0KGgo=",),
    "turns": 3,
    "retries": 2,
    "reuse_connections": False,
}


def test_a_shaped_load_is_the_same_load_when_it_comes_back_but_for_what_it_sent() -> None:
    run = run_of(sample(), workload=SHAPES)
    kept = decode_run(encode_run(run), "it")
    assert compute_identity(kept.workload) == compute_identity(run.workload)
    assert (kept.workload.messages, kept.workload.images) == ((), ())
    assert {name: getattr(kept.workload, name) for name in ("stages", "weights", "turns", "retries")} == {
        name: SHAPES[name] for name in ("stages", "weights", "turns", "retries")
    }


def test_a_report_holds_the_shape_without_the_megabytes_of_its_images() -> None:
    run = run_of(sample(turn=2, first_sent_ns=5, first_error="busy: full"), workload=SHAPES)
    result = TestResult("t", Verdict(status=VerdictStatus.OK, reason=""), (MeasuredLoad(run, summarise(run)),))
    content = build_report([result], meta=ReportMeta(plugin_version="1", started_at=0.0))
    assert b"iVBORw0KGgo=" not in content
    (load,) = parse_document(content, "it").tests[0].loads
    assert load.workload.stages == SHAPES["stages"]
    assert compute_identity(load.workload) == compute_identity(run.workload)
    assert msgspec.structs.asdict(to_samples(load)[-1]) == msgspec.structs.asdict(run.samples[-1])
