"""A contract file read into groups: one measurement each, and the clauses that share it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pytest_ollama_perf.contract import toml
from pytest_ollama_perf.contract.clause import NO_ERRORS, Clause, marker_word_hint, read_clause
from pytest_ollama_perf.contract.experiments import KINDS, PACE, Kind, experiment_of, read_gate, read_limits, words_of
from pytest_ollama_perf.contract.group import Group
from pytest_ollama_perf.contract.require import REQUIREMENTS, Requirement, read_requirement
from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.experiment.load import LoadTest
from pytest_ollama_perf.marks import WORDS, LoadSpec, load_spec, nearest, refuse_unmeasurable
from pytest_ollama_perf.metric import METRICS
from pytest_ollama_perf.report.facts import pace
from pytest_ollama_perf.settings import Settings
from pytest_ollama_perf.verdict.run_value import POLICIES
from pytest_ollama_perf.words import did_you_mean, shown

SCHEMA = 1
USUAL = "*"
"""Stands for the model of --ollama-model, or the only one that the server has."""

TOP = ("schema", "defaults", "model", "load")
LOAD_WORDS = tuple(word for word in WORDS if word != "model")
FILES = ("dataset", "images")
"""Words that name files."""

SEVERAL = ("concurrency", "rate")
"""Words that may hold a list: the same clauses at each."""

_LOAD_KEYS = (*LOAD_WORDS, *METRICS, "require")


@dataclass(frozen=True)
class _Layer:
    """One table of the file, read: what loads below it take over unless they say otherwise."""

    path: toml.Path
    words: dict[str, Any] = field(default_factory=dict)
    clauses: dict[str, tuple[Clause, ...]] = field(default_factory=dict)
    require: dict[str, Requirement] = field(default_factory=dict)
    name: str = ""


@dataclass
class _Reader:
    """Reads one file and notes everything that is wrong with it."""

    name: str
    lines: Mapping[toml.Path, int]
    settings: Settings
    folder: Path
    faults: list[tuple[int, str]] = field(default_factory=list)

    def fault(self, path: toml.Path, text: str) -> None:
        self.faults.append((toml.line_of(self.lines, path), text))

    def attempt(self, path: toml.Path, read: Callable[..., Any], *arguments: Any) -> Any:
        """Return what ``read`` makes of the value at ``path``; ``None``, and a fault noted, where it refuses."""
        try:
            return read(*arguments)
        except ConfigError as error:
            self.fault(path, str(error))
            return None


def read(text: str, name: str, *, settings: Settings, folder: Path, prefix: Sequence[str] = ()) -> tuple[Group, ...]:
    """Return the groups of the contract ``text``.

    ``name`` is what errors call the file, ``folder`` where paths in it begin, ``prefix`` the table that holds the
    contract if the whole file is none.

    Raises:
        ConfigError: one line for everything that is wrong, each beginning with ``name`` and the line number.
    """
    document: Any = toml.parse(text, name)
    for key in prefix:
        document = document[key]
    reader = _Reader(name, toml.lines(text), settings, folder)
    groups = tuple(_groups(reader, document, tuple(prefix)))
    if not reader.faults:
        _refuse_twins(reader, groups)
    if not groups and not reader.faults:
        reader.fault(tuple(prefix), 'no load: add a table such as [model."llama3.2:3b"] with concurrency and limits')
    if reader.faults:
        raise ConfigError("\n".join(f"{name}:{line}: {fault}" for line, fault in sorted(set(reader.faults))))
    return groups


def _groups(reader: _Reader, document: Any, path: toml.Path) -> Iterator[Group]:
    if not isinstance(document, dict):
        reader.fault(path, f"expected a table, not {shown(document)}")
        return
    _refuse_unknown(reader, document, path, TOP, "at the top")
    _check_schema(reader, document, path)
    defaults = _layer(reader, document.get("defaults", {}), (*path, "defaults"), ())
    models = document.get("model", {})
    if not isinstance(models, dict):
        reader.fault((*path, "model"), f'expected tables such as [model."llama3.2:3b"], not {shown(models)}')
        return
    for model, table in models.items():
        yield from _model(reader, model, table, (*path, "model", model), defaults)
    if "load" in document:
        yield from _loads(reader, USUAL, document["load"], (*path, "load"), (defaults,))


def _check_schema(reader: _Reader, document: Mapping[str, Any], path: toml.Path) -> None:
    schema = document.get("schema")
    if schema is None:
        reader.fault(path, f"no schema: write schema = {SCHEMA} at the top")
    elif isinstance(schema, int) and not isinstance(schema, bool) and schema > SCHEMA:
        reader.fault(
            (*path, "schema"), f"schema = {schema} is newer than this version knows ({SCHEMA}); upgrade the plugin"
        )
    elif schema != SCHEMA or isinstance(schema, bool):
        reader.fault((*path, "schema"), f"schema = {shown(schema)}: expected {SCHEMA}")


def _model(reader: _Reader, model: str, table: Any, path: toml.Path, defaults: _Layer) -> Iterator[Group]:
    if not model.strip():
        reader.fault(path, "a model without a name; '*' stands for the usual one")
        return
    own = _layer(reader, table, path, ("load", *KINDS))
    tables = table if isinstance(table, dict) else {}
    if "load" in tables:
        yield from _loads(reader, model, tables["load"], (*path, "load"), (own, defaults))
    elif own.clauses or not any(kind in tables for kind in KINDS):
        yield from _load(reader, model, (own, defaults))
    for name, kind in KINDS.items():
        if name in tables:
            yield from _experiment(reader, model, kind, tables[name], (*path, name), (own, defaults))


def _loads(reader: _Reader, model: str, given: Any, path: toml.Path, layers: tuple[_Layer, ...]) -> Iterator[Group]:
    tables = given if isinstance(given, list) else [given]
    if not tables:
        reader.fault(path, "load is empty: expected tables such as [[load]]")
    for index, table in enumerate(tables):
        where = (*path, index) if isinstance(given, list) else path
        yield from _load(reader, model, (_layer(reader, table, where, ("name",)), *layers))


def _layer(reader: _Reader, table: Any, path: toml.Path, extra: tuple[str, ...]) -> _Layer:
    """Read one table: words of the load, clauses and preconditions; what is wrong is noted and left out."""
    layer = _Layer(path)
    if not isinstance(table, dict):
        reader.fault(path, f"expected a table, not {shown(table)}")
        return layer
    _refuse_unknown(reader, table, path, (*_LOAD_KEYS, *extra), "of a load")
    for key, value in table.items():
        if key in FILES:
            value = _from(reader.folder, value)
        if key in LOAD_WORDS and reader.attempt((*path, key), _check_word, key, value) is not None:
            layer.words[key] = value
        elif key in METRICS:
            layer.clauses[key] = tuple(_clauses(reader, key, "", value, (*path, key)))
    layer.require.update(_requirements(reader, table.get("require", {}), (*path, "require")))
    if "name" in extra and "name" in table:
        return _named(reader, layer, table["name"])
    return layer


def _from(folder: Path, value: Any) -> Any:
    """Return paths that begin where the contract is; anything else is left to whoever reads the word."""
    if isinstance(value, list):
        return [_from(folder, each) for each in value]
    return str(folder / value) if isinstance(value, str) and value else value


def _named(reader: _Reader, layer: _Layer, name: object) -> _Layer:
    if not isinstance(name, str) or not re.fullmatch(r"[^\[\]\n]*[^\[\]\s][^\[\]\n]*", name) or "::" in name:
        reader.fault((*layer.path, "name"), f"name = {shown(name)}: expected a text without brackets and '::'")
        return layer
    return _Layer(layer.path, layer.words, layer.clauses, layer.require, name.strip())


def _check_word(word: str, value: Any) -> bool:
    """Read each value of a word by itself; ``ConfigError`` where one is wrong."""
    several = value if word in SEVERAL and isinstance(value, list) else [value]
    if not several:
        raise ConfigError(f"{word} = []: expected at least one value")
    if len(several) > len(set(map(repr, several))):
        raise ConfigError(f"{word} = {shown(value)}: a value stands twice")
    for each in several:
        WORDS[word](word, each)
    return True


def _clauses(reader: _Reader, metric: str, stat: str, value: Any, path: toml.Path) -> Iterator[Clause]:
    """Read what stands behind a metric: a clause, a list of clauses, or a table of statistics with theirs."""
    if isinstance(value, dict) and value and not stat:
        for inner, texts in value.items():
            yield from _clauses(reader, metric, inner, texts, (*path, inner))
        return
    line = toml.line_of(reader.lines, path)
    texts = value if isinstance(value, list) and value else [value]
    found = (reader.attempt(path, read_clause, metric, stat, text, line) for text in texts)
    yield from (clause for clause in found if clause is not None)


def _requirements(reader: _Reader, table: Any, path: toml.Path) -> dict[str, Requirement]:
    if not isinstance(table, dict):
        reader.fault(path, f"expected a table such as {{gpu_offload = '100%'}}, not {shown(table)}")
        return {}
    _refuse_unknown(reader, table, path, tuple(REQUIREMENTS), "of require")
    found = {
        key: reader.attempt((*path, key), read_requirement, key, value)
        for key, value in table.items()
        if key in REQUIREMENTS
    }
    return {key: requirement for key, requirement in found.items() if requirement is not None}


def _refuse_unknown(
    reader: _Reader, table: Mapping[str, Any], path: toml.Path, valid: tuple[str, ...], where: str
) -> None:
    for key in table:
        if key not in valid:
            near = (marker_word_hint(key) if "tps" in valid else "") or did_you_mean(key, valid)
            listed = ", ".join(dict.fromkeys(valid))
            reader.fault((*path, key), f"unknown key {key!r} {where}{near or f'; valid: {listed}'}")


def _load(reader: _Reader, model: str, layers: tuple[_Layer, ...]) -> Iterator[Group]:
    """Yield a group for every load that the nearest of ``layers`` stands for: one at each concurrency or rate."""
    words = nearest([layer.words for layer in layers])
    clauses = [clause for written in _nearest_first(layers, "clauses").values() for clause in written]
    require = tuple(_nearest_first(layers, "require").values())
    path, name = layers[0].path, layers[0].name
    for several in _several(words):
        spec = reader.attempt(path, _spec, model, several, reader.settings.model)
        if spec is not None:
            group = _group(reader, model, name, spec, clauses, path)
            yield msgspec.structs.replace(group, require=require)


def _nearest_first(layers: Iterable[_Layer], field_name: str) -> dict[str, Any]:
    """Merge the tables of ``layers``, the nearest first, key by key; those of the furthest come first in order."""
    merged: dict[str, Any] = {}
    for layer in reversed(list(layers)):
        merged |= getattr(layer, field_name)
    return merged


def _experiment(
    reader: _Reader, model: str, kind: Kind, table: Any, path: toml.Path, layers: tuple[_Layer, ...]
) -> Iterator[Group]:
    """Yield the group of an experiment: words of the tables around it count, but for their pace and their clauses."""
    if not isinstance(table, dict):
        reader.fault(path, f"expected a table, not {shown(table)}")
        return
    metrics = METRICS if kind.metrics else {}
    valid = words_of(kind)
    _refuse_unknown(reader, table, path, (*valid, *kind.gates, *metrics, "require"), f"of {path[-1]}")
    words, clauses = _asked(reader, kind, table, path, valid)
    words = _taken_over(layers, valid) | words
    if kind.metrics and not _limits_errors(clauses):
        clauses.append(_no_errors())
    if not clauses:
        key, gate = next(iter(kind.gates.items()))
        reader.fault(path, f"no clause: add {key} = '{gate.example}'")
        return
    require = _nearest_first(layers, "require") | _requirements(reader, table.get("require", {}), (*path, "require"))
    named = {} if model == USUAL else {"model": model}
    experiment = reader.attempt(path, experiment_of, kind, {**words, **named}, clauses, reader.settings)
    if experiment is not None:
        line = toml.line_of(reader.lines, path)
        group = Group(model=model, name=kind.name, line=line, experiment=experiment, clauses=tuple(clauses))
        yield msgspec.structs.replace(group, require=tuple(require.values()))


def _asked(
    reader: _Reader, kind: Kind, table: Mapping[str, Any], path: toml.Path, valid: tuple[str, ...]
) -> tuple[dict[str, Any], list[Clause]]:
    """Read an experiment's own table: words of its marker, those for its numbers included, and clauses."""
    words: dict[str, Any] = {}
    clauses: list[Clause] = []
    for key, value in table.items():
        where = (*path, key)
        line = toml.line_of(reader.lines, where)
        if key in kind.gates:
            clause, word = reader.attempt(where, read_gate, kind, key, value, line) or (None, {})
            clauses += [clause] if clause else []
            words |= word
        elif kind.metrics and key in METRICS:
            clauses += reader.attempt(where, read_limits, key, value, line) or ()
        elif key in valid:
            words[key] = value
    return words, clauses


