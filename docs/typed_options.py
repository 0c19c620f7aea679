"""The module ``config/option_types.py``, written from the tables of arguments."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping

from pytest_ollama_perf.analysis.limits import get_limit_metric
from pytest_ollama_perf.config.load_options import LOAD_OPTIONS, MarkerOption
from pytest_ollama_perf.config.markers import MARKERS, SIDE_EXCLUDED_OPTIONS, Marker
from pytest_ollama_perf.config.value_types import TIMEOUT_PARTS, make_list_type
from pytest_ollama_perf.metrics import Unit

HEADER = '''\
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
'''
NAMES = {
    "ollama_load": "LoadOptions",
    "ollama_sweep": "SweepOptions",
    "ollama_ab": "ABOptions",
    "ollama_max_concurrency": "MaxConcurrencyOptions",
    "ollama_cold_start": "ColdStartOptions",
}
"""Marker name -> the name of the type of its arguments."""

_LIMIT_TYPES = {Unit.SECONDS: "Seconds", Unit.SHARE: "Percent", Unit.BYTES: "str"}


def build_option_types() -> str:
    """Return the source of ``config/option_types.py``."""
    shared = _list_shared_options()
    parts = [
        HEADER,
        _build_class("TimeoutOptions", "TypedDict", "Timeouts by name.", _list_timeouts()),
        _build_class("_CommonOptions", "TypedDict", "Arguments of every marker.", _list_fields(shared)),
        _build_class("LimitOptions", "TypedDict", "Absolute limits.", _list_limits()),
        _build_class("ABSideOptions", "TypedDict", "Arguments of one side of a comparison.", _list_side()),
        *(_build_marker(marker, shared) for marker in MARKERS.values()),
    ]
    return "\n\n".join(parts)


def _build_marker(marker: Marker, shared: Mapping[str, MarkerOption]) -> str:
    bases = "_CommonOptions, LimitOptions" if marker.takes_limits else "_CommonOptions"
    own = {name: option for name, option in _list_options(marker).items() if name not in {*shared, "limits"}}
    fields = _list_fields(own, axes=marker.axes)
    return _build_class(NAMES[marker.name], bases, f"Arguments of ``{marker.name}``.", fields)


def _list_options(marker: Marker) -> dict[str, MarkerOption]:
    return {**marker.load_options, **marker.judging_options, **marker.own_options}


def _list_shared_options() -> dict[str, MarkerOption]:
    """Return the arguments that every marker takes in the same way."""
    markers = [(_list_options(marker), marker.axes) for marker in MARKERS.values()]
    return {
        name: option
        for name, option in LOAD_OPTIONS.items()
        if all(options.get(name) is option and name not in axes for options, axes in markers)
    }


def _list_fields(options: Mapping[str, MarkerOption], axes: Iterable[str] = ()) -> Iterator[tuple[str, str, str]]:
    for name, option in options.items():
        kind = make_list_type(option.type) if name in axes else option.type
        yield name, kind.annotation, option.plain_help


def _list_timeouts() -> Iterator[tuple[str, str, str]]:
    yield from ((part, "Seconds", "") for part in TIMEOUT_PARTS)


def _list_limits() -> Iterator[tuple[str, str, str]]:
    marker = MARKERS["ollama_load"]
    limits = marker.judging_options["limits"]
    yield limits.name, limits.type.annotation, limits.plain_help
    for name in marker.limit_options:
        yield name, _LIMIT_TYPES.get(get_limit_metric(name).unit, "float | str"), ""


def _list_side() -> Iterator[tuple[str, str, str]]:
    yield "url", "str", "server of this side"
    yield from _list_fields({name: each for name, each in LOAD_OPTIONS.items() if name not in SIDE_EXCLUDED_OPTIONS})


def _build_class(name: str, bases: str, doc: str, fields: Iterable[tuple[str, str, str]]) -> str:
    lines = [f"class {name}({bases}, total=False):", f'    """{doc}"""', ""]
    for field, annotation, text in fields:
        lines.append(f"    {field}: {annotation}")
        lines += _build_docstring(text)
    return "\n".join(lines).rstrip() + "\n"


def _build_docstring(text: str) -> list[str]:
    if not text:
        return []
    sentence = f'"""{text[0].upper()}{text[1:]}."""'
    return [*textwrap.wrap(sentence, 116, initial_indent="    ", subsequent_indent="    "), ""]
