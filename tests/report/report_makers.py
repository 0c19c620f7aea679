"""Values that the tests of this folder are about: a load of four clients, made by hand with round numbers."""

from __future__ import annotations

import msgspec
import run_makers

from pytest_ollama_perf.core.run import Fingerprint, Run
from pytest_ollama_perf.core.sample import Counters, Outcome, Phase
from pytest_ollama_perf.core.verdict import Verdict, VerdictRow, VerdictStatus
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.harness.evaluation import MeasuredLoad, TestResult
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
    sent = START // MS + index // 4 * 300
    made = run_makers.sample(
        index, client=index % 4, sent=sent, ttft=200, prompt=32, prefill=190, queue=8, url=URL, request_id=f"r-{index}"
    )
    lost = {} if outcome is Outcome.OK else UNANSWERED
    return msgspec.structs.replace(made, stage=stage, outcome=outcome, **{"read_count": 0, **lost, **changes})


URL = "http://gpu-box:11434"
UNANSWERED = {
    "first_token_ns": None,
    "first_answer_ns": None,
    "chunk_ns": (),
    "line_count": 0,
    "done_reason": "",
    "counters": Counters(),
}
COUNTERS = sample(0).counters


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


def row(metric, stat="", status=VerdictStatus.OK, **fields):
    return VerdictRow(metric=metric, stat=stat, status=status, reason="", **fields)


def result(
    status=VerdictStatus.OK,
    reason="every limit is met",
    loads=None,
    test="tests/test_chat.py::test_chat_speed",
    **verdict,
):
    return TestResult(
        test, Verdict(status=status, reason=reason, **verdict), (load(),) if loads is None else tuple(loads)
    )
