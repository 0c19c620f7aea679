"""Whether a measurement can be trusted. Each problem has a code and numbers, and either invalidates the run or not.

Every threshold is defined next to its check, with the reason for it. A false alarm costs more than a missed one: a run
that is needlessly called invalid makes users turn the check off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from pytest_ollama_perf.analysis import client_checks
from pytest_ollama_perf.analysis.client_checks import find_cached_prompts
from pytest_ollama_perf.analysis.epochs import COUNTER_MEANING, compare_fingerprints
from pytest_ollama_perf.core.run import Fingerprint, GpuStats, ModelState, Run
from pytest_ollama_perf.core.sample import Sample
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.verdict import Problem, ProblemCode
from pytest_ollama_perf.core.workload import Endpoint
from pytest_ollama_perf.metrics import format_count, format_number, format_percent, format_seconds
from pytest_ollama_perf.metrics.summary import Summary

_NORMAL_THROTTLE_REASONS = frozenset({"software power cap", "sync boost"})
"""Large models run a GPU at its power limit for as long as they decode: that is the GPU's normal speed."""

_MAX_THROTTLED_SHARE = 0.1
"""A tenth of the readings: a shorter slow-down moves medians and trimmed means by less than their margins."""


def check_throttling(run: Run, summary: Summary) -> Iterator[Problem]:
    """Heat, a failing power supply or a power limit kept a GPU below its possible clocks."""
    gpus = run.telemetry.gpus if run.telemetry else ()
    for index, gpu in enumerate(gpus):
        for reason, share in gpu.throttled.items():
            ordinary = reason in _NORMAL_THROTTLE_REASONS
            if not ordinary or share >= _MAX_THROTTLED_SHARE:
                text = (
                    f"{_format_gpu(gpu, index, len(gpus))} was slowed down in {format_percent(share)} of the "
                    f"readings: {reason}"
                )
                invalidates = not ordinary and share >= _MAX_THROTTLED_SHARE
                yield Problem(
                    code=ProblemCode.GPU_THROTTLED, text=f"{text}{_format_peak(gpu, reason)}", invalidates=invalidates
                )


def _format_gpu(gpu: GpuStats, index: int, of: int) -> str:
    name = sanitize(gpu.name, 60)
    return " ".join(filter(None, ("GPU", f"{index}" if of > 1 else "", f"({name})" if name else "")))


def _format_peak(gpu: GpuStats, reason: str) -> str:
    if "thermal" in reason and gpu.max_temperature_c is not None:
        return f", up to {format_number(gpu.max_temperature_c)} °C"
    if "power" in reason and gpu.max_power_w is not None:
        return f", up to {format_number(gpu.max_power_w)} W"
    return ""


def check_telemetry(run: Run, summary: Summary) -> Iterator[Problem]:
    """Requested telemetry is missing, or it ended early. A limit without requested telemetry reports that itself."""
    telemetry = run.telemetry
    if telemetry is not None and telemetry.missing and (telemetry.source == "command" or telemetry.gpus):
        yield Problem(code=ProblemCode.TELEMETRY_INCOMPLETE, text=sanitize(telemetry.missing, 300), invalidates=False)


_MUST_MATCH = frozenset({"model_digest", "context_length", COUNTER_MEANING})
"""Servers that differ in one of these fields have no common numbers; other differences are only named."""


def check_servers_down(run: Run, summary: Summary) -> Iterator[Problem]:
    """A server that did not answer before the load: its requests failed, unless it was left out."""
    for url, facts in run.servers.items():
        if not facts.down:
            continue
        mine = [sample for sample in run.measured if sample.url == url]
        failed = sum(not sample.ok for sample in mine)
        what = f"{failed} of its {format_count(len(mine), 'request')} failed" if mine else "left out of the load"
        why = sanitize(facts.down.partition(";")[0], 200)
        text = f"{sanitize(url, 200)} was down before the load: {what} ({why})"
        yield Problem(code=ProblemCode.SERVER_DOWN, text=text, invalidates=False)


