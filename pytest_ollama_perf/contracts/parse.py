"""A contract file read into groups: one measurement each, and the clauses that share it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pytest_ollama_perf.analysis.run_value import POLICIES
from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.config.load_options import LOAD_OPTIONS
from pytest_ollama_perf.config.load_spec import LoadSpec, build_load_spec, merge_options, reject_unmeasurable
from pytest_ollama_perf.contracts import toml
from pytest_ollama_perf.contracts.clauses import DEFAULT_ERROR_CLAUSE, Clause, ClauseGroup, parse_clause, suggest_clause
from pytest_ollama_perf.contracts.experiments import (
    EXPERIMENT_KINDS,
    LOAD_SHAPE_OPTIONS,
    ExperimentKind,
    build_experiment,
    list_table_options,
    parse_limit_clauses,
    parse_metric_clause,
)
from pytest_ollama_perf.contracts.preconditions import PRECONDITIONS, Precondition, parse_precondition
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.text import safe_repr, suggest_match
from pytest_ollama_perf.core.workload import build_load_id
from pytest_ollama_perf.experiments.load import LoadTest
from pytest_ollama_perf.metrics import METRICS

SCHEMA_VERSION = 1
DEFAULT_MODEL = "*"
"""Means the model of --ollama-model, or the only one that the server has."""

TOP_LEVEL_KEYS = ("schema", "defaults", "model", "load")
CONTRACT_LOAD_OPTIONS = tuple(option for option in LOAD_OPTIONS if option != "model")
FILE_OPTIONS = tuple(name for name, option in LOAD_OPTIONS.items() if option.is_file)
"""Arguments that are paths."""

LIST_OPTIONS = ("concurrency", "rate")
"""Words that may hold a list: the same clauses at each."""

_MAX_SUGGESTIONS = 50

_LOAD_KEYS = (*CONTRACT_LOAD_OPTIONS, "require")


@dataclass(frozen=True)
class _Layer:
    """One table of the file, read: what loads below it take over unless they say otherwise."""

    path: toml.KeyPath
    options: dict[str, Any] = field(default_factory=dict)
    clauses: dict[str, tuple[Clause, ...]] = field(default_factory=dict)
    preconditions: dict[str, Precondition] = field(default_factory=dict)
    name: str = ""


@dataclass
class _ContractParser:
    """Reads one file and notes everything that is wrong with it."""

    name: str
    lines: Mapping[toml.KeyPath, int]
    settings: Settings
    folder: Path
    faults: list[tuple[int, str]] = field(default_factory=list)

    def add_fault(self, path: toml.KeyPath, text: str) -> None:
        self.faults.append((toml.find_line(self.lines, path), text))

    def attempt(self, path: toml.KeyPath, read: Callable[..., Any], *arguments: Any) -> Any:
        """Return what ``read`` makes of the value at ``path``; ``None``, and a fault noted, where it refuses."""
        try:
            return read(*arguments)
        except ConfigError as error:
            self.add_fault(path, str(error))
            return None


def parse_contract(
    text: str, name: str, *, settings: Settings, folder: Path, prefix: Sequence[str] = ()
) -> tuple[ClauseGroup, ...]:
    """Return the groups of the contract ``text``.

    ``name`` is what errors call the file, ``folder`` where paths in it begin, ``prefix`` the table that holds the
    contract if the whole file is not one.

    Raises:
        ConfigError: one line for everything that is wrong, each beginning with ``name`` and the line number.
    """
    document: Any = toml.parse_toml(text, name)
    for key in prefix:
        document = document[key]
    reader = _ContractParser(name, toml.find_lines(text), settings, folder)
    groups = tuple(_parse_document(reader, document, tuple(prefix)))
    if not reader.faults:
        _reject_duplicates(reader, groups)
    if not groups and not reader.faults:
        reader.add_fault(
            tuple(prefix), 'no load: add a table such as [model."llama3.2:3b"] with concurrency and limits'
        )
    if reader.faults:
        raise ConfigError("\n".join(f"{name}:{line}: {fault}" for line, fault in sorted(set(reader.faults))))
    return groups


def _parse_document(reader: _ContractParser, document: Any, path: toml.KeyPath) -> Iterator[ClauseGroup]:
    if not isinstance(document, dict):
        reader.add_fault(path, f"expected a table, not {safe_repr(document)}")
        return
    _reject_unknown(reader, document, path, TOP_LEVEL_KEYS, "at the top")
    _check_schema(reader, document, path)
    defaults = _parse_layer(reader, document.get("defaults", {}), (*path, "defaults"), ())
    models = document.get("model", {})
    if not isinstance(models, dict):
        reader.add_fault((*path, "model"), f'expected tables such as [model."llama3.2:3b"], not {safe_repr(models)}')
        return
    for model, table in models.items():
        yield from _parse_model(reader, model, table, (*path, "model", model), defaults)
    if "load" in document:
        yield from _parse_loads(reader, DEFAULT_MODEL, document["load"], (*path, "load"), (defaults,))


def _check_schema(reader: _ContractParser, document: Mapping[str, Any], path: toml.KeyPath) -> None:
    schema = document.get("schema")
    if schema is None:
        reader.add_fault(path, f"no schema: write schema = {SCHEMA_VERSION} at the top")
    elif isinstance(schema, int) and not isinstance(schema, bool) and schema > SCHEMA_VERSION:
        reader.add_fault(
            (*path, "schema"),
            f"schema = {schema} is newer than this version knows ({SCHEMA_VERSION}); upgrade the plugin",
        )
    elif schema != SCHEMA_VERSION or isinstance(schema, bool):
        reader.add_fault((*path, "schema"), f"schema = {safe_repr(schema)}: expected {SCHEMA_VERSION}")


def _parse_model(
    reader: _ContractParser, model: str, table: Any, path: toml.KeyPath, defaults: _Layer
) -> Iterator[ClauseGroup]:
    if not model.strip():
        reader.add_fault(path, "a model without a name; '*' means the usual one")
        return
    own = _parse_layer(reader, table, path, ("load", *EXPERIMENT_KINDS))
    tables = table if isinstance(table, dict) else {}
    if "load" in tables:
        yield from _parse_loads(reader, model, tables["load"], (*path, "load"), (own, defaults))
    elif own.clauses or not any(kind in tables for kind in EXPERIMENT_KINDS):
        yield from _build_load_groups(reader, model, (own, defaults))
    for name, kind in EXPERIMENT_KINDS.items():
        if name in tables:
            yield from _build_experiment_group(reader, model, kind, tables[name], (*path, name), (own, defaults))


def _parse_loads(
    reader: _ContractParser, model: str, given: Any, path: toml.KeyPath, layers: tuple[_Layer, ...]
) -> Iterator[ClauseGroup]:
    tables = given if isinstance(given, list) else [given]
    if not tables:
        reader.add_fault(path, "load is empty: expected tables such as [[load]]")
    for index, table in enumerate(tables):
        where = (*path, index) if isinstance(given, list) else path
        yield from _build_load_groups(reader, model, (_parse_layer(reader, table, where, ("name",)), *layers))


def _parse_layer(reader: _ContractParser, table: Any, path: toml.KeyPath, extra: tuple[str, ...]) -> _Layer:
    """Read one table: load arguments, clauses and preconditions; faults are noted and left out."""
    layer = _Layer(path)
    if not isinstance(table, dict):
        reader.add_fault(path, f"expected a table, not {safe_repr(table)}")
        return layer
    _reject_unknown(reader, table, path, (*_LOAD_KEYS, *METRICS, *extra), "of a load")
    for key, value in table.items():
        if key in FILE_OPTIONS:
            value = _resolve_paths(reader.folder, value)
        if key in CONTRACT_LOAD_OPTIONS and reader.attempt((*path, key), _check_option, key, value) is not None:
            layer.options[key] = value
        elif key in METRICS:
            layer.clauses[key] = tuple(_parse_clauses(reader, key, "", value, (*path, key)))
    layer.preconditions.update(_parse_preconditions(reader, table.get("require", {}), (*path, "require")))
    if "name" in extra and "name" in table:
        return _apply_name(reader, layer, table["name"])
    return layer


def _resolve_paths(folder: Path, value: Any) -> Any:
    """Return paths that begin where the contract is; other values are checked by the option's own parser."""
    if isinstance(value, list):
        return [_resolve_paths(folder, each) for each in value]
    return str(folder / value) if isinstance(value, str) and value else value


