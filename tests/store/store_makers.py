"""Runs to store, made of a seed."""

from __future__ import annotations

import random
from typing import Any

from pytest_ollama_perf.core.run import ClientStats, Fingerprint, ModelState, Run
from pytest_ollama_perf.core.sample import Counters, Outcome, Phase, Sample
from pytest_ollama_perf.core.workload import Workload

URL = "http://127.0.0.1:11434"
TEST = "tests/test_llm.py::test_chat_speed"
DIGEST = "0f" * 32
FINGERPRINT = Fingerprint(
    server_version="0.32.15",
    model="llama3.2:3b",
    model_digest=DIGEST,
    quantization="Q4_K_M",
    family="llama",
    parameter_size="3.2B",
    context_length=4096,
    vram_share=1.0,
    gpu="NVIDIA H200",
    driver="570.86",
    server_env={"OLLAMA_NUM_PARALLEL": "4"},
    client={"python": "3.11.2", "platform": "linux"},
)


def make_run(run_id: str = "r1", **changed: Any) -> Run:
    """Return a small valid run."""
    tokens, requests, gap_ns = (changed.pop(name, default) for name, default in _SHAPE.items())
    seed = changed.pop("seed", run_id)
    state = {URL: ModelState(loaded=True, size=10**9, size_vram=10**9, context_length=4096, digest=DIGEST)}
    fields: dict[str, Any] = {
        "id": run_id,
        "test": TEST,
        "session": "build-1",
        "started_at": 1_700_000_000.25,
        "git_commit": "ab" * 20,
        "plugin_version": "0.1.0",
        "workload": Workload(model="llama3.2:3b", concurrency=4, requests=requests),
        "fingerprint": FINGERPRINT,
        "samples": make_samples(run_id, requests, tokens, gap_ns, random.Random(repr(seed))),
        "load_time_s": 1.2345,
        "before": state,
        "after": state,
        "watch": ClientStats(loop_lag_p99_s=0.00123, cpu_share=0.1234),
    }
    return Run(**fields | changed)


_SHAPE = {"tokens": 8, "requests": 4, "gap_ns": 7_000_000}


def make_samples(run: str, requests: int, tokens: int, gap_ns: int, chance: random.Random) -> tuple[Sample, ...]:
    """Return requests of four clients, one after the other, with gaps of 5 % noise."""
    clocks = [10**13] * 4
    samples = []
    for index in range(requests):
        sent = clocks[index % 4] + chance.randrange(10**5)
        chunks = [sent + int(chance.gauss(180e6, 9e6))]
        for _ in range(tokens - 1):
            chunks.append(chunks[-1] + max(1000, int(chance.gauss(gap_ns, 0.05 * gap_ns))))
        done = chunks[-1] + chance.randrange(100_000, 400_000)
        clocks[index % 4] = done
        samples.append(_sample(run, index, sent, chunks, done, chance))
    return tuple(samples)


def _sample(run: str, index: int, sent: int, chunks: list[int], done: int, chance: random.Random) -> Sample:
    return Sample(
        index=index,
        client=index % 4,
        url=URL,
        request_id=f"{run}-{index:06d}",
        stage=Phase.MEASURED if index else Phase.WARMUP,
        outcome=Outcome.OK,
        status=200,
        sent_ns=sent,
        header_ns=chunks[0] - chance.randrange(50_000),
        first_token_ns=chunks[0],
        first_answer_ns=chunks[0],
        chunk_ns=tuple(chunks),
        done_ns=done,
        line_count=len(chunks) + 1,
        read_count=len(chunks) + chance.randrange(3),
        bytes_received=6000 + chance.randrange(300),
        read_lag_ns=chance.randrange(200_000),
        done_reason="length",
        counters=Counters(
            total_duration_ns=done - sent - chance.randrange(400_000, 3_000_000),
            load_duration_ns=chance.randrange(500_000, 5_000_000),
            prompt_eval_count=40 + chance.randrange(4),
            prompt_eval_duration_ns=int(chance.gauss(20e3, 500)) * 1000,
            eval_count=len(chunks),
            eval_duration_ns=(chunks[-1] - chunks[0]) // 1000 * 1000,
        ),
    )