def check_servers_differ(run: Run, summary: Summary) -> Iterator[Problem]:
    """Servers that differ have no common numbers."""
    known = {url: facts.fingerprint for url, facts in run.servers.items() if not facts.down}
    if len(known) < 2:
        return
    first, *others = known
    for url in others:
        yield from _compare_servers(first, url, known)


def _compare_servers(first: str, url: str, known: Mapping[str, Fingerprint]) -> Iterator[Problem]:
    found = compare_fingerprints(known[first], known[url])
    apart = [change for change in found if change.field in _MUST_MATCH]
    if not found:
        return
    differences = ", ".join(f"{change.name} {change.before} there, {change.after} here" for change in apart or found)
    text = f"{sanitize(url, 200)} is not like {sanitize(first, 200)}: {differences}"
    yield Problem(code=ProblemCode.SERVERS_DIFFER, text=text, invalidates=bool(apart))


def find_problems(run: Run, summary: Summary) -> tuple[Problem, ...]:
    """Return the problems of ``run``, invalidating ones first. ``summary`` is that of ``run``."""
    found = [problem for check in _CHECKS for problem in check(run, summary)]
    return tuple(sorted(found, key=lambda problem: not problem.invalidates))


def _check_cpu_offload(run: Run, summary: Summary) -> Iterator[Problem]:
    """A model that runs entirely on the CPU is valid; a split one depends on what else was in memory."""
    for state in _list_loaded_states(run):
        if state.vram_share is not None and 0 < state.vram_share < 1:
            text = f"the model is partly on the CPU: {format_percent(state.vram_share)} of it is in GPU memory"
            yield Problem(code=ProblemCode.PARTIAL_OFFLOAD, text=text, invalidates=True)
            return


def _check_context(run: Run, summary: Summary) -> Iterator[Problem]:
    """A smaller context is harmless until a request reaches the end of it: then the server drops text to continue."""
    lengths = [state.context_length for state in _list_loaded_states(run) if state.context_length]
    if not lengths or run.workload.num_ctx is None or min(lengths) >= run.workload.num_ctx:
        return
    longest = max((_count_tokens(sample) for sample in run.measured if sample.ok), default=0)
    text = f"the server cut the context to {min(lengths)} tokens, num_ctx asks for {run.workload.num_ctx}"
    reached = longest >= min(lengths)
    yield Problem(
        code=ProblemCode.CONTEXT_CUT,
        text=f"{text}, and a request needed {longest}" if reached else text,
        invalidates=reached,
    )


def _count_tokens(sample: Sample) -> int:
    return (sample.counters.prompt_eval_count or 0) + (sample.counters.eval_count or 0)


def _check_model_change(run: Run, summary: Summary) -> Iterator[Problem]:
    for url, before in run.before.items():
        after = run.after.get(url)
        if after is None or not before.loaded:
            continue
        if not after.loaded and not run.workload.unloads_itself:
            yield Problem(
                code=ProblemCode.MODEL_EVICTED,
                text="the model was no longer loaded when the load ended",
                invalidates=True,
            )
        elif after.digest and before.digest and after.digest != before.digest:
            was, now = sanitize(before.digest, 12), sanitize(after.digest, 12)
            text = f"the model changed while it was measured: digest {was} before, {now} after"
            yield Problem(code=ProblemCode.MODEL_REPLACED, text=text, invalidates=True)
        elif after.context_length and before.context_length and after.context_length != before.context_length:
            lengths = f"{before.context_length} tokens before, {after.context_length} after"
            text = f"the model was loaded with another context while it was measured: {lengths}"
            yield Problem(code=ProblemCode.MODEL_RELOADED, text=text, invalidates=True)


_MIN_RELOAD_S = 0.2
"""A loaded model costs 0.5-5 ms of load_duration; a load takes at least 0.25 s, since Ollama polls for its end."""


