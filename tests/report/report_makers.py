"""Values that the tests of this folder are about: a load of four clients, made by hand with round numbers."""

from __future__ import annotations

import msgspec

from pytest_ollama_perf.core.run import Fingerprint, Run
from pytest_ollama_perf.core.sample import Counters, Outcome, Phase, Sample
from pytest_ollama_perf.core.verdict import Verdict, VerdictRow, VerdictStatus
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.harness.results import MeasuredLoad, TestResult
from pytest_ollama_perf.metrics.summary import summarise

MS = 1_000_000
TEST = "tests/test_chat.py::test_chat_speed"
START = 5_000 * MS
FINGERPRINT = Fingerprint(
    server_version="0.32.15",
    model="llama3.2:3b",
    quantization="Q4_K_M",
    context_length=4096,
    vram_share=1.0,
)
WORKLOAD = Workload(model="llama3.2:3b", concurrency=4, requests=20, warmup=4, num_predict=11)


def sample(index, *, stage=Phase.MEASURED, outcome=Outcome.OK, **changes):
    """One request of 11 tokens: first token after 200 ms, then one each 10 ms, sent as its client's last one ended."""
    client, turn = index % 4, index // 4
    sent = START + turn * 300 * MS
    ok = outcome is Outcome.OK
    made = Sample(
        index=index,
        client=client,
        url="http://gpu-box:11434",
        request_id=f"r-{index}",
        stage=stage,
        outcome=outcome,
        sent_ns=sent,
        done_ns=sent + 300 * MS,
        status=200,
        first_token_ns=sent + 200 * MS if ok else None,
        first_answer_ns=sent + 200 * MS if ok else None,
        chunk_ns=tuple(sent + (200 + 10 * step) * MS for step in range(11)) if ok else (),
        line_count=12 if ok else 0,
        done_reason="length" if ok else "",
        counters=COUNTERS if ok else Counters(),
    )
    return msgspec.structs.replace(made, **changes)


COUNTERS = Counters(
    total_duration_ns=299 * MS,
    load_duration_ns=1 * MS,
    prompt_eval_count=32,
    prompt_eval_duration_ns=190 * MS,
    eval_count=11,
    eval_duration_ns=100 * MS,
)


def load(samples=None, *, workload=WORKLOAD, fingerprint=FINGERPRINT, **run):
    if samples is None:
        warmup = [sample(index, stage=Phase.WARMUP) for index in range(4)]
        samples = [*warmup, *(sample(index) for index in range(4, 24))]
    made = Run(
        id="run-1",
        workload=workload,
        fingerprint=fingerprint,
        samples=tuple(samples),
        started_at=1_790_000_000.0,
        **run,
    )
    return MeasuredLoad(made, summarise(made))


def row(metric, stat="", word=VerdictStatus.OK, **fields):
    return VerdictRow(metric=metric, stat=stat, word=word, reason="", **fields)


def result(
    word=VerdictStatus.OK,
    reason="every limit is met",
    loads=None,
    test="tests/test_chat.py::test_chat_speed",
    **verdict,
):
    return TestResult(test, Verdict(word=word, reason=reason, **verdict), (load(),) if loads is None else tuple(loads))
