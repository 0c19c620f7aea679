"""The types of values that options take: one parser, JSON schema, annotation and description for each."""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pytest_ollama_perf.config import datasets, parse_percent
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.text import parse_seconds, safe_repr, suggest_match
from pytest_ollama_perf.core.workload import Timeouts

TIMEOUT_PARTS = ("connect", "first_token", "idle", "total")
THINK_LEVELS = ("low", "medium", "high", "max")
MAX_NUMBER = 2**31 - 1
_GO_DURATION = re.compile(r"[-+]?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h))+)")
_NUMBER = r"[0-9]*\.?[0-9]+"

Schema = dict[str, Any]


@dataclass(frozen=True)
class ValueType:
    """The type of an option's value.

    ``parse(name, value)`` raises ``ConfigError``. ``annotation`` is Python source in terms of ``option_types``,
    ``description`` is Markdown for the reference, ``metavar`` is the placeholder on the command line.
    """

    parse: Callable[[str, Any], Any]
    annotation: str
    schema: Schema
    description: str
    metavar: str = "VALUE"


def parse_text(name: str, value: object) -> str:
    """Return a string that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{name}={safe_repr(value)}: expected a text")
    return value


def parse_flag(name: str, value: object) -> bool:
    """Return ``True`` or ``False``; nothing else is accepted."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={safe_repr(value)}: expected True or False")
    return value


def _parse_number(name: str, value: object) -> float:
    if not _is_number(value) or not 0 <= value <= MAX_NUMBER:  # type: ignore[operator]
        raise ConfigError(f"{name}={safe_repr(value)}: expected a number of at least 0")
    return float(value)  # type: ignore[arg-type]


def _parse_positive(name: str, value: object) -> float:
    if not _is_number(value) or not 0 < value <= MAX_NUMBER:  # type: ignore[operator]
        raise ConfigError(f"{name}={safe_repr(value)}: expected a number above 0")
    return float(value)  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _parse_seconds(name: str, value: object) -> float:
    return parse_seconds(value, name)


def _parse_positive_seconds(name: str, value: object) -> float:
    seconds = parse_seconds(value, name)
    if not seconds:
        raise ConfigError(f"{name}={safe_repr(value)}: a timeout must be above 0")
    return seconds


def _parse_share(name: str, value: object) -> float:
    """Return a share from 0 to 1, written as a number or a percentage."""
    if _is_number(value) and value == 0:
        return 0.0
    share = parse_percent(value, f"{name}={safe_repr(value)}")
    if share > 1:
        raise ConfigError(f"{name}={safe_repr(value)}: expected a share up to 1, or a percentage up to 100%")
    return share


def _parse_prompt(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name}={safe_repr(value)}: expected a text, not empty")
    return (value,)


def _parse_prompts(name: str, value: object) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return datasets.parse_prompt_mix(name, value)
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise ConfigError(f"{name}={safe_repr(value)}: expected a list of texts, not empty")
    return {"prompts": tuple(texts)}


def _parse_think_time(name: str, value: object) -> tuple[float, float]:
    """Return the bounds of a pause, equal for a single value."""
    if isinstance(value, (list, tuple)) and len(value) == 2:
        low, high = parse_seconds(value[0], name), parse_seconds(value[1], name)
        if low > high:
            raise ConfigError(f"{name}={safe_repr(value)}: the lower bound comes first")
        return low, high
    pause = parse_seconds(value, name)
    return pause, pause


def _parse_think(name: str, value: object) -> bool | str:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in THINK_LEVELS:
        return value
    raise ConfigError(f"{name}={safe_repr(value)}: expected True, False, {', '.join(map(repr, THINK_LEVELS))}")


def _parse_keep_alive(name: str, value: object) -> str | float:
    """Return seconds, or a Go duration, which the server parses: ``"1h30m"``, ``"-1s"``."""
    if isinstance(value, str) and _GO_DURATION.fullmatch(value):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER:
        return float(value)
    raise ConfigError(
        f"{name}={safe_repr(value)}: expected seconds or a duration such as '10m'; -1 keeps the model loaded"
    )


