"""The words of a load - on the marker, in ``ollama.load(...)`` - read into a workload and its limits."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from pytest_ollama_perf.analysis.limits import (
    Limit,
    collect_latency_limits,
    list_limit_options,
    parse_limit,
    parse_limit_option,
)
from pytest_ollama_perf.analysis.run_value import GATING_METRICS
from pytest_ollama_perf.config import datasets
from pytest_ollama_perf.config.settings import parse_percent, read_margin
from pytest_ollama_perf.core.errors import ConfigError
from pytest_ollama_perf.core.text import parse_seconds, safe_repr, suggest_match
from pytest_ollama_perf.core.workload import ANY_MODEL, Arrival, Balance, Endpoint, Prefix, Timeouts, Workload
from pytest_ollama_perf.loadgen.plan import validate_workload
from pytest_ollama_perf.metrics.definitions import METRICS
from pytest_ollama_perf.metrics.format import format_label
from pytest_ollama_perf.metrics.summary import explain_unmeasurable

DEFAULT_REQUESTS = 20
REQUESTS_PER_CLIENT = 5
TIMEOUT_PARTS = ("connect", "first_token", "idle", "total")
_USUAL_LIMITS = ("min_tps", "min_throughput", "min_qps", "max_error_rate")
_THINK_LEVELS = ("low", "medium", "high", "max")
_MAX_NUMBER = 2**31 - 1
_GO_DURATION = re.compile(r"[-+]?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))+)")


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What one load is asked for: the workload, its absolute limits, and the margins that differ from the settings'.

    ``gating`` names the numbers that history may fail; ``None`` stands for the usual ones and those with a margin.
    """

    workload: Workload
    limits: tuple[Limit, ...]
    margins: dict[str, float] = {}
    gating: tuple[str, ...] | None = None


def build_load_spec(words: Mapping[str, Any], *, default_model: str | None = None) -> LoadSpec:
    """Read the words of one load.

    Without a model the workload names ``ANY_MODEL``: the server's only one, which is known once the server is asked.

    Raises:
        ConfigError: a word or its value is wrong, or words contradict each other.
    """
    _reject_unknown(words, list_option_names())
    _reject_conflicting(words, _PROMPT_OPTIONS)
    for word in ("concurrency", "rate", "requests", "duration") if "stages" in words else ():
        _reject_conflicting(words, ("stages", word))
    fields: dict[str, Any] = {}
    for word, value in words.items():
        if word in LOAD_OPTIONS:
            read = LOAD_OPTIONS[word](word, value)
            # what a dataset implies gives way to what is said
            fields = {**read, **fields} if word == "dataset" else {**fields, **read}
    _reject_ineffective(words)
    fields.setdefault("model", default_model or ANY_MODEL)
    workload = Workload(**_fill_defaults(fields))
    validate_workload(msgspec.structs.replace(workload, model=workload.model or "not known yet"))
    limits = parse_limits(
        {word: value for word, value in words.items() if word not in (*LOAD_OPTIONS, "max_regression")}
    )
    margins = _parse_margins(words.get("max_regression", {}), workload)
    reject_unmeasurable(workload, limits, margins)
    return LoadSpec(workload=workload, limits=_add_error_limit(limits), margins=margins)


def _reject_conflicting(words: Mapping[str, Any], rivals: tuple[str, ...]) -> None:
    given = [word for word in rivals if word in words]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} contradict each other: give one of them")


_RATE_OPTIONS = ("concurrency", "rate", "stages")
_END_OPTIONS = ("requests", "duration", "stages")
_PROMPT_OPTIONS = ("prompt", "prompts", "dataset", "prompt_words")
_CONFLICTS: Mapping[str, frozenset[str]] = {
    word: frozenset(
        other
        for rivals in (_RATE_OPTIONS, _END_OPTIONS, _PROMPT_OPTIONS)
        if word in rivals
        for other in rivals
        if other != word
    )
    for word in (*_RATE_OPTIONS, *_END_OPTIONS, *_PROMPT_OPTIONS)
}