def _check_reload(run: Run, summary: Summary) -> Iterator[Problem]:
    """Only the first wave of a cold start may wait for the model."""
    if run.workload.unloads_itself:
        return
    first_done = min((sample.done_ns for sample in run.measured if sample.ok), default=0)
    waited = [sample for sample in run.measured if (sample.counters.load_duration_ns or 0) >= _MIN_RELOAD_S * 1e9]
    later = [sample for sample in waited if sample.sent_ns >= first_done]
    if later:
        text = f"the model was loaded again inside the window: {_format_waits(later, summary)}"
        yield Problem(code=ProblemCode.MODEL_RELOADED, text=text, invalidates=True)
    elif waited and not run.workload.cold:
        text = (
            f"the model was still being loaded: {_format_waits(waited, summary)}; add a warm-up or measure a cold start"
        )
        yield Problem(code=ProblemCode.WARMUP_MISSING, text=text, invalidates=True)


def _format_waits(samples: Sequence[Sample], summary: Summary) -> str:
    longest = max(sample.counters.load_duration_ns or 0 for sample in samples) / 1e9
    return (
        f"{len(samples)} of {format_count(summary.requests, 'request')} waited up to {format_seconds(longest)} for it"
    )


def _check_warmup(run: Run, summary: Summary) -> Iterator[Problem]:
    if summary.requests and not run.warmup and not run.workload.cold:
        yield Problem(
            code=ProblemCode.NO_WARMUP, text="no warm-up: the first requests are measured as well", invalidates=False
        )


def _check_failed_warmup(run: Run, summary: Summary) -> Iterator[Problem]:
    """Warm-up requests that failed did not warm anything up; the measured requests may have met the same fault."""
    failed = [sample for sample in run.warmup if not sample.ok]
    if failed:
        example = sanitize(failed[0].error, 150) or failed[0].outcome.value
        text = f"{len(failed)} of {format_count(len(run.warmup), 'warm-up request')} failed: {example}"
        yield Problem(code=ProblemCode.WARMUP_FAILED, text=text, invalidates=len(failed) == len(run.warmup))


_MAX_SPAN_RATIO = 4.0
_MIN_SPAN_S = 0.05
_MIN_TOKEN_S = 1e-6
"""Per token of one stream; the fastest hardware decodes about 10 000 tokens/s, which is 100 times slower."""


def _check_counters(run: Run, summary: Summary) -> Iterator[Problem]:
    """Counters that contradict the request or the client's clock make every rate computed from them meaningless.

    One token more than ``num_predict`` allows is already impossible. ``eval_duration`` is compared with the span from
    the first to the last chunk: a stalled network stretches that span for a few responses, so half of them have to be
    more than four times as long as the server says.
    """
    if run.workload.endpoint is Endpoint.EMBED:
        return
    done = [sample for sample in run.measured if sample.ok and sample.counters.eval_count]
    asked = run.workload.num_predict
    above = [sample for sample in done if 0 < asked < (sample.counters.eval_count or 0)]
    if above:
        most = max(sample.counters.eval_count or 0 for sample in above)
        text = f"{len(above)} of {format_count(len(done), 'response')} report up to {most} tokens, num_predict={asked}"
        yield Problem(code=ProblemCode.IMPOSSIBLE_COUNTERS, text=text, invalidates=True)
    fast = [sample for sample in done if _is_too_fast(sample)]
    if 2 * len(fast) > len(done):
        text = (
            f"{len(fast)} of {format_count(len(done), 'response')} report an eval_duration far below the time in which "
            "their tokens arrived, or below what any hardware needs"
        )
        yield Problem(code=ProblemCode.IMPOSSIBLE_COUNTERS, text=text, invalidates=True)


def _is_too_fast(sample: Sample) -> bool:
    counters = sample.counters
    if counters.eval_duration_ns is None:
        return False
    made_s = counters.eval_duration_ns / 1e9
    seen_s = (sample.chunk_ns[-1] - sample.chunk_ns[0]) / 1e9 if sample.chunk_ns else 0.0
    per_token_s = made_s / max(1, (counters.eval_count or 1) - 1)
    return (seen_s >= _MIN_SPAN_S and seen_s > _MAX_SPAN_RATIO * made_s) or per_token_s < _MIN_TOKEN_S


