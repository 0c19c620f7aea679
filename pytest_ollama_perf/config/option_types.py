"""The arguments of the markers as types, for editors and type checkers.

Generated from the tables in ``load_options`` and ``markers`` by ``python docs/generated.py``; do not edit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict

Seconds: TypeAlias = float | str
"""Seconds, or a string with a unit such as ``"300ms"``."""

Percent: TypeAlias = float | str
"""A share such as ``0.05``, or a string such as ``"5%"``."""

StageOptions = TypedDict(
    "StageOptions", {"concurrency": int, "rate": float, "for": Seconds, "ramp": Seconds}, total=False
)
"""One stage: ``concurrency`` or ``rate``, and ``for`` or ``ramp``."""


class TimeoutOptions(TypedDict, total=False):
    """Timeouts by name."""

    connect: Seconds
    first_token: Seconds
    idle: Seconds
    total: Seconds


class _CommonOptions(TypedDict, total=False):
    """Arguments of every marker."""

    endpoint: Literal["generate", "chat", "embed"]
    """API endpoint to measure (default: generate)."""

    stream: bool
    """Stream responses; without streaming there is no ttft (default: True)."""

    stages: Sequence[StageOptions]
    """Load over time: [{'concurrency': 8, 'ramp': '30s'}, {'concurrency': 8, 'for': '5m'}], or with rate."""

    requests: int
    """Number of requests (default: 20, or 5 per client if that is more)."""

    prompt: str
    """Prompt of every request (default: synthetic prompts)."""

    prompts: str | Sequence[str] | Mapping[str, float]
    """Prompts, sent in turn; a mapping gives each prompt a weight."""

    dataset: str | Path
    """JSON lines file with prompts or chats, optionally with weights."""

    turns: int
    """Questions per chat; each client keeps one chat, including the model's answers (default: 1)."""

    images: str | Path | Sequence[str | Path]
    """Image files, sent in turn, one per request."""

    prefix: Literal["unique", "warm"]
    """Unique: every prompt starts differently, so the prompt cache is not used; warm: prompts are sent as is
    (default: unique)."""

    raw: bool
    """Send prompts without the model's template (default: only for synthetic prompts of generate)."""

    temperature: float | None
    """Sampling temperature; only sent to the server if set (default: the model's setting)."""

    seed: int | None
    """Seed of synthetic prompts, arrival times and the model's sampling (default: 1 for prompts and arrivals, none
    is sent to the server)."""

    think: bool | Literal["low", "medium", "high", "max"] | None
    """Thinking of models that support it: on, off, or a level (default: the model's setting; raw prompts do not
    think)."""

    keep_alive: Seconds
    """How long the server keeps the model loaded after a request (default: 5m)."""

    options: Mapping[str, object]
    """Other Ollama options, such as {'num_thread': 4}."""

    balance: Literal["round_robin", "random", "least_in_flight"]
    """Distribution of the requests over several servers (default: round_robin)."""

    timeout: Seconds | TimeoutOptions
    """Timeout of a whole request, or timeouts of its parts by name (default: connect 10, first_token 600, idle 60,
    total 1800)."""

    retries: int
    """Retries of a request after status 502, 503 or 504; latency counts from the first attempt (default: 0)."""

    abort_error_rate: Percent
    """Stop the load early when more than this share of its requests, at least 10, has failed."""

    reuse_connections: bool
    """Keep connections open between requests; otherwise every request opens a new one (default: True)."""


