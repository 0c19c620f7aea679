"""The markers, each with the arguments that it takes and the text that explains it.

``pytest --markers``, the reference, the JSON schema of contracts and the types in ``option_types`` are derived from
``MARKERS``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pytest_ollama_perf.analysis.cold_warm import COLD_WARM_METRICS
from pytest_ollama_perf.analysis.limits import list_limit_options
from pytest_ollama_perf.config import value_types as types
from pytest_ollama_perf.config.load_options import JUDGING_OPTIONS, LOAD_OPTIONS, MarkerOption

SWEEP_AXES = ("model", "num_ctx", "prompt_words", "num_predict", "concurrency", "rate")
"""Arguments of ``ollama_sweep`` that may be lists, the slowest-changing first."""

_MARKER_WIDTH = 79
_COLD_METRIC_HELP = {
    "load_time": "limit on the median `load_time`",
    "cold_ttft": "limit on the median TTFT of the request that loads the model",
    "cold_latency": "limit on the median latency of the request that loads the model",
    "warm_ttft": "limit on the median TTFT of the warm requests",
    "warm_latency": "limit on the median latency of the warm requests",
    "ratio": "limit on cold TTFT divided by warm TTFT",
}


@dataclass(frozen=True)
class Marker:
    """One marker.

    ``own`` are the arguments that only this marker has; ``excluded`` are arguments of ``ollama_load`` that it refuses;
    ``axes`` are those that may be lists; ``takes_limits`` says whether it takes ``min_...``, ``max_...`` and
    ``limits``.
    """

    name: str
    example: str
    summary: str
    description: str
    own: tuple[MarkerOption, ...] = ()
    excluded: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()
    takes_limits: bool = True

    @property
    def own_options(self) -> Mapping[str, MarkerOption]:
        """The arguments that only this marker has, by name."""
        return {option.name: option for option in self.own}

    @property
    def load_options(self) -> Mapping[str, MarkerOption]:
        """The arguments of ``ollama_load`` that it takes as they are."""
        return {
            name: option
            for name, option in LOAD_OPTIONS.items()
            if name not in self.excluded and name not in self.own_options
        }

    @property
    def judging_options(self) -> Mapping[str, MarkerOption]:
        """The arguments that judge the result, without single limits."""
        names = ("limits", "max_regression") if self.takes_limits else ("max_regression",)
        return {name: JUDGING_OPTIONS[name] for name in names if name not in self.own_options}

    @property
    def limit_options(self) -> tuple[str, ...]:
        """The ``min_...`` and ``max_...`` arguments that it takes."""
        return list_limit_options() if self.takes_limits else ()

    @property
    def inherited_help(self) -> str:
        """One sentence on the arguments that it shares with ``ollama_load``."""
        excluded = f", except {', '.join(self.excluded)}" if self.excluded else ""
        return f"Arguments of ollama_load apply{excluded}."

    def list_option_names(self) -> tuple[str, ...]:
        """Return every argument of the marker."""
        return (*self.load_options, *self.own_options, *self.judging_options, *self.limit_options)

    def read_own_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of the marker's own arguments, defaults included.

        Raises:
            ConfigError: a value is wrong.
        """
        return {
            name: option.parse(options[name]) if name in options else option.default
            for name, option in self.own_options.items()
        }

    def format_help(self) -> str:
        """Return the text for ``pytest --markers``."""
        return "\n".join((f"{self.name}({self.example}): {self.summary}", *self._list_help_lines()))

    def _list_help_lines(self) -> Iterator[str]:
        yield from _wrap(self.description.replace("`", ""))
        yield from (line for option in self.own for line in _wrap_option(option))
        if self.own:
            yield from _wrap(self.inherited_help)
        else:
            yield from (
                line
                for option in (*self.load_options.values(), *self.judging_options.values())
                for line in _wrap_option(option)
            )


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, _MARKER_WIDTH, initial_indent="    ", subsequent_indent="    ")


def _wrap_option(option: MarkerOption) -> list[str]:
    text = f"{option.name}: {option.plain_help}"
    return textwrap.wrap(
        text, _MARKER_WIDTH, initial_indent="    - ", subsequent_indent="      ", break_on_hyphens=False
    )


