"""Whether a measurement can be trusted. Each problem is named, put in numbers, and says whether it spoils the run.

Every threshold stands at its check with the reason for it. A false alarm costs more here than a late one: a run that is
called invalid without need makes people switch the check off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pytest_ollama_perf.run import ModelState, Run
from pytest_ollama_perf.sample import Sample
from pytest_ollama_perf.summary import Summary
from pytest_ollama_perf.text import inert
from pytest_ollama_perf.verdict import client_side, gpu, servers
from pytest_ollama_perf.verdict.prompt_cache import cached_prompts
from pytest_ollama_perf.verdict.wording import count, number, percent, seconds
from pytest_ollama_perf.verdict.words import Problem
from pytest_ollama_perf.workload import Endpoint


def problems(run: Run, summary: Summary) -> tuple[Problem, ...]:
    """Return what makes ``run`` less than it seems, what spoils it first. ``summary`` is that of ``run``."""
    found = [problem for check in _CHECKS for problem in check(run, summary)]
    return tuple(sorted(found, key=lambda problem: not problem.spoils))


def _partly_on_cpu(run: Run, summary: Summary) -> Iterator[Problem]:
    """A model wholly on the CPU is a server like any other; one that is split depends on what else was in memory."""
    for state in _states(run):
        if state.vram_share is not None and 0 < state.vram_share < 1:
            text = f"the model is partly on the CPU: {percent(state.vram_share)} of it is in GPU memory"
            yield Problem(name="partly on the CPU", text=text, spoils=True)
            return


def _context_cut(run: Run, summary: Summary) -> Iterator[Problem]:
    """A smaller context spoils nothing until a request reaches its end: then the server drops text to go on."""
    lengths = [state.context_length for state in _states(run) if state.context_length]
    if not lengths or min(lengths) >= run.workload.num_ctx:
        return
    longest = max((_tokens(sample) for sample in run.measured if sample.ok), default=0)
    text = f"the server cut the context to {min(lengths)} tokens, num_ctx asks for {run.workload.num_ctx}"
    reached = longest >= min(lengths)
    yield Problem(
        name="context cut", text=f"{text}, and a request needed {longest}" if reached else text, spoils=reached
    )


def _tokens(sample: Sample) -> int:
    return (sample.counters.prompt_eval_count or 0) + (sample.counters.eval_count or 0)


def _replaced(run: Run, summary: Summary) -> Iterator[Problem]:
    for url, before in run.before.items():
        after = run.after.get(url)
        if after is None or not before.loaded:
            continue
        if not after.loaded and not run.workload.unloads_itself:
            yield Problem(name="model evicted", text="the model was no longer loaded when the load ended", spoils=True)
        elif after.digest and before.digest and after.digest != before.digest:
            was, now = inert(before.digest, 12), inert(after.digest, 12)
            text = f"the model changed while it was measured: digest {was} before, {now} after"
            yield Problem(name="model replaced", text=text, spoils=True)


_LOADING_S = 0.2
"""A loaded model costs 0.5-5 ms of load_duration; a load takes at least 0.25 s, since Ollama polls for its end."""


def _reloaded(run: Run, summary: Summary) -> Iterator[Problem]:
    """Only the first wave of a cold start may wait for the model."""
    if run.workload.unloads_itself:
        return
    first_done = min((sample.done_ns for sample in run.measured if sample.ok), default=0)
    waited = [sample for sample in run.measured if (sample.counters.load_duration_ns or 0) >= _LOADING_S * 1e9]
    later = [sample for sample in waited if sample.sent_ns >= first_done]
    if later:
        text = f"the model was loaded again inside the window: {_waited(later, summary)}"
        yield Problem(name="model reloaded", text=text, spoils=True)
    elif waited and not run.workload.cold:
        text = f"the model was still being loaded: {_waited(waited, summary)}; warm up, or ask for a cold start"
        yield Problem(name="warm-up missing", text=text, spoils=True)


def _waited(samples: Sequence[Sample], summary: Summary) -> str:
    longest = max(sample.counters.load_duration_ns or 0 for sample in samples) / 1e9
    return f"{len(samples)} of {count(summary.requests, 'request')} waited up to {seconds(longest)} for it"


def _no_warmup(run: Run, summary: Summary) -> Iterator[Problem]:
    if summary.requests and not run.warmup and not run.workload.cold:
        yield Problem(name="no warm-up", text="no warm-up: the first requests count, too", spoils=False)


_SHORTFALL = 0.05
_SHORTFALL_OF_OWN_PROMPTS = 0.5


def _short_outputs(run: Run, summary: Summary) -> Iterator[Problem]:
    """Latency and throughput move with the number of tokens.

    Synthetic prompts: 5 % fewer tokens shift the latency by as much as the margin that history allows it. Prompts of
    one's own may end where the answer does; but where less than half of num_predict is made, num_predict is wrong.
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
        f"{short} of {count(len(made), 'response')} ended before num_predict={asked} "
        f"({stopped} by a stop token): {percent(missing)} of the tokens are missing; lower num_predict"
    )
    tolerated = _SHORTFALL_OF_OWN_PROMPTS if run.workload.prompts or run.workload.messages else _SHORTFALL
    yield Problem(name="short outputs", text=text, spoils=missing > tolerated)


_TOKENS_PER_WORD = 0.8


def _prompts_cut(run: Run, summary: Summary) -> Iterator[Problem]:
    """No common tokeniser needs fewer tokens than words, so clearly fewer means that the server dropped some."""
    if run.workload.weights:  # the longest may be too rare to have been sent
        return
    texts = [*run.workload.prompts, *(" ".join(each.content for each in chat) for chat in run.workload.messages)]
    words = max((len(text.split()) for text in texts), default=run.workload.prompt_words)
    counts = [sample.counters.prompt_eval_count for sample in run.measured if sample.ok]
    seen = [tokens for tokens in counts if tokens]
    if len(seen) < max(1, len(texts)) or max(seen) >= _TOKENS_PER_WORD * words:
        return
    text = (
        f"the prompts were cut: the longest has {number(words)} words, the server read at most {max(seen)} tokens; "
        f"raise num_ctx={run.workload.num_ctx} or shorten them"
    )
    yield Problem(name="prompts cut", text=text, spoils=True)


_CACHED_SHARE = 0.05
"""One request in twenty can move a P95; fewer cannot move what is gated."""


def _cached(run: Run, summary: Summary) -> Iterator[Problem]:
    found = cached_prompts(run)
    if not found:
        return
    share = found.requests / found.of
    told = (
        f"{percent(found.tokens)} of all prompt tokens" if found.told else "their prefill took no longer than one token"
    )
    text = f"{found.requests} of {count(found.of, 'prompt')} came from the prompt cache ({told})"
    yield Problem(name="cached prompts", text=text, spoils=share > _CACHED_SHARE)


def _states(run: Run) -> list[ModelState]:
    return [state for state in (*run.after.values(), *run.before.values()) if state.loaded]


_CHECKS: tuple[Callable[[Run, Summary], Iterator[Problem]], ...] = (
    servers.down,
    servers.unlike,
    _replaced,
    _reloaded,
    _partly_on_cpu,
    gpu.throttled,
    gpu.unread,
    client_side.buffered,
    client_side.client_bound,
    client_side.behind_schedule,
    _cached,
    _prompts_cut,
    _context_cut,
    _short_outputs,
    _no_warmup,
)