class LimitOptions(TypedDict, total=False):
    """Absolute limits."""

    limits: Mapping[str, str | Sequence[str]]
    """Absolute limits as a mapping: {'ttft.p95': '<= 300ms'}."""

    min_tps: float | str
    min_mean_tps: float | str
    min_p50_tps: float | str
    min_p90_tps: float | str
    min_p95_tps: float | str
    min_p99_tps: float | str
    min_min_tps: float | str
    min_max_tps: float | str
    min_throughput: float | str
    min_throughput_whole: float | str
    min_qps: float | str
    max_mean_ttft: Seconds
    max_p50_ttft: Seconds
    max_p90_ttft: Seconds
    max_p95_ttft: Seconds
    max_p99_ttft: Seconds
    max_min_ttft: Seconds
    max_max_ttft: Seconds
    max_mean_ttfa: Seconds
    max_p50_ttfa: Seconds
    max_p90_ttfa: Seconds
    max_p95_ttfa: Seconds
    max_p99_ttfa: Seconds
    max_min_ttfa: Seconds
    max_max_ttfa: Seconds
    max_mean_tpot: Seconds
    max_p50_tpot: Seconds
    max_p90_tpot: Seconds
    max_p95_tpot: Seconds
    max_p99_tpot: Seconds
    max_min_tpot: Seconds
    max_max_tpot: Seconds
    max_mean_itl: Seconds
    max_p50_itl: Seconds
    max_p90_itl: Seconds
    max_p95_itl: Seconds
    max_p99_itl: Seconds
    max_min_itl: Seconds
    max_max_itl: Seconds
    max_mean_latency: Seconds
    max_p50_latency: Seconds
    max_p90_latency: Seconds
    max_p95_latency: Seconds
    max_p99_latency: Seconds
    max_min_latency: Seconds
    max_max_latency: Seconds
    max_mean_queue: Seconds
    max_p50_queue: Seconds
    max_p90_queue: Seconds
    max_p95_queue: Seconds
    max_p99_queue: Seconds
    max_min_queue: Seconds
    max_max_queue: Seconds
    min_prefill_tps: float | str
    min_mean_prefill_tps: float | str
    min_p50_prefill_tps: float | str
    min_p90_prefill_tps: float | str
    min_p95_prefill_tps: float | str
    min_p99_prefill_tps: float | str
    min_min_prefill_tps: float | str
    min_max_prefill_tps: float | str
    max_mean_load_time: Seconds
    max_p50_load_time: Seconds
    max_p90_load_time: Seconds
    max_p95_load_time: Seconds
    max_p99_load_time: Seconds
    max_min_load_time: Seconds
    max_max_load_time: Seconds
    min_goodput: float | str
    max_error_rate: Percent
    max_gpu_memory: str
    max_gpu_temperature: float | str
    max_joules_per_token: float | str


class ABSideOptions(TypedDict, total=False):
    """Arguments of one side of a comparison."""

    url: str
    """Server of this side."""

    model: str
    """Model to test (default: --ollama-model, or the only model on the server)."""

    endpoint: Literal["generate", "chat", "embed"]
    """API endpoint to measure (default: generate)."""

    stream: bool
    """Stream responses; without streaming there is no ttft (default: True)."""

    concurrency: int
    """Closed loop: number of clients, each sending its next request when the last one completes (default: 1)."""

    rate: float
    """Open loop: requests per second, however slow the server is."""

    arrival: Literal["constant", "poisson"]
    """Spacing of the requests of an open loop (default: poisson)."""

    stages: Sequence[StageOptions]
    """Load over time: [{'concurrency': 8, 'ramp': '30s'}, {'concurrency': 8, 'for': '5m'}], or with rate."""

    drain: Seconds
    """Time for requests in flight to finish after duration (default: 30)."""

    warmup: int
    """Requests sent before the measurement starts; they are not counted (default: one per client)."""

    think_time: Seconds | Sequence[Seconds]
    """Pause of a client between two requests, or the bounds of a random pause (default: 0)."""

    prompt: str
    """Prompt of every request (default: synthetic prompts)."""

    prompts: str | Sequence[str] | Mapping[str, float]
    """Prompts, sent in turn; a mapping gives each prompt a weight."""

    dataset: str | Path
    """JSON lines file with prompts or chats, optionally with weights."""

    turns: int
    """Questions per chat; each client keeps one chat, including the model's answers (default: 1)."""

    images: str | Path | Sequence[str | Path]
    """Image files, sent in turn, one per request."""

    prompt_words: int
    """Length of synthetic prompts in words (default: 32)."""

    prefix: Literal["unique", "warm"]
    """Unique: every prompt starts differently, so the prompt cache is not used; warm: prompts are sent as is
    (default: unique)."""

    raw: bool
    """Send prompts without the model's template (default: only for synthetic prompts of generate)."""

    num_predict: int
    """Maximum number of tokens per response (default: 64)."""

    num_ctx: int | None
    """Context length in tokens; only sent to the server if set (default: the server's setting)."""

    temperature: float | None
    """Sampling temperature; only sent to the server if set (default: the model's setting)."""

    seed: int | None
    """Seed of synthetic prompts, arrival times and the model's sampling (default: 1 for prompts and arrivals, none
    is sent to the server)."""

    think: bool | Literal["low", "medium", "high", "max"] | None
    """Thinking of models that support it: on, off, or a level (default: the model's setting; raw prompts do not
    think)."""

    keep_alive: Seconds
    """How long the server keeps the model loaded after a request (default: 5m)."""

    options: Mapping[str, object]
    """Other Ollama options, such as {'num_thread': 4}."""

    cold: bool
    """Unload the model first, so that the first request loads it (default: False)."""

    balance: Literal["round_robin", "random", "least_in_flight"]
    """Distribution of the requests over several servers (default: round_robin)."""

    timeout: Seconds | TimeoutOptions
    """Timeout of a whole request, or timeouts of its parts by name (default: connect 10, first_token 600, idle 60,
    total 1800)."""

    retries: int
    """Retries of a request after status 502, 503 or 504; latency counts from the first attempt (default: 0)."""

    abort_error_rate: Percent
    """Stop the load early when more than this share of its requests, at least 10, has failed."""

    reuse_connections: bool
    """Keep connections open between requests; otherwise every request opens a new one (default: True)."""