_SWEEP = Marker(
    "ollama_sweep",
    "concurrency=[1, 2, 4, 8], min_knee=4",
    "run a load at every level.",
    "`concurrency` or `rate`, `num_ctx`, `prompt_words`, `num_predict` and `model` take lists; several lists are "
    "combined. A limit applies to every level; a limit on `throughput`, `qps` or `goodput` applies to the best level. "
    "A sweep over `concurrency` or `rate` stops at the first level that is overloaded.",
    own=(
        MarkerOption(
            "single",
            types.FLAG,
            "also measure one client alone, for efficiency and speedup",
            default=True,
            default_text="`True`, unless a level has one client",
        ),
        MarkerOption("stop_success_rate", types.SHARE, "stop below this share of successful requests", default=0.9),
        MarkerOption(
            "stop_latency", types.SECONDS, "stop above this p50 latency", default=300.0, default_text="`300` seconds"
        ),
        MarkerOption("min_knee", types.POSITIVE, "lowest level at which throughput may stop growing"),
        MarkerOption("min_speedup", types.POSITIVE, "minimum throughput of the best level relative to one client"),
    ),
    axes=SWEEP_AXES,
)
_MAX_CONCURRENCY = Marker(
    "ollama_max_concurrency",
    "max_latency=5, min_concurrency=8",
    "find the highest concurrency that still meets the limits.",
    "The search doubles the concurrency until a limit is broken, then bisects. Limits apply to single requests; "
    "`throughput` and other metrics of the whole server are refused.",
    own=(
        MarkerOption("start", types.make_integer_type(1), "first concurrency to try", default=1),
        MarkerOption("maximum", types.make_integer_type(1), "highest concurrency to try", default=64),
        MarkerOption("success_rate", types.SHARE, "minimum share of successful requests", default=0.95),
        MarkerOption("max_latency", types.TIME_LIMIT, "limit on the p95 latency"),
        MarkerOption("max_ttft", types.TIME_LIMIT, "limit on the p95 TTFT"),
        MarkerOption(
            "repeats", types.make_integer_type(1), "maximum number of runs per level if one is inconclusive", default=3
        ),
        MarkerOption("min_concurrency", types.make_integer_type(1), "concurrency that must be sustained"),
    ),
    excluded=("concurrency", "rate", "arrival"),
)
_COLD_START = Marker(
    "ollama_cold_start",
    "repeats=3, max_load_time=60",
    "measure the first response after the model was unloaded.",
    "Each repeat unloads the model, sends one request, then warm requests one after another (`requests`, default 10). "
    "Limits of `ollama_load` apply to the warm requests.",
    own=(
        MarkerOption("repeats", types.make_integer_type(1), "number of cold starts", default=3),
        MarkerOption(
            "load_timeout",
            types.TIMEOUT,
            "maximum time for loading the model",
            default=1800.0,
            default_text="30 minutes",
        ),
        *(
            MarkerOption(
                f"max_{name}",
                {"ratio": types.RATIO, "load_time": types.LOAD_TIME_LIMIT}.get(name, types.TIME_LIMIT),
                _COLD_METRIC_HELP[name],
            )
            for name in COLD_WARM_METRICS
        ),
    ),
    excluded=("concurrency", "rate", "arrival", "cold", "duration", "drain", "warmup", "think_time"),
)
_AB = Marker(
    "ollama_ab",
    "baseline={'model': 'a'}, candidate={'model': 'b'}",
    "compare two sides.",
    "The sides are two models, two sets of options or two servers. They are measured in turn, in blocks A B B A, and "
    "the model is reloaded for each turn. The comparison ends after 4, 6, 8 or 12 blocks, as soon as it is conclusive. "
    "Other arguments apply to both sides; `requests` is the number per side and block (default 8, or 4 per client).",
    own=(
        MarkerOption(
            "baseline",
            types.SIDE,
            "arguments of the baseline, including `url`",
            default_text="`--ollama-baseline-url`",
        ),
        MarkerOption("candidate", types.SIDE, "arguments of the candidate, including `url`"),
        MarkerOption(
            "max_regression",
            types.MARGINS,
            "allowed slowdown of the candidate",
            default_text="3 % of tps, 12 % of ttft",
        ),
        MarkerOption("max_error_rate", types.SHARE, "allowed share of failed requests", default=0),
    ),
    excluded=("duration",),
    takes_limits=False,
)
_LOAD = Marker(
    "ollama_load",
    "concurrency=4, min_tps=150",
    "run a load and check its results.",
    "The load runs before the body of the test; a broken limit fails the test. Inner markers override outer ones per "
    "argument; parametrized values of the same name apply too. Limits: min_tps, min_throughput, min_qps, "
    "max_<stat>_<metric> such as max_p95_latency=2.5 (seconds), max_error_rate (default: 0).",
)

MARKERS: Mapping[str, Marker] = MappingProxyType(
    {marker.name: marker for marker in (_LOAD, _SWEEP, _AB, _MAX_CONCURRENCY, _COLD_START)}
)
"""Every marker by its name."""

SIDE_EXCLUDED_OPTIONS = ("requests", "duration", "baseline")
"""Arguments of ``ollama_load`` that one side of a comparison does not take."""
