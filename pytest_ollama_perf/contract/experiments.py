"""Experiments in a contract: tables of a model whose numbers are found by several loads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pytest_ollama_perf.contract.clause import Clause, read_clause
from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.experiment import Experiment, reader
from pytest_ollama_perf.metric import METRICS
from pytest_ollama_perf.settings import Settings
from pytest_ollama_perf.words import shown

PACE = ("concurrency", "rate", "arrival", "requests", "duration", "drain", "warmup", "think_time", "cold", "stages")
"""Words of a load that its experiments do not take over from the tables around them."""


@dataclass(frozen=True)
class Gate:
    """A number that an experiment finds: the marker's ``word`` limits it, its finding calls it ``held``."""

    word: str
    op: str
    held: str
    is_time: bool = False

    @property
    def example(self) -> str:
        return f"{self.op} {'5s' if self.is_time else 4}"


@dataclass(frozen=True)
class Kind:
    """One experiment: its marker, its name in a node id, its numbers; ``metrics`` also takes limits of a load."""

    marker: str
    name: str
    gates: Mapping[str, Gate]
    metrics: bool = True


def _cold(name: str) -> Gate:
    return Gate(f"max_{name}", "<=", name.replace("_", " ").replace("ttft", "TTFT"), is_time=name != "ratio")


_COLD = ("load_time", "cold_ttft", "cold_latency", "warm_ttft", "warm_latency", "ratio")

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "sweep": Kind(
            "ollama_sweep",
            "sweep",
            {"knee": Gate("min_knee", ">=", "knee"), "speedup": Gate("min_speedup", ">=", "speedup")},
        ),
        "cold_start": Kind("ollama_cold_start", "cold start", {name: _cold(name) for name in _COLD}),
        "max_concurrency": Kind(
            "ollama_max_concurrency",
            "max concurrency",
            {"concurrency": Gate("min_concurrency", ">=", "bearable concurrency")},
            metrics=False,
        ),
    }
)
"""Every table of a model that is an experiment."""

_GATE = re.compile(r"\s*(?P<op><=|>=)\s*(?P<value>\d*\.?\d+)\s*(?P<unit>[a-zµ]*)\s*")


def words_of(kind: Kind) -> tuple[str, ...]:
    """Return the words that the table takes: the marker's, but its model and what a contract writes as clauses."""
    _, known = reader(kind.marker)
    clauses = {gate.word for gate in kind.gates.values()} | {"model", "limits", "max_regression"}
    limits = () if not kind.metrics else tuple(f"{side}_" for side in ("min", "max"))
    return tuple(word for word in known if word not in clauses and not (limits and _is_limit(word, limits)))


def _is_limit(word: str, sides: tuple[str, ...]) -> bool:
    return word.startswith(sides) and word.endswith(tuple(METRICS))


def read_gate(kind: Kind, key: str, text: object, line: int) -> tuple[Clause, dict[str, Any]]:
    """Read ``">= 4"`` behind ``knee``: the clause, and the marker's word that asks for it."""
    gate = kind.gates[key]
    match = _GATE.fullmatch(text) if isinstance(text, str) else None
    if match is None or match["op"] != gate.op or bool(match["unit"]) != gate.is_time:
        raise ConfigError(f"{key} = {shown(text)}: expected a text such as '{gate.example}'")
    number = float(match["value"])
    value = match["value"] + match["unit"] if gate.is_time else int(number) if number.is_integer() else number
    return Clause(f"{key} {' '.join(str(text).split())}", line, held=gate.held), {gate.word: value}


def read_limits(metric: str, texts: object, line: int) -> list[Clause]:
    """Read the limits of a load that an experiment takes, too; history is judged by a load's own clauses."""
    clauses = [read_clause(metric, "", text, line) for text in (texts if isinstance(texts, list) else [texts])]
    for clause in clauses:
        if clause.margin is not None:
            raise ConfigError(f"{clause.name}: only a load is judged by history; write the clause into its table")
    return clauses


def experiment_of(kind: Kind, words: Mapping[str, Any], clauses: Iterable[Clause], settings: Settings) -> Experiment:
    """Return the experiment that ``words`` describe, with every limit of ``clauses``."""
    read, _ = reader(kind.marker)
    limits: dict[str, list[str]] = {}
    for clause in clauses:
        if clause.limit is not None:
            limits.setdefault(clause.limit.metric, []).append(clause.limit.text)
    return read({**words, **({"limits": limits} if limits else {})}, settings)