class LoadOptions(_CommonOptions, LimitOptions, total=False):
    """Arguments of ``ollama_load``."""

    model: str
    """Model to test (default: --ollama-model, or the only model on the server)."""

    concurrency: int
    """Closed loop: number of clients, each sending its next request when the last one completes (default: 1)."""

    rate: float
    """Open loop: requests per second, however slow the server is."""

    arrival: Literal["constant", "poisson"]
    """Spacing of the requests of an open loop (default: poisson)."""

    duration: Seconds
    """Length of the load, instead of requests; requests in flight finish within drain."""

    drain: Seconds
    """Time for requests in flight to finish after duration (default: 30)."""

    warmup: int
    """Requests sent before the measurement starts; they are not counted (default: one per client)."""

    think_time: Seconds | Sequence[Seconds]
    """Pause of a client between two requests, or the bounds of a random pause (default: 0)."""

    prompt_words: int
    """Length of synthetic prompts in words (default: 32)."""

    num_predict: int
    """Maximum number of tokens per response (default: 64)."""

    num_ctx: int | None
    """Context length in tokens; only sent to the server if set (default: the server's setting)."""

    cold: bool
    """Unload the model first, so that the first request loads it (default: False)."""

    baseline: str
    """Accept the current performance: a new text, such as '2026-11 ollama 0.33: agreed', starts a new baseline
    (default: --ollama-baseline)."""

    max_regression: Percent | Mapping[str, Percent]
    """Allowed slowdown against the history: '10%', or {'tps': '5%', 'ttft.p95': '25%'} (default: --ollama-margin,
    or the margin of the metric)."""


class SweepOptions(_CommonOptions, LimitOptions, total=False):
    """Arguments of ``ollama_sweep``."""

    model: str | Collection[str]
    """Model to test (default: --ollama-model, or the only model on the server)."""

    concurrency: int | Collection[int]
    """Closed loop: number of clients, each sending its next request when the last one completes (default: 1)."""

    rate: float | Collection[float]
    """Open loop: requests per second, however slow the server is."""

    arrival: Literal["constant", "poisson"]
    """Spacing of the requests of an open loop (default: poisson)."""

    duration: Seconds
    """Length of the load, instead of requests; requests in flight finish within drain."""

    drain: Seconds
    """Time for requests in flight to finish after duration (default: 30)."""

    warmup: int
    """Requests sent before the measurement starts; they are not counted (default: one per client)."""

    think_time: Seconds | Sequence[Seconds]
    """Pause of a client between two requests, or the bounds of a random pause (default: 0)."""

    prompt_words: int | Collection[int]
    """Length of synthetic prompts in words (default: 32)."""

    num_predict: int | Collection[int]
    """Maximum number of tokens per response (default: 64)."""

    num_ctx: int | Collection[int | None] | None
    """Context length in tokens; only sent to the server if set (default: the server's setting)."""

    cold: bool
    """Unload the model first, so that the first request loads it (default: False)."""

    baseline: str
    """Accept the current performance: a new text, such as '2026-11 ollama 0.33: agreed', starts a new baseline
    (default: --ollama-baseline)."""

    max_regression: Percent | Mapping[str, Percent]
    """Allowed slowdown against the history: '10%', or {'tps': '5%', 'ttft.p95': '25%'} (default: --ollama-margin,
    or the margin of the metric)."""

    single: bool
    """Also measure one client alone, for efficiency and speedup (default: True, unless a level has one client)."""

    stop_success_rate: Percent
    """Stop below this share of successful requests (default: 0.9)."""

    stop_latency: Seconds
    """Stop above this p50 latency (default: 300 seconds)."""

    min_knee: float
    """Lowest level at which throughput may stop growing."""

    min_speedup: float
    """Minimum throughput of the best level relative to one client."""