def _parse_ollama_options(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(
            f"{name}={safe_repr(value)}: expected a mapping of Ollama options such as {{'num_thread': 4}}"
        )
    try:
        json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ConfigError(f"{name}={safe_repr(value)}: a value cannot be written as JSON") from None
    return dict(value)


def _parse_timeouts(name: str, value: object) -> Timeouts:
    """Return the timeouts of a total in seconds, or of a mapping with any of ``TIMEOUT_PARTS``."""
    given = value if isinstance(value, Mapping) else {"total": value}
    for part in given:
        if not isinstance(part, str) or part not in TIMEOUT_PARTS:
            near = suggest_match(part, TIMEOUT_PARTS) if isinstance(part, str) else ""
            raise ConfigError(f"{name}: no timeout {safe_repr(part)}{near} (valid: {', '.join(TIMEOUT_PARTS)})")
    named = isinstance(value, Mapping)
    limits = {
        f"{part}_s": parse_seconds(limit, f"{name}[{part!r}]" if named else name) for part, limit in given.items()
    }
    if any(limit == 0 for limit in limits.values()):
        raise ConfigError(f"{name}={safe_repr(value)}: a timeout must be above 0")
    return Timeouts(**limits)


def _parse_mapping(name: str, value: object) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}={safe_repr(value)}: expected a mapping such as {{'model': 'llama3.2:3b'}}")
    return value