def _apply_name(reader: _ContractParser, layer: _Layer, name: object) -> _Layer:
    if not isinstance(name, str) or not re.fullmatch(r"[^\[\]\n]*[^\[\]\s][^\[\]\n]*", name) or "::" in name:
        reader.add_fault((*layer.path, "name"), f"name = {safe_repr(name)}: expected a text without brackets and '::'")
        return layer
    return _Layer(layer.path, layer.options, layer.clauses, layer.preconditions, name.strip())


def _check_option(option: str, value: Any) -> bool:
    """Read each value of an option by itself; ``ConfigError`` where one is wrong."""
    several = value if option in LIST_OPTIONS and isinstance(value, list) else [value]
    if not several:
        raise ConfigError(f"{option} = []: expected at least one value")
    if len(several) > len(set(map(repr, several))):
        raise ConfigError(f"{option} = {safe_repr(value)}: duplicate value")
    for each in several:
        LOAD_OPTIONS[option].parse(each)
    return True


def _parse_clauses(reader: _ContractParser, metric: str, stat: str, value: Any, path: toml.KeyPath) -> Iterator[Clause]:
    """Read the value of a metric: a clause, a list of clauses, or a table of statistics with theirs."""
    if isinstance(value, dict) and value and not stat:
        for inner, texts in value.items():
            yield from _parse_clauses(reader, metric, inner, texts, (*path, inner))
        return
    line = toml.find_line(reader.lines, path)
    texts = value if isinstance(value, list) and value else [value]
    found = (reader.attempt(path, parse_clause, metric, stat, text, line) for text in texts)
    yield from (clause for clause in found if clause is not None)


