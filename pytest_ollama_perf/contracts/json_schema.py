"""The JSON Schema of contract files, for editors; ``docs/contract.schema.json`` is made of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pytest_ollama_perf.config.load_options import LOAD_OPTIONS, MarkerOption
from pytest_ollama_perf.config.markers import MARKERS
from pytest_ollama_perf.config.value_types import make_list_type
from pytest_ollama_perf.contracts.experiments import EXPERIMENT_KINDS, ExperimentKind, list_table_options
from pytest_ollama_perf.contracts.parse import CONTRACT_LOAD_OPTIONS, LIST_OPTIONS, SCHEMA_VERSION
from pytest_ollama_perf.contracts.preconditions import PRECONDITIONS
from pytest_ollama_perf.metrics import METRICS, PERCENTILES, STATS, TELEMETRY_METRICS, Metric, Shape, Unit

Schema = dict[str, Any]

_NUMBER = r"[0-9]*\.?[0-9]+"
_UNITS = {
    Unit.SECONDS: "(s|ms|us|µs|min)",
    Unit.TOKENS_PER_SECOND: "(tokens/s|/s)?",
    Unit.REQUESTS_PER_SECOND: "(requests/s|/s)?",
    Unit.SHARE: "%?",
    Unit.BYTES: "([KMGT]iB|[kMGT]?B)",
    Unit.CELSIUS: "(°C|C)?",
    Unit.JOULES_PER_TOKEN: "(J/token|J|mJ)?",
}


def _build_integer(least: int) -> Schema:
    return {"type": "integer", "minimum": least}


def _build_any_of(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _build_list(inner: Schema) -> Schema:
    return {"type": "array", "items": inner, "minItems": 1}


def _build_enum(values: Iterable[str]) -> Schema:
    return {"enum": list(values)}


_TEXT: Schema = {"type": "string", "minLength": 1}
_SECONDS = "(us|µs|ms|s|m|min|h)"


def build_schema() -> bytes:
    """Return the schema, indented, as it is kept in ``docs/contract.schema.json``."""
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pytest-ollama-perf contract",
        **_build_table(
            {
                "schema": {"const": SCHEMA_VERSION},
                "defaults": {"$ref": "#/$defs/load"},
                "load": {"$ref": "#/$defs/loads"},
                "model": {"type": "object", "additionalProperties": {"$ref": "#/$defs/model"}},
            }
        ),
        "required": ["schema"],
        "$defs": _build_definitions(),
    }
    return json.dumps(whole, indent=2, ensure_ascii=False).encode() + b"\n"


def _build_definitions() -> Schema:
    load = {**_build_load_options(), **_build_clauses(), "require": {"$ref": "#/$defs/require"}}
    named = _build_table({"name": _TEXT, **load})
    kinds = {name: {"$ref": f"#/$defs/{name}"} for name in EXPERIMENT_KINDS}
    return {
        "load": _build_table(load),
        "loads": _build_any_of(named, _build_list(named)),
        "model": _build_table({**load, "load": {"$ref": "#/$defs/loads"}, **kinds}),
        "require": _build_require(),
        **{name: _build_experiment(kind) for name, kind in EXPERIMENT_KINDS.items()},
        **{f"clause.{name}": _build_metric(metric, regression=True) for name, metric in METRICS.items()},
        **{f"limit.{name}": _build_metric(metric, regression=False) for name, metric in METRICS.items()},
    }


def _build_table(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _build_load_options() -> Schema:
    return {name: _build_option(LOAD_OPTIONS[name], is_list=name in LIST_OPTIONS) for name in CONTRACT_LOAD_OPTIONS}


def _build_option(option: MarkerOption, *, is_list: bool) -> Schema:
    """Return the schema of one argument, with the text that editors show."""
    kind = make_list_type(option.type) if is_list else option.type
    return {"description": option.plain_help, **kind.schema}


def _build_clauses() -> Schema:
    return {name: {"$ref": f"#/$defs/clause.{name}"} for name in METRICS}


def _build_metric(metric: Metric, *, regression: bool) -> Schema:
    clause = {"type": "string", "pattern": _build_pattern(metric, regression=regression)}
    texts = _build_any_of(clause, _build_list(clause))
    stats = {"type": "object", "propertyNames": _build_enum(STATS), "minProperties": 1}
    own = texts if metric.shape is Shape.PER_RUN or not regression else _build_any_of(*texts["anyOf"], stats)
    return {"description": metric.help, **own}


def _build_pattern(metric: Metric, *, regression: bool) -> str:
    stats = "|".join(STATS)
    stat = {Shape.PER_RUN: "", Shape.POOLED: rf"(({stats})\s*)?", Shape.PER_REQUEST: rf"({stats})\s*"}[metric.shape]
    limit = rf"{stat}{'>=' if metric.is_higher_better else '<='}\s*{_NUMBER}\s*{_UNITS[metric.unit]}"
    if not regression or metric.name in {"error_rate", *TELEMETRY_METRICS}:
        return rf"^\s*{limit}\s*$"
    share = "" if metric.shape is Shape.PER_RUN else rf"(({'|'.join(PERCENTILES)})\s+)?"
    return rf"^\s*({limit}|{share}regression\s*<=\s*{_NUMBER}\s*%?)\s*$"


def _build_require() -> Schema:
    texts = _build_any_of(_TEXT, _build_list(_TEXT))
    known = {
        "gpu_offload": {"type": "string", "pattern": rf"^\s*(<=|>=|==|!=|<|>)?\s*{_NUMBER}\s*%?\s*$"},
        "context_length": _build_any_of(
            _build_integer(1), {"type": "string", "pattern": r"^\s*(<=|>=|==|!=|<|>)?\s*[0-9]+\s*$"}
        ),
        "version": _TEXT,
        "server_env": {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1},
    }
    return _build_table(
        {name: {"description": kind.help, **known.get(name, texts)} for name, kind in PRECONDITIONS.items()}
    )


def _build_experiment(kind: ExperimentKind) -> Schema:
    marker = MARKERS[kind.marker]
    options = {**LOAD_OPTIONS, **marker.judging_options, **marker.own_options}
    values = {
        name: _build_option(options[name], is_list=name in marker.axes) if name in options else {}
        for name in list_table_options(kind)
    }
    metrics = {name: {"$ref": f"#/$defs/limit.{name}"} for name in METRICS} if kind.takes_load_limits else {}
    gates = {
        name: {
            "type": "string",
            "pattern": rf"^\s*{gate.op}\s*{_NUMBER}\s*{_SECONDS if gate.is_time else ''}\s*$",
        }
        for name, gate in kind.own_metrics.items()
    }
    return _build_table({**values, **metrics, **gates, "require": {"$ref": "#/$defs/require"}})