def merge_options(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the words of several markers, the nearest first: the nearer wins word by word, also over its alternative.

    A ``rate`` on a test replaces the ``concurrency`` of its class. Alternatives in one marker stay, and contradict.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        open_ = {
            word: value
            for word, value in layer.items()
            if word not in merged and _CONFLICTS.get(word, frozenset()).isdisjoint(merged)
            # what belongs to a replaced rate goes with it
            if not (word == "arrival" and "rate" in layer and "concurrency" in merged)
        }
        merged.update(open_)
    return merged


def _reject_ineffective(words: Mapping[str, Any]) -> None:
    """Refuse what would have no effect beside the other words."""
    if "arrival" in words and not {"rate", "stages"} & set(words):
        raise ConfigError(
            f"arrival={safe_repr(words['arrival'])} has no effect without rate: give one, or leave it out"
        )


def reject_unmeasurable(workload: Workload, limits: Iterable[Limit], margins: Iterable[str] = ()) -> None:
    """Refuse limits and margins on numbers that no load of ``workload`` can have, before one is fired.

    Raises:
        ConfigError: there is one; the line names it and says why.
    """
    limits = tuple(limits)
    for metric, written in (
        *((limit.metric, format_label(limit.metric, limit.stat)) for limit in limits),
        *((name.partition(".")[0], f"max_regression: {name}") for name in margins),
    ):
        if reason := explain_unmeasurable(metric, workload):
            raise ConfigError(f"{written}: {reason}, so no such load has it; leave it out")
    if any(limit.metric == "goodput" for limit in limits) and not collect_latency_limits(limits):
        raise ConfigError(
            "goodput counts the requests that meet every limit on a time: add one, such as max_p95_latency"
        )


def list_option_names() -> tuple[str, ...]:
    """Every word the marker takes, limits included."""
    return (*LOAD_OPTIONS, *JUDGING_OPTIONS, *list_limit_options())


def _reject_unknown(words: Mapping[str, Any], valid: tuple[str, ...]) -> None:
    for word, value in words.items():
        if word not in valid:
            if word.startswith(("min_", "max_")) and word.endswith(tuple(METRICS)):
                parse_limit_option(word, value)  # knows what is wrong with a limit: its direction or its statistic
            listed = ", ".join(each for each in (*LOAD_OPTIONS, *JUDGING_OPTIONS, *_USUAL_LIMITS) if each in valid)
            more = "and max_<stat>_<metric> such as max_p95_latency"
            raise ConfigError(f"unknown word '{word}'{suggest_match(word, valid)} (valid: {listed}, {more})")


def _fill_defaults(fields: dict[str, Any]) -> dict[str, Any]:
    """Fill what depends on other words: ``rate`` means an open loop, ``duration`` no count of requests."""
    rate, concurrency = fields.get("rate"), fields.get("concurrency")
    if rate is None:
        concurrency = fields.setdefault("concurrency", 1)
    else:
        fields.setdefault("concurrency", None)
    clients = concurrency or 1
    if fields.get("duration_s") is None:
        fields.setdefault("requests", max(DEFAULT_REQUESTS, REQUESTS_PER_CLIENT * clients))
    else:
        fields.setdefault("requests", None)
    # A warm-up would take the load that a cold start is about.
    fields.setdefault("warmup", 0 if fields.get("cold") else clients)
    endpoint = fields.setdefault("endpoint", Endpoint.CHAT if fields.get("turns", 1) > 1 else Endpoint.GENERATE)
    # A person's own prompt goes through the model's template as their users' prompts do.
    fields.setdefault("raw", endpoint is Endpoint.GENERATE and not fields.get("prompts"))
    if endpoint is Endpoint.EMBED:
        fields.setdefault("stream", False)
    return fields


def parse_limits(words: Mapping[str, Any]) -> tuple[Limit, ...]:
    """Read limit words alone, as ``Result.check`` takes them; no limit is added."""
    known = list_limit_options()
    _reject_unknown(words, ("limits", *known))
    limits = [parse_limit_option(word, value) for word, value in words.items() if word in known]
    given = words.get("limits", {})
    if not isinstance(given, Mapping):
        raise ConfigError(f"limits={safe_repr(given)}: expected a mapping such as {{'ttft.p95': '<= 300ms'}}")
    for key, texts in given.items():
        clauses = texts if isinstance(texts, (list, tuple)) else [texts]
        limits += [parse_limit(key if isinstance(key, str) else safe_repr(key), clause) for clause in clauses]
    return tuple(limits)


def _add_error_limit(limits: tuple[Limit, ...]) -> tuple[Limit, ...]:
    """Add the default contract: no request may fail."""
    named = any(limit.metric == "error_rate" for limit in limits)
    return limits if named else (*limits, parse_limit_option("max_error_rate", 0))


def _parse_margins(given: object, workload: Workload) -> dict[str, float]:
    """Read ``max_regression="10%"`` (tps and ttft, where the load has them) or ``{"tps": "5%", "ttft.p95": "25%"}``."""
    written = f"max_regression={safe_repr(given)}"
    if isinstance(given, Mapping):
        return dict(
            read_margin(key if isinstance(key, str) else safe_repr(key), value, written) for key, value in given.items()
        )
    share = parse_percent(given, written)
    usual = {name: share for name in GATING_METRICS if not explain_unmeasurable(name, workload)}
    if not usual:
        reason = explain_unmeasurable(GATING_METRICS[0], workload)
        raise ConfigError(
            f"{written} is about {' and '.join(GATING_METRICS)}: {reason}; write {{'latency': {safe_repr(given)}}}"
        )
    return usual


def _parse_text(word: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{word}={safe_repr(value)}: expected a text")
    return value


def _make_integer_parser(least: int) -> Callable[[str, object], int]:
    def parse(word: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MAX_NUMBER:
            raise ConfigError(f"{word}={safe_repr(value)}: expected a whole number from {least} to {_MAX_NUMBER}")
        return value

    return parse


def _parse_number(word: str, value: object, *, positive: bool = False) -> float:
    wrong = isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MAX_NUMBER
    if wrong or (positive and value == 0):
        raise ConfigError(f"{word}={safe_repr(value)}: expected a number {'above' if positive else 'of at least'} 0")
    return float(value)  # type: ignore[arg-type]


def _parse_duration(word: str, value: object) -> float:
    return parse_seconds(value, word)


def _parse_flag(word: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{word}={safe_repr(value)}: expected True or False")
    return value


_E = TypeVar("_E", bound=enum.Enum)
_V = TypeVar("_V")


def _make_choice_parser(kind: type[_E]) -> Callable[[str, object], _E]:
    valid = tuple(str(member.value) for member in kind)

    def parse(word: str, value: object) -> _E:
        if isinstance(value, str) and value in valid:
            return kind(value)
        raise ConfigError(f"{word}={safe_repr(value)}: expected one of {', '.join(valid)}{_suggest_name(value, valid)}")

    return parse


def _suggest_name(value: object, valid: tuple[str, ...]) -> str:
    return suggest_match(value, valid) if isinstance(value, str) else ""


def _parse_prompts(word: str, value: object) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) and text for text in texts):
        expected = "a text" if word == "prompt" else "a list of texts"
        raise ConfigError(f"{word}={safe_repr(value)}: expected {expected}, not empty")
    return tuple(texts)


def _parse_think_time(word: str, value: object) -> tuple[float, float]:
    """Read seconds, or a pair of bounds between which each pause is drawn."""
    if isinstance(value, (list, tuple)) and len(value) == 2:
        low, high = parse_seconds(value[0], word), parse_seconds(value[1], word)
        if low > high:
            raise ConfigError(f"{word}={safe_repr(value)}: the lower bound comes first")
        return low, high
    pause = parse_seconds(value, word)
    return pause, pause


def _parse_think(word: str, value: object) -> bool | str:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in _THINK_LEVELS:
        return value
    raise ConfigError(f"{word}={safe_repr(value)}: expected True, False, {', '.join(map(repr, _THINK_LEVELS))}")


def _parse_keep_alive(word: str, value: object) -> str | float:
    """Read seconds, or a duration as Go writes it, which the server parses: ``"1h30m"``, ``"-1s"``."""
    if isinstance(value, str) and _GO_DURATION.fullmatch(value):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _MAX_NUMBER:
        return float(value)
    raise ConfigError(
        f"{word}={safe_repr(value)}: expected seconds or a duration such as '10m'; -1 keeps the model loaded"
    )


def _parse_ollama_options(word: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(
            f"{word}={safe_repr(value)}: expected a mapping of Ollama options such as {{'num_thread': 4}}"
        )
    try:
        json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ConfigError(f"{word}={safe_repr(value)}: a value is nothing that JSON can say") from None
    return dict(value)


def _parse_timeouts(word: str, value: object) -> Timeouts:
    """Read the total in seconds, or a mapping with any of ``TIMEOUT_PARTS``."""
    given = value if isinstance(value, Mapping) else {"total": value}
    for part in given:
        if not isinstance(part, str) or part not in TIMEOUT_PARTS:
            valid = ", ".join(TIMEOUT_PARTS)
            raise ConfigError(
                f"{word}: no timeout {safe_repr(part)}{_suggest_name(part, TIMEOUT_PARTS)} (valid: {valid})"
            )
    named = isinstance(value, Mapping)
    limits = {
        f"{part}_s": parse_seconds(limit, f"{word}[{part!r}]" if named else word) for part, limit in given.items()
    }
    if any(limit == 0 for limit in limits.values()):
        raise ConfigError(f"{word}={safe_repr(value)}: a timeout must be above 0")
    return Timeouts(**limits)


def _make_optional_parser(parse: Callable[[str, Any], _V]) -> Callable[[str, Any], _V | None]:
    """Return a parser that takes ``None`` as well, which leaves the value to the server."""
    return lambda word, value: None if value is None else parse(word, value)


def _make_field_parser(field: str, parse: Callable[[str, Any], Any]) -> Callable[[str, Any], dict[str, Any]]:
    return lambda word, value: {field: parse(word, value)}


LOAD_OPTIONS: dict[str, Callable[[str, Any], dict[str, Any]]] = {
    "model": _make_field_parser("model", _parse_text),
    "endpoint": _make_field_parser("endpoint", _make_choice_parser(Endpoint)),
    "stream": _make_field_parser("stream", _parse_flag),
    "concurrency": _make_field_parser("concurrency", _make_integer_parser(1)),
    "rate": _make_field_parser("rate", lambda word, value: _parse_number(word, value, positive=True)),
    "arrival": _make_field_parser("arrival", _make_choice_parser(Arrival)),
    "stages": datasets.parse_stages,
    "requests": _make_field_parser("requests", _make_integer_parser(1)),
    "duration": _make_field_parser("duration_s", _parse_duration),
    "drain": _make_field_parser("drain_s", _parse_duration),
    "warmup": _make_field_parser("warmup", _make_integer_parser(0)),
    "think_time": _make_field_parser("think_time_s", _parse_think_time),
    "prompt": _make_field_parser("prompts", _parse_prompts),
    "prompts": lambda word, value: (
        datasets.parse_prompt_mix(word, value)
        if isinstance(value, Mapping)
        else {"prompts": _parse_prompts(word, value)}
    ),
    "dataset": datasets.read_dataset,
    "turns": _make_field_parser("turns", _make_integer_parser(1)),
    "images": datasets.read_images,
    "prompt_words": _make_field_parser("prompt_words", _make_integer_parser(1)),
    "prefix": _make_field_parser("prefix", _make_choice_parser(Prefix)),
    "raw": _make_field_parser("raw", _parse_flag),
    "num_predict": _make_field_parser("num_predict", _make_integer_parser(1)),
    "num_ctx": _make_field_parser("num_ctx", _make_optional_parser(_make_integer_parser(1))),
    "temperature": _make_field_parser("temperature", _make_optional_parser(_parse_number)),
    "seed": _make_field_parser("seed", _make_optional_parser(_make_integer_parser(0))),
    "think": _make_field_parser("think", _make_optional_parser(_parse_think)),
    "keep_alive": _make_field_parser("keep_alive", _parse_keep_alive),
    "options": _make_field_parser("options", _parse_ollama_options),
    "cold": _make_field_parser("cold", _parse_flag),
    "balance": _make_field_parser("balance", _make_choice_parser(Balance)),
    "timeout": _make_field_parser("timeouts", _parse_timeouts),
    "retries": _make_field_parser("retries", _make_integer_parser(0)),
    "reuse_connections": _make_field_parser("reuse_connections", _parse_flag),
}
"""Words that shape the load; each maps to a field of ``Workload``."""

JUDGING_OPTIONS = ("limits", "max_regression")
"""Words that judge it, beside the ``min_``/``max_`` words of ``verdict.limits``."""