class ABOptions(_CommonOptions, total=False):
    """Arguments of ``ollama_ab``."""

    model: str
    """Model to test (default: --ollama-model, or the only model on the server)."""

    concurrency: int
    """Closed loop: number of clients, each sending its next request when the last one completes (default: 1)."""

    rate: float
    """Open loop: requests per second, however slow the server is."""

    arrival: Literal["constant", "poisson"]
    """Spacing of the requests of an open loop (default: poisson)."""

    drain: Seconds
    """Time for requests in flight to finish after duration (default: 30)."""

    warmup: int
    """Requests sent before the measurement starts; they are not counted (default: one per client)."""

    think_time: Seconds | Sequence[Seconds]
    """Pause of a client between two requests, or the bounds of a random pause (default: 0)."""

    prompt_words: int
    """Length of synthetic prompts in words (default: 32)."""

    num_predict: int
    """Maximum number of tokens per response (default: 64)."""

    num_ctx: int | None
    """Context length in tokens; only sent to the server if set (default: the server's setting)."""

    cold: bool
    """Unload the model first, so that the first request loads it (default: False)."""

    baseline: ABSideOptions
    """Arguments of the baseline, including url (default: --ollama-baseline-url)."""

    candidate: ABSideOptions
    """Arguments of the candidate, including url."""

    max_regression: Percent | Mapping[str, Percent]
    """Allowed slowdown of the candidate (default: 3 % of tps, 12 % of ttft)."""

    max_error_rate: Percent
    """Allowed share of failed requests (default: 0)."""


class MaxConcurrencyOptions(_CommonOptions, LimitOptions, total=False):
    """Arguments of ``ollama_max_concurrency``."""

    model: str
    """Model to test (default: --ollama-model, or the only model on the server)."""

    duration: Seconds
    """Length of the load, instead of requests; requests in flight finish within drain."""

    drain: Seconds
    """Time for requests in flight to finish after duration (default: 30)."""

    warmup: int
    """Requests sent before the measurement starts; they are not counted (default: one per client)."""

    think_time: Seconds | Sequence[Seconds]
    """Pause of a client between two requests, or the bounds of a random pause (default: 0)."""

    prompt_words: int
    """Length of synthetic prompts in words (default: 32)."""

    num_predict: int
    """Maximum number of tokens per response (default: 64)."""

    num_ctx: int | None
    """Context length in tokens; only sent to the server if set (default: the server's setting)."""

    cold: bool
    """Unload the model first, so that the first request loads it (default: False)."""

    baseline: str
    """Accept the current performance: a new text, such as '2026-11 ollama 0.33: agreed', starts a new baseline
    (default: --ollama-baseline)."""

    max_regression: Percent | Mapping[str, Percent]
    """Allowed slowdown against the history: '10%', or {'tps': '5%', 'ttft.p95': '25%'} (default: --ollama-margin,
    or the margin of the metric)."""

    start: int
    """First concurrency to try (default: 1)."""

    maximum: int
    """Highest concurrency to try (default: 64)."""

    success_rate: Percent
    """Minimum share of successful requests (default: 0.95)."""

    max_latency: Seconds
    """Limit on the p95 latency."""

    max_ttft: Seconds
    """Limit on the p95 TTFT."""

    repeats: int
    """Maximum number of runs per level if one is inconclusive (default: 3)."""

    min_concurrency: int
    """Concurrency that must be sustained."""


class ColdStartOptions(_CommonOptions, LimitOptions, total=False):
    """Arguments of ``ollama_cold_start``."""

    model: str
    """Model to test (default: --ollama-model, or the only model on the server)."""

    prompt_words: int
    """Length of synthetic prompts in words (default: 32)."""

    num_predict: int
    """Maximum number of tokens per response (default: 64)."""

    num_ctx: int | None
    """Context length in tokens; only sent to the server if set (default: the server's setting)."""

    baseline: str
    """Accept the current performance: a new text, such as '2026-11 ollama 0.33: agreed', starts a new baseline
    (default: --ollama-baseline)."""

    max_regression: Percent | Mapping[str, Percent]
    """Allowed slowdown against the history: '10%', or {'tps': '5%', 'ttft.p95': '25%'} (default: --ollama-margin,
    or the margin of the metric)."""

    repeats: int
    """Number of cold starts (default: 3)."""

    load_timeout: Seconds
    """Maximum time for loading the model (default: 30 minutes)."""

    max_load_time: Seconds
    """Limit on the median load_time."""

    max_cold_ttft: Seconds
    """Limit on the median TTFT of the request that loads the model."""

    max_cold_latency: Seconds
    """Limit on the median latency of the request that loads the model."""

    max_warm_ttft: Seconds
    """Limit on the median TTFT of the warm requests."""

    max_warm_latency: Seconds
    """Limit on the median latency of the warm requests."""

    max_ratio: float
    """Limit on cold TTFT divided by warm TTFT."""
