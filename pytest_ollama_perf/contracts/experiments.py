"""Experiments in a contract: tables of a model whose numbers are found by several loads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pytest_ollama_perf.analysis import FindingMetric
from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.contracts.clauses import Clause, parse_clause
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.text import safe_repr
from pytest_ollama_perf.experiments import Experiment, load_reader
from pytest_ollama_perf.metrics import METRICS

LOAD_SHAPE_OPTIONS = (
    "concurrency",
    "rate",
    "arrival",
    "requests",
    "duration",
    "drain",
    "warmup",
    "think_time",
    "cold",
    "stages",
)
"""Load arguments that experiments do not inherit from the tables around them."""


@dataclass(frozen=True)
class ExperimentMetric:
    """A number that an experiment finds: the marker argument that limits it and its id in the finding."""

    option: str
    op: str
    finding_metric: FindingMetric
    is_time: bool = False

    @property
    def example(self) -> str:
        """An example of a requirement, such as ``<= 5s``."""
        return f"{self.op} {'5s' if self.is_time else 4}"


@dataclass(frozen=True)
class ExperimentKind:
    """One experiment: its marker, its name in a node id, its numbers; ``metrics`` also takes limits of a load."""

    marker: str
    name: str
    own_metrics: Mapping[str, ExperimentMetric]
    takes_load_limits: bool = True


def _build_cold_metric(name: str) -> ExperimentMetric:
    return ExperimentMetric(f"max_{name}", "<=", FindingMetric(name), is_time=name != "ratio")


_COLD_METRICS = ("load_time", "cold_ttft", "cold_latency", "warm_ttft", "warm_latency", "ratio")

EXPERIMENT_KINDS: Mapping[str, ExperimentKind] = MappingProxyType(
    {
        "sweep": ExperimentKind(
            "ollama_sweep",
            "sweep",
            {
                "knee": ExperimentMetric("min_knee", ">=", FindingMetric.KNEE),
                "speedup": ExperimentMetric("min_speedup", ">=", FindingMetric.SPEEDUP),
            },
        ),
        "cold_start": ExperimentKind(
            "ollama_cold_start", "cold start", {name: _build_cold_metric(name) for name in _COLD_METRICS}
        ),
        "max_concurrency": ExperimentKind(
            "ollama_max_concurrency",
            "max concurrency",
            {"concurrency": ExperimentMetric("min_concurrency", ">=", FindingMetric.MAX_CONCURRENCY)},
            takes_load_limits=False,
        ),
    }
)
"""Every table of a model that is an experiment."""

_METRIC_LIMIT = re.compile(r"\s*(?P<op><=|>=)\s*(?P<value>\d*\.?\d+)\s*(?P<unit>[a-zµ]*)\s*")


def list_table_options(kind: ExperimentKind) -> tuple[str, ...]:
    """Return the options that the table takes: the marker's, but its model and what a contract writes as clauses."""
    _, known = load_reader(kind.marker)
    clauses = {gate.option for gate in kind.own_metrics.values()} | {"model", "limits", "max_regression"}
    limits = () if not kind.takes_load_limits else tuple(f"{side}_" for side in ("min", "max"))
    return tuple(option for option in known if option not in clauses and not (limits and _is_limit(option, limits)))


def _is_limit(option: str, sides: tuple[str, ...]) -> bool:
    return option.startswith(sides) and option.endswith(tuple(METRICS))


def parse_metric_clause(kind: ExperimentKind, key: str, text: object, line: int) -> tuple[Clause, dict[str, Any]]:
    """Read ``">= 4"`` behind ``knee``: the clause, and the marker's option that asks for it."""
    gate = kind.own_metrics[key]
    match = _METRIC_LIMIT.fullmatch(text) if isinstance(text, str) else None
    if match is None or match["op"] != gate.op or bool(match["unit"]) != gate.is_time:
        raise ConfigError(f"{key} = {safe_repr(text)}: expected a text such as '{gate.example}'")
    number = float(match["value"])
    value = match["value"] + match["unit"] if gate.is_time else int(number) if number.is_integer() else number
    return Clause(f"{key} {' '.join(str(text).split())}", line, finding_metric=gate.finding_metric), {
        gate.option: value
    }


def parse_limit_clauses(metric: str, texts: object, line: int) -> list[Clause]:
    """Read the load limits that an experiment also accepts; regressions are judged by the clauses of a load."""
    clauses = [parse_clause(metric, "", text, line) for text in (texts if isinstance(texts, list) else [texts])]
    for clause in clauses:
        if clause.margin is not None:
            raise ConfigError(f"{clause.name}: only a load is judged by history; write the clause into its table")
    return clauses


def build_experiment(
    kind: ExperimentKind, options: Mapping[str, Any], clauses: Iterable[Clause], settings: Settings
) -> Experiment:
    """Return the experiment that ``words`` describe, with every limit of ``clauses``."""
    read, _ = load_reader(kind.marker)
    limits: dict[str, list[str]] = {}
    for clause in clauses:
        if clause.limit is not None:
            limits.setdefault(clause.limit.metric, []).append(clause.limit.text)
    return read({**options, **({"limits": limits} if limits else {})}, settings)