def make_integer_type(least: int) -> ValueType:
    """Return the type of integers from ``least``."""

    def parse(name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_NUMBER:
            raise ConfigError(f"{name}={safe_repr(value)}: expected a whole number from {least} to {MAX_NUMBER}")
        return value

    return ValueType(parse, "int", {"type": "integer", "minimum": least}, f"integer from {least}", "N")


def make_optional_type(one: ValueType) -> ValueType:
    """Return the type of a value, or ``None`` for the setting of the server or model."""

    def parse(name: str, value: object) -> Any:
        return None if value is None else one.parse(name, value)

    return ValueType(parse, f"{one.annotation} | None", one.schema, f"{one.description}, or `None`", one.metavar)


_E = TypeVar("_E", bound=enum.Enum)


def make_choice_type(kind: type[_E]) -> ValueType:
    """Return the type of the values of an enum."""
    valid = tuple(str(member.value) for member in kind)

    def parse(name: str, value: object) -> _E:
        if isinstance(value, str) and value in valid:
            return kind(value)
        near = suggest_match(value, valid) if isinstance(value, str) else ""
        raise ConfigError(f"{name}={safe_repr(value)}: expected one of {', '.join(valid)}{near}")

    listed = ", ".join(f"`{each}`" for each in valid)
    return ValueType(parse, f"Literal[{', '.join(map(_quote, valid))}]", {"enum": list(valid)}, listed, "NAME")


def make_list_type(one: ValueType) -> ValueType:
    """Return the type of one value, or a list of them."""
    base = one.annotation.removesuffix(" | None")
    return ValueType(
        one.parse,
        f"{base} | Collection[{one.annotation}]{one.annotation.removeprefix(base)}",
        {"anyOf": [one.schema, {"type": "array", "items": one.schema, "minItems": 1}]},
        f"{one.description}, or a list",
        one.metavar,
    )


def _quote(text: str) -> str:
    return f'"{text}"'


def parse_limit_seconds(name: str, value: object, most: float = 60.0) -> float:
    """Return the bound of a time limit in seconds.

    A bare number above ``most`` is refused: it usually was meant as milliseconds.
    """
    seconds = parse_seconds(value, name)
    if _is_number(value) and seconds > most:
        raise ConfigError(
            f"{name}={safe_repr(value)}: a number without a unit is in seconds; write '{seconds:g}ms' or '{seconds:g}s'"
        )
    return seconds


def _parse_ratio(name: str, value: object) -> float:
    if not _is_number(value) or not 0 < value < math.inf or value > MAX_NUMBER:  # type: ignore[operator]
        raise ConfigError(f"{name}={safe_repr(value)}: expected a number above 0, cold TTFT over warm")
    return float(value)  # type: ignore[arg-type]


_UNIT = "(us|µs|ms|s|m|min|h)"
_TIME: Schema = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": rf"^{_NUMBER}\s*{_UNIT}?$"}]}
_PERCENT: Schema = {
    "anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "string", "pattern": rf"^{_NUMBER}\s*%?$"}]
}
_TEXT: Schema = {"type": "string", "minLength": 1}
_TEXTS: Schema = {"type": "array", "items": _TEXT, "minItems": 1}
_WEIGHTS: Schema = {
    "type": "object",
    "additionalProperties": {"type": "number", "exclusiveMinimum": 0},
    "minProperties": 1,
}
_STAGE: Schema = {
    "type": "object",
    "properties": {
        "concurrency": {"type": "integer", "minimum": 0},
        "rate": {"type": "number", "minimum": 0},
        "for": _TIME,
        "ramp": _TIME,
    },
    "additionalProperties": False,
    "minProperties": 2,
    "maxProperties": 2,
}
_SECONDS_TEXT = "seconds or `'300ms'`"

TEXT = ValueType(parse_text, "str", _TEXT, "string", "TEXT")
FLAG = ValueType(parse_flag, "bool", {"type": "boolean"}, "`True` or `False`")
NUMBER = ValueType(_parse_number, "float", {"type": "number", "minimum": 0}, "number from 0", "X")
POSITIVE = ValueType(_parse_positive, "float", {"type": "number", "exclusiveMinimum": 0}, "number above 0", "X")
SECONDS = ValueType(_parse_seconds, "Seconds", _TIME, _SECONDS_TEXT, "TIME")
TIMEOUT = ValueType(_parse_positive_seconds, "Seconds", _TIME, _SECONDS_TEXT, "TIME")
TIME_LIMIT = ValueType(parse_limit_seconds, "Seconds", _TIME, _SECONDS_TEXT, "TIME")
LOAD_TIME_LIMIT = ValueType(
    lambda name, value: parse_limit_seconds(name, value, 600.0), "Seconds", _TIME, _SECONDS_TEXT, "TIME"
)
RATIO = ValueType(_parse_ratio, "float", {"type": "number", "exclusiveMinimum": 0}, "number above 0", "X")
SHARE = ValueType(_parse_share, "Percent", _PERCENT, "share or `'95%'`", "SHARE")
PERCENT = ValueType(
    lambda name, value: parse_percent(value, f"{name}={safe_repr(value)}"), "Percent", _PERCENT, "`'5%'`", "PERCENT"
)
PAUSE = ValueType(
    _parse_think_time,
    "Seconds | Sequence[Seconds]",
    {"anyOf": [_TIME, {"type": "array", "items": _TIME, "minItems": 2, "maxItems": 2}]},
    f"{_SECONDS_TEXT}, or a pair",
    "TIME",
)
PROMPT = ValueType(_parse_prompt, "str", _TEXT, "string", "TEXT")
PROMPTS = ValueType(
    _parse_prompts,
    "str | Sequence[str] | Mapping[str, float]",
    {"anyOf": [_TEXT, _TEXTS, _WEIGHTS]},
    "string, list of strings, or mapping of strings to weights",
    "TEXT",
)
DATASET = ValueType(datasets.read_dataset, "str | Path", _TEXT, "path", "FILE")
IMAGES = ValueType(
    datasets.read_images, "str | Path | Sequence[str | Path]", {"anyOf": [_TEXT, _TEXTS]}, "path, or a list", "FILE"
)
STAGES = ValueType(
    datasets.parse_stages,
    "Sequence[StageOptions]",
    {"type": "array", "items": _STAGE, "minItems": 1},
    "list of mappings",
)
THINK = ValueType(
    _parse_think,
    f"bool | Literal[{', '.join(map(_quote, THINK_LEVELS))}]",
    {"anyOf": [{"type": "boolean"}, {"enum": list(THINK_LEVELS)}]},
    f"`True`, `False` or {', '.join(f'`{each}`' for each in THINK_LEVELS)}",
    "LEVEL",
)
KEEP_ALIVE = ValueType(
    _parse_keep_alive, "Seconds", {"type": ["number", "string"]}, "seconds or `'10m'`; -1 for ever", "TIME"
)
OLLAMA_OPTIONS = ValueType(_parse_ollama_options, "Mapping[str, object]", {"type": "object"}, "mapping", "JSON")
TIMEOUTS = ValueType(
    _parse_timeouts,
    "Seconds | TimeoutOptions",
    {"anyOf": [_TIME, {"type": "object", "propertyNames": {"enum": list(TIMEOUT_PARTS)}}]},
    f"{_SECONDS_TEXT}, or a mapping",
    "TIME",
)
LIMITS = ValueType(_parse_mapping, "Mapping[str, str | Sequence[str]]", {"type": "object"}, "mapping")
MARGINS = ValueType(
    PERCENT.parse, "Percent | Mapping[str, Percent]", {"anyOf": [_PERCENT, {"type": "object"}]}, "`'5%'` or mapping"
)
SIDE = ValueType(_parse_mapping, "ABSideOptions", {"type": "object"}, "mapping")