_MAX_SHORTFALL = 0.05
_MAX_SHORTFALL_OWN_PROMPTS = 0.5


def _check_output_length(run: Run, summary: Summary) -> Iterator[Problem]:
    """Latency and throughput move with the number of tokens.

    Synthetic prompts: 5 % fewer tokens shift the latency by as much as the margin that history allows it. Custom
    prompts may end where the answer does, but with less than half of num_predict generated, num_predict is wrong.
    """
    asked = run.workload.num_predict
    if run.workload.endpoint is Endpoint.EMBED or asked < 1:
        return
    made = [sample.counters.eval_count or 0 for sample in run.measured if sample.ok]
    short = sum(tokens < asked for tokens in made)
    if not short:
        return
    missing = 1 - sum(min(tokens, asked) for tokens in made) / (asked * len(made))
    stopped = sum(sample.done_reason == "stop" for sample in run.measured if sample.ok)
    text = (
        f"{short} of {format_count(len(made), 'response')} ended before num_predict={asked} "
        f"({stopped} by a stop token): {format_percent(missing)} of the tokens are missing; lower num_predict"
    )
    tolerated = _MAX_SHORTFALL_OWN_PROMPTS if run.workload.prompts or run.workload.messages else _MAX_SHORTFALL
    yield Problem(code=ProblemCode.SHORT_OUTPUTS, text=text, invalidates=missing > tolerated)


_MIN_TOKENS_PER_WORD = 0.8


def _check_prompt_length(run: Run, summary: Summary) -> Iterator[Problem]:
    """No common tokeniser needs fewer tokens than words, so clearly fewer means that the server dropped some."""
    if run.workload.weights:  # the longest may be too rare to have been sent
        return
    texts = [*run.workload.prompts, *(" ".join(each.content for each in chat) for chat in run.workload.messages)]
    words = max((len(text.split()) for text in texts), default=run.workload.prompt_words)
    counts = [sample.counters.prompt_eval_count for sample in run.measured if sample.ok]
    seen = [tokens for tokens in counts if tokens]
    if len(seen) < max(1, len(texts)) or max(seen) >= _MIN_TOKENS_PER_WORD * words:
        return
    text = (
        f"the prompts were cut: the longest has {format_number(words)} words, the server read at most "
        f"{max(seen)} tokens; "
        f"{_suggest_context(run)} or shorten them"
    )
    yield Problem(code=ProblemCode.PROMPTS_CUT, text=text, invalidates=True)


def _suggest_context(run: Run) -> str:
    if run.workload.num_ctx is not None:
        return f"raise num_ctx={run.workload.num_ctx}"
    length = run.fingerprint.context_length
    return f"set num_ctx above the server's default of {length}" if length else "set num_ctx"


_MAX_CACHED_SHARE = 0.05
"""One request in twenty can move a P95; fewer cannot move what is gated."""


def _check_prompt_cache(run: Run, summary: Summary) -> Iterator[Problem]:
    found = find_cached_prompts(run)
    if not found:
        return
    share = found.requests / found.of
    source = (
        f"{format_percent(found.tokens)} of all prompt tokens"
        if found.told
        else "their prefill took no longer than one token"
    )
    text = f"{found.requests} of {format_count(found.of, 'prompt')} came from the prompt cache ({source})"
    yield Problem(code=ProblemCode.CACHED_PROMPTS, text=text, invalidates=share > _MAX_CACHED_SHARE)


def _list_loaded_states(run: Run) -> list[ModelState]:
    return [state for state in (*run.after.values(), *run.before.values()) if state.loaded]


_CHECKS: tuple[Callable[[Run, Summary], Iterator[Problem]], ...] = (
    check_servers_down,
    check_servers_differ,
    _check_model_change,
    _check_reload,
    _check_cpu_offload,
    check_throttling,
    check_telemetry,
    client_checks.check_buffering,
    client_checks.check_client_bound,
    client_checks.check_schedule,
    _check_prompt_cache,
    _check_prompt_length,
    _check_context,
    _check_output_length,
    _check_counters,
    _check_failed_warmup,
    _check_warmup,
)
