"""Marker arguments, or those of ``ollama.load(...)``, parsed into a workload with its limits and margins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from pytest_ollama_perf.analysis.limits import (
    Limit,
    collect_latency_limits,
    list_limit_options,
    parse_limit,
    parse_limit_option,
)
from pytest_ollama_perf.analysis.run_value import GATING_METRICS
from pytest_ollama_perf.config import parse_percent, read_margin
from pytest_ollama_perf.config.load_options import (
    DEFAULT_REQUESTS,
    JUDGING_OPTIONS,
    LOAD_OPTIONS,
    PROMPT_OPTIONS,
    REQUESTS_PER_CLIENT,
    list_conflicts,
)
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.text import safe_repr, sanitize, suggest_match
from pytest_ollama_perf.core.workload import ANY_MODEL, Endpoint, Workload
from pytest_ollama_perf.loadgen.plan import validate_workload
from pytest_ollama_perf.metrics import METRICS, format_label
from pytest_ollama_perf.metrics.summary import explain_unmeasurable

_USUAL_LIMITS = ("min_tps", "min_throughput", "min_qps", "max_error_rate")


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One load: the workload, its absolute limits, and the margins that override those of the settings.

    ``margins`` maps metrics such as ``ttft.p95`` to shares. ``gating`` names the metrics whose regression fails the
    test; ``None`` means the default metrics and those with a margin. ``baseline`` is the text that accepts the current
    performance.
    """

    workload: Workload
    limits: tuple[Limit, ...]
    margins: dict[str, float] = {}
    gating: tuple[str, ...] | None = None
    baseline: str = ""


def build_load_spec(options: Mapping[str, Any], *, default_model: str | None = None) -> LoadSpec:
    """Return the load that ``options`` describe.

    Without a model the workload names ``ANY_MODEL``, which is replaced by the server's only model before the load.

    Raises:
        ConfigError: an argument or its value is wrong, or arguments contradict each other.
    """
    _reject_unknown(options, list_option_names())
    _reject_conflicting(options, PROMPT_OPTIONS)
    for name in ("concurrency", "rate", "requests", "duration") if "stages" in options else ():
        _reject_conflicting(options, ("stages", name))
    fields = _read_fields(options)
    _reject_ineffective(options)
    fields.setdefault("model", default_model or ANY_MODEL)
    workload = Workload(**_fill_defaults(fields))
    validate_workload(msgspec.structs.replace(workload, model=workload.model or "not known yet"))
    limits = parse_limits(
        {name: value for name, value in options.items() if name not in (*LOAD_OPTIONS, "max_regression")}
    )
    margins = _parse_margins(options.get("max_regression", {}), workload)
    reject_unmeasurable(workload, limits, margins)
    baseline = LOAD_OPTIONS["baseline"].parse(options["baseline"]) if "baseline" in options else ""
    return LoadSpec(workload=workload, limits=_add_error_limit(limits), margins=margins, baseline=baseline)


def _read_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in options.items():
        if name in LOAD_OPTIONS and LOAD_OPTIONS[name].in_workload:
            read = LOAD_OPTIONS[name].read_fields(value)
            # an explicit argument overrides what a dataset implies
            fields = {**read, **fields} if name == "dataset" else {**fields, **read}
    return fields


def _reject_conflicting(options: Mapping[str, Any], rivals: tuple[str, ...]) -> None:
    given = [name for name in rivals if name in options]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} contradict each other: give one of them")


