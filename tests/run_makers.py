"""Samples and runs for tests: written down by hand, or read from the recorded transcripts."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.sample import Counters, Outcome, Phase, Sample
from pytest_ollama_perf.core.workload import Workload

MS = 1_000_000
TRANSCRIPTS = Path(__file__).parent / "transcripts"


def sample(
    index=0, *, sent=0, ttft=100, tokens=11, step=10, client=0, prompt=30, prefill=90, load=1, queue=0, **fields
):
    """A streamed success, times in ms: a token at ``sent + ttft`` and then every ``step``; done with the last."""
    first = sent + ttft
    chunks = tuple((first + number * step) * MS for number in range(tokens))
    eval_ns = (tokens - 1) * step * MS
    counters = Counters(
        total_duration_ns=(load + queue + prefill) * MS + eval_ns,
        load_duration_ns=load * MS,
        prompt_eval_count=prompt,
        prompt_eval_duration_ns=prefill * MS,
        eval_count=tokens,
        eval_duration_ns=eval_ns or None,
    )
    values = {
        "index": index,
        "client": client,
        "url": "http://box:11434",
        "request_id": str(index),
        "stage": Phase.MEASURED,
        "outcome": Outcome.OK,
        "sent_ns": sent * MS,
        "done_ns": chunks[-1],
        "first_token_ns": chunks[0],
        "first_answer_ns": chunks[0],
        "chunk_ns": chunks,
        "line_count": tokens + 1,
        "read_count": tokens,
        "status": 200,
        "done_reason": "length",
        "counters": counters,
    }
    return Sample(**(values | fields))


def failure(index=0, *, sent=0, took=5, outcome=Outcome.HTTP_ERROR, **fields):
    values = {
        "index": index,
        "client": 0,
        "url": "http://box:11434",
        "request_id": str(index),
        "stage": Phase.MEASURED,
        "outcome": outcome,
        "sent_ns": sent * MS,
        "done_ns": (sent + took) * MS,
    }
    return Sample(**(values | fields))


def run_of(*samples, warmup=1, **fields):
    """A run of ``samples`` after ``warmup`` dropped ones, with a workload that asks for what the first sample has."""
    before = tuple(sample(-1 - number, stage=Phase.WARMUP) for number in range(warmup))
    asked = max((one.counters.eval_count or 0 for one in samples), default=0) or 64
    words = {"model": "m", "prompt_words": 16, "num_predict": asked, "requests": max(1, len(samples))}
    words |= fields.pop("workload", {})
    return Run(id="r", workload=Workload(**words), samples=before + samples, **fields)


def one_after_another(count, **fields):
    """``count`` equal requests of one client, each sent when the one before was done."""
    took = fields.get("ttft", 100) + (fields.get("tokens", 11) - 1) * fields.get("step", 10)
    return [sample(index, sent=index * took, **fields) for index in range(count)]


def slower(one, factor):
    """The same sample with every duration times ``factor``."""
    scaled = {name: getattr(one, name) * factor for name in ("sent_ns", "done_ns")}
    for name in ("scheduled_ns", "first_token_ns", "first_answer_ns"):
        value = getattr(one, name)
        scaled[name] = None if value is None else value * factor
    scaled["chunk_ns"] = tuple(at * factor for at in one.chunk_ns)
    counters = msgspec.structs.asdict(one.counters)
    durations = {name: value * factor for name, value in counters.items() if name.endswith("_ns") and value is not None}
    return msgspec.structs.replace(one, **scaled, counters=Counters(**(counters | durations)))


def transcript(name):
    """The successful generate requests of a recorded session against the real server, in the order they were sent."""
    exchanges = json.loads((TRANSCRIPTS / f"{name}.json").read_text())["exchanges"]
    generated = [one for one in exchanges if one["request"]["path"] == "/api/generate"]
    return [_recorded(index, one) for index, one in enumerate(generated) if _final(one).get("eval_count")]


def _final(exchange):
    return json.loads(exchange["response"]["chunks"][-1][1])


def _recorded(index, exchange):
    response, final = exchange["response"], _final(exchange)
    chunks = tuple(round(at * 1e9) for at, line in response["chunks"] if '"response":""' not in line)
    counters = {f"{name}_ns": final.get(name) for name in _DURATIONS} | {name: final.get(name) for name in _COUNTS}
    return Sample(
        index=index,
        client=index,
        url="http://box:11434",
        request_id=str(index),
        stage=Phase.MEASURED,
        outcome=Outcome.OK,
        sent_ns=round(exchange["request"]["sent_s"] * 1e9),
        done_ns=round(response["ended_s"] * 1e9),
        first_token_ns=chunks[0],
        first_answer_ns=chunks[0],
        chunk_ns=chunks,
        line_count=len(response["chunks"]),
        read_count=len(response["chunks"]),
        done_reason=final["done_reason"],
        counters=Counters(**counters),
    )


_DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
_COUNTS = ("prompt_eval_count", "eval_count")