def _taken_over(layers: Iterable[_Layer], valid: tuple[str, ...]) -> dict[str, Any]:
    words = nearest([layer.words for layer in layers])
    return {word: value for word, value in words.items() if word in valid and word not in PACE}


def _limits_errors(clauses: Iterable[Clause]) -> bool:
    return any(clause.limit and clause.limit.metric == "error_rate" for clause in clauses)


def _no_errors() -> Clause:
    metric, _, text = NO_ERRORS.partition(" ")
    return read_clause(metric, "", text)


def _several(words: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    axis = next((word for word in SEVERAL if isinstance(words.get(word), list)), None)
    values = words[axis] if axis else [None]
    yield from ({**words, axis: value} if axis else dict(words) for value in values)


def _spec(model: str, words: Mapping[str, Any], default_model: str | None) -> LoadSpec:
    named = {} if model == USUAL else {"model": model}
    return load_spec({**words, **named}, default_model=default_model)


def _group(reader: _Reader, model: str, name: str, spec: LoadSpec, clauses: Sequence[Clause], path: toml.Path) -> Group:
    """Return the load with its clauses; the promise that nothing fails is added where errors are not mentioned."""
    if not _limits_errors(clauses):
        clauses = [*clauses, _no_errors()]
    margins = dict(clause.margin for clause in clauses if clause.margin)
    limits = tuple(clause.limit for clause in clauses if clause.limit)
    reader.attempt(path, refuse_unmeasurable, spec.workload, limits, margins)
    _check_clauses(reader, spec, clauses)
    spec = msgspec.structs.replace(spec, limits=limits, margins=margins, gating=tuple(margins))
    place = ", ".join(pace(spec.workload))
    return Group(
        model=model,
        name=f"{name}, {place}" if name and name != place else place,
        line=toml.line_of(reader.lines, path),
        experiment=LoadTest(spec),
        clauses=tuple(clauses),
    )


def _check_clauses(reader: _Reader, spec: LoadSpec, clauses: Sequence[Clause]) -> None:
    seen: set[str] = set()
    for clause in clauses:
        if clause.name in seen:
            reader.faults.append((clause.line, f"the clause '{clause.name}' stands twice"))
        seen.add(clause.name)
        requests = spec.workload.requests
        if clause.margin and requests and (refusal := POLICIES[clause.margin[0]].refusal(requests)):
            reader.faults.append((clause.line, f"{clause.name}: {refusal}"))


def _refuse_twins(reader: _Reader, groups: Sequence[Group]) -> None:
    seen: dict[tuple[str, str], int] = {}
    for group in groups:
        key = group.model, group.name
        if key in seen:
            where = f"'{group.name}' of {group.model} stands on line {seen[key]} already"
            reader.faults.append((group.line, f"{where}; give one of them a name"))
        seen.setdefault(key, group.line)
