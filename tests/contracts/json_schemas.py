"""As much of JSON Schema as the schema of contracts uses; a keyword unknown here fails the test that meets it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_TYPES = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
}
_SAID = {"$schema", "$defs", "title", "description"}


def faults(value: Any, schema: dict[str, Any], whole: dict[str, Any] | None = None, at: str = "$") -> Iterator[str]:
    """Yield a line for everything in ``value`` that ``schema`` does not allow."""
    whole = whole or schema
    for keyword, wanted in schema.items():
        if keyword not in _SAID:
            yield from _CHECKS[keyword](value, wanted, schema, whole, at)


def _ref(value, wanted, schema, whole, at):
    yield from faults(value, whole["$defs"][wanted.removeprefix("#/$defs/")], whole, at)


def _type(value, wanted, schema, whole, at):
    names = wanted if isinstance(wanted, list) else [wanted]
    if not any(_TYPES[name](value) for name in names):
        yield f"{at} is no {' or '.join(names)}"


def _any_of(value, wanted, schema, whole, at):
    found = [list(faults(value, each, whole, at)) for each in wanted]
    if all(found):
        yield from min(found, key=len)


def _properties(value, wanted, schema, whole, at):
    if isinstance(value, dict):
        for key in value.keys() & wanted.keys():
            yield from faults(value[key], wanted[key], whole, f"{at}.{key}")


def _additional(value, wanted, schema, whole, at):
    for key in value.keys() - schema.get("properties", {}).keys() if isinstance(value, dict) else ():
        yield from [f"{at} has {key}"] if wanted is False else faults(value[key], wanted, whole, f"{at}.{key}")


def _items(value, wanted, schema, whole, at):
    for index, item in enumerate(value if isinstance(value, list) else []):
        yield from faults(item, wanted, whole, f"{at}[{index}]")


def _names(value, wanted, schema, whole, at):
    for key in value if isinstance(value, dict) else ():
        yield from faults(key, wanted, whole, f"{at} key {key}")


def _held(test):
    return lambda value, wanted, schema, whole, at: (
        [] if test(value, wanted) else [f"{at}: {value!r} against {wanted!r}"]
    )


def _number(value: Any) -> bool:
    return _TYPES["number"](value)


_CHECKS = {
    "$ref": _ref,
    "type": _type,
    "anyOf": _any_of,
    "properties": _properties,
    "additionalProperties": _additional,
    "items": _items,
    "propertyNames": _names,
    "const": _held(lambda value, wanted: value == wanted and type(value) is type(wanted)),
    "enum": _held(lambda value, wanted: value in wanted),
    "required": _held(lambda value, wanted: isinstance(value, dict) and set(wanted) <= value.keys()),
    "pattern": _held(lambda value, wanted: not isinstance(value, str) or re.search(wanted, value) is not None),
    "minLength": _held(lambda value, wanted: not isinstance(value, str) or len(value) >= wanted),
    "minItems": _held(lambda value, wanted: not isinstance(value, list) or len(value) >= wanted),
    "maxItems": _held(lambda value, wanted: not isinstance(value, list) or len(value) <= wanted),
    "maxProperties": _held(lambda value, wanted: not isinstance(value, dict) or len(value) <= wanted),
    "minProperties": _held(lambda value, wanted: not isinstance(value, dict) or len(value) >= wanted),
    "minimum": _held(lambda value, wanted: not _number(value) or value >= wanted),
    "maximum": _held(lambda value, wanted: not _number(value) or value <= wanted),
    "exclusiveMinimum": _held(lambda value, wanted: not _number(value) or value > wanted),
}