def _parse_preconditions(reader: _ContractParser, table: Any, path: toml.KeyPath) -> dict[str, Precondition]:
    if not isinstance(table, dict):
        reader.add_fault(path, f"expected a table such as {{gpu_offload = '100%'}}, not {safe_repr(table)}")
        return {}
    _reject_unknown(reader, table, path, tuple(PRECONDITIONS), "of require")
    found = {
        key: reader.attempt((*path, key), parse_precondition, key, value)
        for key, value in table.items()
        if key in PRECONDITIONS
    }
    return {key: requirement for key, requirement in found.items() if requirement is not None}


def _reject_unknown(
    reader: _ContractParser, table: Mapping[str, Any], path: toml.KeyPath, valid: tuple[str, ...], where: str
) -> None:
    for key in table:
        if key not in valid:
            near = (suggest_clause(key) if "tps" in valid else "") or _suggest_key(reader, key, valid)
            listed = ", ".join(dict.fromkeys(valid))
            reader.add_fault((*path, key), f"unknown key {key!r} {where}{near or f'; valid: {listed}'}")


def _suggest_key(reader: _ContractParser, key: str, valid: tuple[str, ...]) -> str:
    """Suggest a key for the first faults of a file only, as each suggestion takes a millisecond."""
    return suggest_match(key, valid) if len(reader.faults) < _MAX_SUGGESTIONS and len(key) < _MAX_SUGGESTIONS else ""


def _build_load_groups(reader: _ContractParser, model: str, layers: tuple[_Layer, ...]) -> Iterator[ClauseGroup]:
    """Yield a group for every load that the nearest of ``layers`` defines: one at each concurrency or rate."""
    options = merge_options([layer.options for layer in layers])
    clauses = [clause for written in _merge_layers(layers, "clauses").values() for clause in written]
    require = tuple(_merge_layers(layers, "preconditions").values())
    path, name = layers[0].path, layers[0].name
    for several in _expand_lists(options):
        spec = reader.attempt(path, _build_load_spec, model, several, reader.settings.model)
        if spec is not None:
            group = _build_group(reader, model, name, spec, clauses, path)
            yield msgspec.structs.replace(group, preconditions=require)


def _merge_layers(layers: Iterable[_Layer], field_name: str) -> dict[str, Any]:
    """Merge the tables of ``layers``, the nearest first, key by key; those of the furthest come first in order."""
    merged: dict[str, Any] = {}
    for layer in reversed(list(layers)):
        merged |= getattr(layer, field_name)
    return merged


def _build_experiment_group(
    reader: _ContractParser,
    model: str,
    kind: ExperimentKind,
    table: Any,
    path: toml.KeyPath,
    layers: tuple[_Layer, ...],
) -> Iterator[ClauseGroup]:
    """Yield the group of an experiment: options of the tables around it count, but for their pace and their clauses."""
    if not isinstance(table, dict):
        reader.add_fault(path, f"expected a table, not {safe_repr(table)}")
        return
    metrics = METRICS if kind.takes_load_limits else {}
    valid = list_table_options(kind)
    _reject_unknown(reader, table, path, (*valid, *kind.own_metrics, *metrics, "require"), f"of {path[-1]}")
    options, clauses = _parse_experiment_table(reader, kind, table, path, valid)
    options = _inherit_options(layers, valid) | options
    if kind.takes_load_limits and not _has_error_limit(clauses):
        clauses.append(_build_error_clause())
    if not clauses:
        key, gate = next(iter(kind.own_metrics.items()))
        reader.add_fault(path, f"no clause: add {key} = '{gate.example}'")
        return
    require = _merge_layers(layers, "preconditions") | _parse_preconditions(
        reader, table.get("require", {}), (*path, "require")
    )
    named = {} if model == DEFAULT_MODEL else {"model": model}
    experiment = reader.attempt(path, build_experiment, kind, {**options, **named}, clauses, reader.settings)
    if experiment is not None:
        line = toml.find_line(reader.lines, path)
        group = ClauseGroup(model=model, name=kind.name, line=line, experiment=experiment, clauses=tuple(clauses))
        yield msgspec.structs.replace(group, preconditions=tuple(require.values()))


