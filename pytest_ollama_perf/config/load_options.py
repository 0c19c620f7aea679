"""The arguments of a load, each defined once.

The marker help, the command-line options of ``doctor`` and ``init``, the JSON schema of contracts, the reference pages,
suggestions for misspelled names and the types in ``option_types`` are derived from ``LOAD_OPTIONS``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from pytest_ollama_perf.config import value_types as types
from pytest_ollama_perf.config.value_types import ValueType
from pytest_ollama_perf.core.workload import Arrival, Balance, Endpoint, Prefix, Timeouts, Workload


@dataclass(frozen=True)
class MarkerOption:
    """One argument of a marker.

    ``field`` is the field of ``Workload`` that it sets; options whose parser returns several fields have none.
    ``default`` is the value without the argument, of options that set no field. ``default_text`` describes a default
    that is not a single value. ``is_file`` marks paths, which contracts resolve relative to their own folder.
    ``in_workload`` is false if the option says nothing about the load itself.
    """

    name: str
    type: ValueType
    help: str
    field: str = ""
    default: Any = None
    default_text: str = ""
    is_file: bool = False
    in_workload: bool = True

    def parse(self, value: object) -> Any:
        """Return the value as the package uses it; ``ConfigError`` names the option and what it takes."""
        return self.type.parse(self.name, value)

    def read_fields(self, value: object) -> dict[str, Any]:
        """Return the fields of ``Workload`` that ``value`` sets."""
        found = self.parse(value)
        return {self.field: found} if self.field else dict(found)

    @property
    def plain_help(self) -> str:
        """The help without Markdown, with the default if there is one."""
        text = self.help.replace("`", "")
        shown = self.shown_default.replace("`", "")
        return f"{text} (default: {shown})" if shown else text

    @property
    def shown_default(self) -> str:
        """The default as Markdown; empty if there is none."""
        if self.default_text:
            return self.default_text
        value = _WORKLOAD_DEFAULTS.get(self.field) if self.field else self.default
        if value is None or value in ((), {}, msgspec.NODEFAULT):
            return ""
        return f"`{format_default(value)}`"


def format_default(value: object) -> str:
    """Return a default as it is written in code, without quotes."""
    if isinstance(value, enum.Enum):
        return str(value.value)
    return f"{value:g}" if isinstance(value, float) else str(value)


_WORKLOAD_DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in msgspec.structs.fields(Workload)}
_TIMEOUTS_TEXT = ", ".join(
    f"`{name.removesuffix('_s')}` {seconds:g}" for name, seconds in msgspec.structs.asdict(Timeouts()).items()
)

DEFAULT_REQUESTS = 20
REQUESTS_PER_CLIENT = 5


def _index_by_name(*options: MarkerOption) -> dict[str, MarkerOption]:
    return {option.name: option for option in options}


LOAD_OPTIONS = _index_by_name(
    MarkerOption(
        "model",
        types.TEXT,
        "model to test",
        "model",
        default_text="`--ollama-model`, or the only model on the server",
    ),
    MarkerOption("endpoint", types.make_choice_type(Endpoint), "API endpoint to measure", "endpoint"),
    MarkerOption("stream", types.FLAG, "stream responses; without streaming there is no `ttft`", "stream"),
    MarkerOption(
        "concurrency",
        types.make_integer_type(1),
        "closed loop: number of clients, each sending its next request when the last one completes",
        "concurrency",
    ),
    MarkerOption("rate", types.POSITIVE, "open loop: requests per second, however slow the server is", "rate"),
    MarkerOption("arrival", types.make_choice_type(Arrival), "spacing of the requests of an open loop", "arrival"),
    MarkerOption(
        "stages",
        types.STAGES,
        "load over time: `[{'concurrency': 8, 'ramp': '30s'}, {'concurrency': 8, 'for': '5m'}]`, or with `rate`",
    ),
    MarkerOption(
        "requests",
        types.make_integer_type(1),
        "number of requests",
        "requests",
        default_text=f"{DEFAULT_REQUESTS}, or {REQUESTS_PER_CLIENT} per client if that is more",
    ),
    MarkerOption(
        "duration",
        types.SECONDS,
        "length of the load, instead of `requests`; requests in flight finish within `drain`",
        "duration_s",
    ),
    MarkerOption("drain", types.SECONDS, "time for requests in flight to finish after `duration`", "drain_s"),
    MarkerOption(
        "warmup",
        types.make_integer_type(0),
        "requests sent before the measurement starts; they are not counted",
        "warmup",
        default_text="one per client",
    ),
    MarkerOption(
        "think_time",
        types.PAUSE,
        "pause of a client between two requests, or the bounds of a random pause",
        "think_time_s",
        default_text="`0`",
    ),
    MarkerOption("prompt", types.PROMPT, "prompt of every request", "prompts", default_text="synthetic prompts"),
    MarkerOption("prompts", types.PROMPTS, "prompts, sent in turn; a mapping gives each prompt a weight"),
    MarkerOption(
        "dataset",
        types.DATASET,
        "JSON lines file with prompts or chats, optionally with weights",
        is_file=True,
    ),
    MarkerOption(
        "turns",
        types.make_integer_type(1),
        "questions per chat; each client keeps one chat, including the model's answers",
        "turns",
    ),
    MarkerOption("images", types.IMAGES, "image files, sent in turn, one per request", is_file=True),
    MarkerOption("prompt_words", types.make_integer_type(1), "length of synthetic prompts in words", "prompt_words"),
    MarkerOption(
        "prefix",
        types.make_choice_type(Prefix),
        "`unique`: every prompt starts differently, so the prompt cache is not used; `warm`: prompts are sent as is",
        "prefix",
    ),
    MarkerOption(
        "raw",
        types.FLAG,
        "send prompts without the model's template",
        "raw",
        default_text="only for synthetic prompts of `generate`",
    ),
    MarkerOption("num_predict", types.make_integer_type(1), "maximum number of tokens per response", "num_predict"),
    MarkerOption(
        "num_ctx",
        types.make_optional_type(types.make_integer_type(1)),
        "context length in tokens; only sent to the server if set",
        "num_ctx",
        default_text="the server's setting",
    ),
    MarkerOption(
        "temperature",
        types.make_optional_type(types.NUMBER),
        "sampling temperature; only sent to the server if set",
        "temperature",
        default_text="the model's setting",
    ),
    MarkerOption(
        "seed",
        types.make_optional_type(types.make_integer_type(0)),
        "seed of synthetic prompts, arrival times and the model's sampling",
        "seed",
        default_text="1 for prompts and arrivals, none is sent to the server",
    ),
    MarkerOption(
        "think",
        types.make_optional_type(types.THINK),
        "thinking of models that support it: on, off, or a level",
        "think",
        default_text="the model's setting; raw prompts do not think",
    ),
    MarkerOption(
        "keep_alive", types.KEEP_ALIVE, "how long the server keeps the model loaded after a request", "keep_alive"
    ),
    MarkerOption("options", types.OLLAMA_OPTIONS, "other Ollama options, such as `{'num_thread': 4}`", "options"),
    MarkerOption("cold", types.FLAG, "unload the model first, so that the first request loads it", "cold"),
    MarkerOption(
        "balance", types.make_choice_type(Balance), "distribution of the requests over several servers", "balance"
    ),
    MarkerOption(
        "timeout",
        types.TIMEOUTS,
        "timeout of a whole request, or timeouts of its parts by name",
        "timeouts",
        default_text=_TIMEOUTS_TEXT,
    ),
    MarkerOption(
        "retries",
        types.make_integer_type(0),
        "retries of a request after status 502, 503 or 504; latency counts from the first attempt",
        "retries",
    ),
    MarkerOption(
        "abort_error_rate",
        types.SHARE,
        "stop the load early when more than this share of its requests, at least 10, has failed",
        "abort_error_rate",
    ),
    MarkerOption(
        "reuse_connections",
        types.FLAG,
        "keep connections open between requests; otherwise every request opens a new one",
        "reuse_connections",
    ),
    MarkerOption(
        "baseline",
        types.TEXT,
        "accept the current performance: a new text, such as `'2026-11 ollama 0.33: agreed'`, starts a new baseline",
        default_text="`--ollama-baseline`",
        in_workload=False,
    ),
)
"""The arguments that define the load, in the order of the reference."""

JUDGING_OPTIONS = _index_by_name(
    MarkerOption("limits", types.LIMITS, "absolute limits as a mapping: `{'ttft.p95': '<= 300ms'}`"),
    MarkerOption(
        "max_regression",
        types.MARGINS,
        "allowed slowdown against the history: `'10%'`, or `{'tps': '5%', 'ttft.p95': '25%'}`",
        default_text="`--ollama-margin`, or the margin of the metric",
    ),
)
"""The arguments that judge the load, in addition to ``min_...`` and ``max_...`` of ``analysis.limits``."""

_EXCLUSIVE_OPTIONS = (
    ("concurrency", "rate", "stages"),
    ("requests", "duration", "stages"),
    ("prompt", "prompts", "dataset", "prompt_words"),
)
PROMPT_OPTIONS = _EXCLUSIVE_OPTIONS[-1]
"""The arguments of which a load takes one."""


def list_conflicts(name: str) -> frozenset[str]:
    """Return the other arguments that cannot be combined with ``name``."""
    groups = (group for group in _EXCLUSIVE_OPTIONS if name in group)
    return frozenset(other for group in groups for other in group if other != name)
