"""What becomes of a sampled token: text for the client, the end of the output, or a scripted fault."""

from __future__ import annotations

from pytest_ollama_perf.simulator.faults import Kind
from pytest_ollama_perf.simulator.job import DIED, Drop, Failure, Job, Truncate
from pytest_ollama_perf.simulator.tokens import piece


def emit(job: Job, at_ns: int, tokens_per_line: int) -> None:
    """Hand on the token that ``job`` just sampled and end the job when it was the last."""
    count = len(job.output)
    if _fails(job, count - 1, at_ns):
        return
    if job.ends_at is not None and count >= job.ends_at:
        _end(job, at_ns, "stop")
        return
    text = piece(job.output[-1])
    if _stops(job, text):
        _end(job, at_ns, "stop")
        return
    _say(job, text, at_ns, tokens_per_line)
    if count >= job.limit:
        _end(job, at_ns, "length")


def _fails(job: Job, sent: int, at_ns: int) -> bool:
    if job.struck(Kind.GARBAGE, sent):
        job.sink.garbage(at_ns)
    error: Exception | None = None
    if job.struck(Kind.DROP, sent):
        error = Drop()
    elif job.struck(Kind.TRUNCATE, sent):
        error = Truncate()
    elif job.struck(Kind.ERROR, sent):
        error = Failure(500, DIED, engine=True)
    if error is None:
        return False
    job.output.pop()
    _flush(job, at_ns)
    job.over(at_ns, error=error)
    return True


def _stops(job: Job, text: str) -> bool:
    if not job.ask.stop:
        return False
    job.text += text
    return any(stop in job.text for stop in job.ask.stop)


def _say(job: Job, text: str, at_ns: int, tokens_per_line: int) -> None:
    job.held.append(text)
    count = len(job.output)
    if len(job.held) >= tokens_per_line or count == job.think_until:
        _flush(job, at_ns)


def _flush(job: Job, at_ns: int) -> None:
    if job.held:
        job.sink.piece("".join(job.held), len(job.output) <= job.think_until, at_ns)
        job.held.clear()


def _end(job: Job, at_ns: int, reason: str) -> None:
    _flush(job, at_ns)
    job.over(at_ns, reason=reason)