def _parse_experiment_table(
    reader: _ContractParser, kind: ExperimentKind, table: Mapping[str, Any], path: toml.KeyPath, valid: tuple[str, ...]
) -> tuple[dict[str, Any], list[Clause]]:
    """Read an experiment's own table: options of its marker, those for its numbers included, and clauses."""
    options: dict[str, Any] = {}
    clauses: list[Clause] = []
    for key, value in table.items():
        where = (*path, key)
        line = toml.find_line(reader.lines, where)
        if key in kind.own_metrics:
            clause, given = reader.attempt(where, parse_metric_clause, kind, key, value, line) or (None, {})
            clauses += [clause] if clause else []
            options |= given
        elif kind.takes_load_limits and key in METRICS:
            clauses += reader.attempt(where, parse_limit_clauses, key, value, line) or ()
        elif key in valid:
            options[key] = value
    return options, clauses


def _inherit_options(layers: Iterable[_Layer], valid: tuple[str, ...]) -> dict[str, Any]:
    options = merge_options([layer.options for layer in layers])
    return {option: value for option, value in options.items() if option in valid and option not in LOAD_SHAPE_OPTIONS}


def _has_error_limit(clauses: Iterable[Clause]) -> bool:
    return any(clause.limit and clause.limit.metric == "error_rate" for clause in clauses)


def _build_error_clause() -> Clause:
    metric, _, text = DEFAULT_ERROR_CLAUSE.partition(" ")
    return parse_clause(metric, "", text)


def _expand_lists(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    axis = next((option for option in LIST_OPTIONS if isinstance(options.get(option), list)), None)
    values = options[axis] if axis else [None]
    yield from ({**options, axis: value} if axis else dict(options) for value in values)


def _build_load_spec(model: str, options: Mapping[str, Any], default_model: str | None) -> LoadSpec:
    named = {} if model == DEFAULT_MODEL else {"model": model}
    return build_load_spec({**options, **named}, default_model=default_model)


def _build_group(
    reader: _ContractParser, model: str, name: str, spec: LoadSpec, clauses: Sequence[Clause], path: toml.KeyPath
) -> ClauseGroup:
    """Return the load with its clauses; the promise that nothing fails is added where errors are not mentioned."""
    if not _has_error_limit(clauses):
        clauses = [*clauses, _build_error_clause()]
    margins = dict(clause.margin for clause in clauses if clause.margin)
    limits = tuple(clause.limit for clause in clauses if clause.limit)
    reader.attempt(path, reject_unmeasurable, spec.workload, limits, margins)
    _check_clauses(reader, spec, clauses)
    spec = msgspec.structs.replace(spec, limits=limits, margins=margins, gating=tuple(margins))
    place = build_load_id(spec.workload)
    return ClauseGroup(
        model=model,
        name=f"{name},{place}" if name and name != place else place,
        line=toml.find_line(reader.lines, path),
        experiment=LoadTest(spec),
        clauses=tuple(clauses),
    )


def _check_clauses(reader: _ContractParser, spec: LoadSpec, clauses: Sequence[Clause]) -> None:
    seen: set[str] = set()
    for clause in clauses:
        if clause.name in seen:
            reader.faults.append((clause.line, f"duplicate clause '{clause.name}'"))
        seen.add(clause.name)
        requests = spec.workload.requests
        if clause.margin and requests and (refusal := POLICIES[clause.margin[0]].explain_refusal(requests)):
            reader.faults.append((clause.line, f"{clause.name}: {refusal}"))


def _reject_duplicates(reader: _ContractParser, groups: Sequence[ClauseGroup]) -> None:
    seen: dict[tuple[str, str], int] = {}
    for group in groups:
        key = group.model, group.name
        if key in seen:
            where = f"'{group.name}' of {group.model} is already defined on line {seen[key]}"
            reader.faults.append((group.line, f"{where}; give one of them a name"))
        seen.setdefault(key, group.line)