def merge_options(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the arguments of several markers, the innermost first.

    Inner markers override outer ones per argument, and also replace arguments that conflict: ``rate`` on a test
    replaces ``concurrency`` on its class. Conflicting arguments of one marker are kept and reported later.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        added = {
            name: value
            for name, value in layer.items()
            if name not in merged and list_conflicts(name).isdisjoint(merged)
            # the arrival of a replaced rate is replaced with it
            if not (name == "arrival" and "rate" in layer and "concurrency" in merged)
        }
        merged.update(added)
    return merged


def _reject_ineffective(options: Mapping[str, Any]) -> None:
    """Refuse arguments that have no effect in combination with the others."""
    if "arrival" in options and not {"rate", "stages"} & set(options):
        raise ConfigError(
            f"arrival={safe_repr(options['arrival'])} has no effect without rate: give one, or leave it out"
        )


def reject_unmeasurable(workload: Workload, limits: Iterable[Limit], margins: Iterable[str] = ()) -> None:
    """Refuse limits and margins on metrics that no load of ``workload`` can have.

    Raises:
        ConfigError: there is one; the message names it and explains why.
    """
    limits = tuple(limits)
    for metric, written in (
        *((limit.metric, format_label(limit.metric, limit.stat)) for limit in limits),
        *((name.partition(".")[0], f"max_regression: {name}") for name in margins),
    ):
        if reason := explain_unmeasurable(metric, workload):
            raise ConfigError(f"{written}: {reason}, so this load does not have it; leave it out")
    if any(limit.metric == "goodput" for limit in limits) and not collect_latency_limits(limits):
        raise ConfigError(
            "goodput counts the requests that meet every limit on a time: add one, such as max_p95_latency"
        )


def list_option_names() -> tuple[str, ...]:
    """Return every argument of ``ollama_load``, including limits."""
    return (*LOAD_OPTIONS, *JUDGING_OPTIONS, *list_limit_options())


def _reject_unknown(options: Mapping[str, Any], valid: tuple[str, ...]) -> None:
    for name, value in options.items():
        if name not in valid:
            if name.startswith(("min_", "max_")) and name.endswith(tuple(METRICS)):
                parse_limit_option(name, value)  # explains what is wrong with the direction or the statistic
            listed = ", ".join(each for each in (*LOAD_OPTIONS, *JUDGING_OPTIONS, *_USUAL_LIMITS) if each in valid)
            more = "and max_<stat>_<metric> such as max_p95_latency"
            given = sanitize(name)
            raise ConfigError(f"unknown argument '{given}'{suggest_match(name, valid)} (valid: {listed}, {more})")


def _fill_defaults(fields: dict[str, Any]) -> dict[str, Any]:
    """Fill defaults that depend on other arguments."""
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
    # a warm-up request would load the model before the measured cold start
    fields.setdefault("warmup", 0 if fields.get("cold") else clients)
    endpoint = fields.setdefault("endpoint", Endpoint.CHAT if fields.get("turns", 1) > 1 else Endpoint.GENERATE)
    # the user's prompts pass the model's template, as their application's prompts do
    fields.setdefault("raw", endpoint is Endpoint.GENERATE and not fields.get("prompts"))
    if endpoint is Endpoint.EMBED:
        fields.setdefault("stream", False)
    return fields


def parse_limits(options: Mapping[str, Any]) -> tuple[Limit, ...]:
    """Return the limits of limit arguments, as ``LoadResult.check`` takes them; no limit is added."""
    known = list_limit_options()
    _reject_unknown(options, ("limits", *known))
    limits = [parse_limit_option(name, value) for name, value in options.items() if name in known]
    given = options.get("limits", {})
    if not isinstance(given, Mapping):
        raise ConfigError(f"limits={safe_repr(given)}: expected a mapping such as {{'ttft.p95': '<= 300ms'}}")
    for key, texts in given.items():
        clauses = texts if isinstance(texts, (list, tuple)) else [texts]
        limits += [parse_limit(key if isinstance(key, str) else safe_repr(key), clause) for clause in clauses]
    return tuple(limits)


def _add_error_limit(limits: tuple[Limit, ...]) -> tuple[Limit, ...]:
    """Add the default limit: no request may fail."""
    named = any(limit.metric == "error_rate" for limit in limits)
    return limits if named else (*limits, parse_limit_option("max_error_rate", 0))


def _parse_margins(given: object, workload: Workload) -> dict[str, float]:
    """Parse ``max_regression="10%"`` (tps and ttft, if the load has them) or ``{"tps": "5%", "ttft.p95": "25%"}``."""
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
