"""The JSON Schema of contract files, for editors; ``docs/contract.schema.json`` is made of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from pytest_ollama_perf.contract.experiments import KINDS, Kind, words_of
from pytest_ollama_perf.contract.reading import LOAD_WORDS, SCHEMA, SEVERAL
from pytest_ollama_perf.contract.require import REQUIREMENTS
from pytest_ollama_perf.marks import TIMEOUT_PARTS
from pytest_ollama_perf.metric import METRICS, PERCENTILES, STATS, TELEMETRY, Metric, Shape, Unit
from pytest_ollama_perf.workload import Arrival, Balance, Endpoint, Prefix

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


def _whole(least: int) -> Schema:
    return {"type": "integer", "minimum": least}


def _either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _list(inner: Schema) -> Schema:
    return {"type": "array", "items": inner, "minItems": 1}


def _words(words: Iterable[str]) -> Schema:
    return {"enum": list(words)}


_TEXT: Schema = {"type": "string", "minLength": 1}
_FLAG: Schema = {"type": "boolean"}
_RATE: Schema = {"type": "number", "exclusiveMinimum": 0}
_SECONDS = "(us|µs|ms|s|m|min|h)"
_TIME = _either({"type": "number", "minimum": 0}, {"type": "string", "pattern": rf"^{_NUMBER}\s*{_SECONDS}?$"})
_STAGE: Schema = {
    "type": "object",
    "properties": {"concurrency": _whole(0), "rate": {"type": "number", "minimum": 0}, "for": _TIME, "ramp": _TIME},
    "additionalProperties": False,
    "minProperties": 2,
    "maxProperties": 2,
}
_PERCENT = _either({"type": "number", "minimum": 0, "maximum": 1}, {"type": "string", "pattern": rf"^{_NUMBER}\s*%?$"})

WORDS: Mapping[str, Schema] = MappingProxyType(
    {
        "endpoint": _words(member.value for member in Endpoint),
        "stream": _FLAG,
        "concurrency": _whole(1),
        "rate": _RATE,
        "arrival": _words(member.value for member in Arrival),
        "requests": _whole(1),
        "duration": _TIME,
        "drain": _TIME,
        "warmup": _whole(0),
        "think_time": _either(_TIME, {"type": "array", "items": _TIME, "minItems": 2, "maxItems": 2}),
        "prompt": _TEXT,
        "prompts": _either(_TEXT, _list(_TEXT), {"type": "object", "additionalProperties": _RATE, "minProperties": 1}),
        "dataset": _TEXT,
        "turns": _whole(1),
        "images": _either(_TEXT, _list(_TEXT)),
        "stages": _list(_STAGE),
        "retries": _whole(0),
        "reuse_connections": _FLAG,
        "balance": _words(member.value for member in Balance),
        "prompt_words": _whole(1),
        "prefix": _words(member.value for member in Prefix),
        "raw": _FLAG,
        "num_predict": _whole(1),
        "num_ctx": _whole(1),
        "temperature": {"type": "number", "minimum": 0},
        "seed": _whole(0),
        "think": _either(_FLAG, _words(["low", "medium", "high", "max"])),
        "keep_alive": {"type": ["number", "string"]},
        "options": {"type": "object"},
        "cold": _FLAG,
        "timeout": _either(_TIME, {"type": "object", "propertyNames": _words(TIMEOUT_PARTS)}),
        "repeats": _whole(1),
        "load_timeout": _TIME,
        "single": _FLAG,
        "start": _whole(1),
        "maximum": _whole(1),
        "max_latency": _TIME,
        "max_ttft": _TIME,
        "success_rate": _PERCENT,
        "stop_success_rate": _PERCENT,
        "stop_latency": _TIME,
    }
)
"""What a word takes; one that is not listed takes anything an editor can know of."""

_SWEPT = ("model", "num_ctx", "prompt_words", "num_predict", *SEVERAL)


def schema() -> bytes:
    """Return the schema, indented, as it is kept in ``docs/contract.schema.json``."""
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pytest-ollama-perf contract",
        **_table(
            {
                "schema": {"const": SCHEMA},
                "defaults": {"$ref": "#/$defs/load"},
                "load": {"$ref": "#/$defs/loads"},
                "model": {"type": "object", "additionalProperties": {"$ref": "#/$defs/model"}},
            }
        ),
        "required": ["schema"],
        "$defs": _definitions(),
    }
    return json.dumps(whole, indent=2, ensure_ascii=False).encode() + b"\n"


def _definitions() -> Schema:
    load = {**_load_words(), **_clauses(), "require": {"$ref": "#/$defs/require"}}
    named = _table({"name": _TEXT, **load})
    kinds = {name: {"$ref": f"#/$defs/{name}"} for name in KINDS}
    return {
        "load": _table(load),
        "loads": _either(named, _list(named)),
        "model": _table({**load, "load": {"$ref": "#/$defs/loads"}, **kinds}),
        "require": _require(),
        **{name: _experiment(kind) for name, kind in KINDS.items()},
        **{f"clause.{name}": _metric(metric, regression=True) for name, metric in METRICS.items()},
        **{f"limit.{name}": _metric(metric, regression=False) for name, metric in METRICS.items()},
    }


def _table(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _load_words() -> Schema:
    return {word: _either(_word(word), _list(_word(word))) if word in SEVERAL else _word(word) for word in LOAD_WORDS}


def _word(word: str) -> Schema:
    return WORDS.get(word, {})


def _clauses() -> Schema:
    return {name: {"$ref": f"#/$defs/clause.{name}"} for name in METRICS}


def _metric(metric: Metric, *, regression: bool) -> Schema:
    clause = {"type": "string", "pattern": _pattern(metric, regression=regression)}
    texts = _either(clause, _list(clause))
    stats = {"type": "object", "propertyNames": _words(STATS), "minProperties": 1}
    own = texts if metric.shape is Shape.PER_RUN or not regression else _either(*texts["anyOf"], stats)
    return {"description": metric.help, **own}


def _pattern(metric: Metric, *, regression: bool) -> str:
    stats = "|".join(STATS)
    stat = {Shape.PER_RUN: "", Shape.POOLED: rf"(({stats})\s*)?", Shape.PER_REQUEST: rf"({stats})\s*"}[metric.shape]
    limit = rf"{stat}{'>=' if metric.is_rate else '<='}\s*{_NUMBER}\s*{_UNITS[metric.unit]}"
    if not regression or metric.name in {"error_rate", *TELEMETRY}:
        return rf"^\s*{limit}\s*$"
    share = "" if metric.shape is Shape.PER_RUN else rf"(({'|'.join(PERCENTILES)})\s+)?"
    return rf"^\s*({limit}|{share}regression\s*<=\s*{_NUMBER}\s*%?)\s*$"


def _require() -> Schema:
    texts = _either(_TEXT, _list(_TEXT))
    known = {
        "gpu_offload": {"type": "string", "pattern": rf"^\s*(<=|>=|==|!=|<|>)?\s*{_NUMBER}\s*%?\s*$"},
        "context_length": _either(_whole(1), {"type": "string", "pattern": r"^\s*(<=|>=|==|!=|<|>)?\s*[0-9]+\s*$"}),
        "version": _TEXT,
        "server_env": {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1},
    }
    return _table({name: known.get(name, texts) for name in REQUIREMENTS})


def _experiment(kind: Kind) -> Schema:
    axes = _SWEPT if kind.name == "sweep" else ()
    words = {word: _either(_word(word), _list(_word(word))) if word in axes else _word(word) for word in words_of(kind)}
    metrics = {name: {"$ref": f"#/$defs/limit.{name}"} for name in METRICS} if kind.metrics else {}
    gates = {
        name: {
            "type": "string",
            "pattern": rf"^\s*{gate.op}\s*{_NUMBER}\s*{_SECONDS if gate.is_time else ''}\s*$",
        }
        for name, gate in kind.gates.items()
    }
    return _table({**words, **metrics, **gates, "require": {"$ref": "#/$defs/require"}})
