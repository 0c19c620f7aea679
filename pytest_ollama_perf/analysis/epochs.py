"""Which stored runs may be compared with a new one, and what changed since, in words.

In ``COMPARABILITY`` a difference in a separating field starts a new epoch, a difference in any other field is only
reported. Accepting a change also starts a new epoch.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from pytest_ollama_perf.core.run import Fingerprint, Run
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.workload import Workload, collect_identity_fields, compute_identity


class RunKind(str, enum.Enum):
    """Why a run is in the store: a regressed one is quarantined until it is accepted."""

    SAVED = "saved"
    REGRESSED = "regressed"


class Acceptance(msgspec.Struct, frozen=True, kw_only=True):
    """An accepted change: a new epoch of the accepted ``runs`` and of those saved since ``at``."""

    test: str
    at: float  # Unix seconds
    why: str
    who: str = ""
    runs: tuple[str, ...] = ()


class StoredRuns(msgspec.Struct, frozen=True, kw_only=True):
    """The stored runs of a test, newest last, and its acceptances, oldest first.

    ``damaged`` names every record that could not be read, ``unreadable_acceptances`` those of them that are
    acceptances: without them it is unknown which runs form the baseline. ``total`` is the number of stored runs, which
    may be more than were read. ``identity`` is set if runs and acceptances are those of one workload. ``new_baseline``
    is a text with which the code accepts the performance of the runs that follow.
    """

    runs: tuple[Run, ...] = ()
    acceptances: tuple[Acceptance, ...] = ()
    damaged: tuple[str, ...] = ()
    unreadable_acceptances: tuple[str, ...] = ()
    total: int = 0
    identity: str = ""
    new_baseline: str = ""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One difference between two runs; ``separates`` says that their numbers may not be compared.

    ``field`` is the stable key of what differs (``model_digest``, ``workload.num_ctx``), ``name`` its label.
    """

    field: str
    name: str
    before: str
    after: str
    separates: bool

    def __str__(self) -> str:
        return f"{self.name} {self.before} -> {self.after}"


class BaselineRuns(msgspec.Struct, frozen=True, kw_only=True):
    """The stored runs that a new one may be compared with, newest last.

    ``changed`` is what differs from the newest of them; where there are none but ``apart`` is not empty, it says what
    separates the newest stored run: the verdict is incomparable, not new.
    """

    runs: tuple[Run, ...] = ()
    apart: tuple[Run, ...] = ()
    changed: tuple[Change, ...] = ()

    @property
    def is_incomparable(self) -> bool:
        """Whether stored runs exist, and none of them can be compared."""
        return not self.runs and bool(self.apart)


_METRIC_GENERATIONS = (
    ((0, 10), "up to 0.9"),
    ((0, 30), "0.10-0.29"),
    ((0, 30, 1), "0.30.0"),
    ((0, 33, 3), "0.30.1-0.33.2"),
)
_NEWEST_GENERATION = "from 0.33.3"
METRIC_GENERATION_HELP: Mapping[str, str] = {
    "up to 0.9": "old runners: `eval_duration` does not include sampling",
    "0.10-0.29": "`eval_duration` does not include sampling",
    "0.30.0": "`prompt_eval_count` does not include cached tokens",
    "0.30.1-0.33.2": "`prompt_eval_count` is the whole prompt",
    "from 0.33.3": "`prompt_eval_cached_count` is the number of cached tokens",
}
"""What the server's counters mean in each range of versions."""

_UNKNOWN = "unknown"

COUNTER_MEANING = "counter_meaning"
"""The key of a change of what the server's counters mean."""


def find_metric_generation(version: str) -> str:
    """Return the range of server versions whose counters mean the same as those of ``version``.

    ``unknown`` for a development build (0.0.0) and for what is no version. Source: Ollama's own releases; up to 0.29
    ``eval_duration`` leaves out sampling, 0.30.0 alone leaves cached tokens out of ``prompt_eval_count``, from 0.33.3
    the server says how many were cached.
    """
    match = re.match(r"v?(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", version)
    if match is None:
        return _UNKNOWN
    number = tuple(int(part or 0) for part in match.groups())
    if number == (0, 0, 0):
        return _UNKNOWN
    return next((name for end, name in _METRIC_GENERATIONS if number < end), _NEWEST_GENERATION)


class _ComparedField(msgspec.Struct, frozen=True):
    """How a field of the fingerprint is called, said and compared."""

    label: str
    separates: bool
    say: Callable[[Any], str] = lambda value: "unknown" if value in (None, "") else sanitize(str(value), 60)


def _format_share(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.3g} %"


def _format_names(names: Sequence[str]) -> str:
    return ", ".join(sanitize(name, 40) for name in names) or "unknown"


def _format_digest(digest: str) -> str:
    return sanitize(digest.removeprefix("sha256:"), 60)[:12] or "unknown"


COMPARABILITY: Mapping[str, _ComparedField] = MappingProxyType(
    {
        "server_version": _ComparedField("ollama", False),
        "model": _ComparedField("model", False),
        "model_digest": _ComparedField("model digest", True, _format_digest),
        "quantization": _ComparedField("quantization", False),
        "family": _ComparedField("model family", False),
        "parameter_size": _ComparedField("parameters", False),
        "context_length": _ComparedField("num_ctx", False),
        "vram_share": _ComparedField("gpu offload", False, _format_share),
        "capabilities": _ComparedField("capabilities", False, _format_names),
        "gpu": _ComparedField("gpu", True),
        "driver": _ComparedField("driver", True),
        "servers": _ComparedField("servers", True, lambda servers: servers or "1"),
    }
)
"""How each field of the fingerprint is compared.

``parameters``, ``server_env`` and ``client`` are compared key by key and never separate: a changed setting explains
different numbers but does not excuse them. The context length does not separate either. It is the server's default
unless the workload sets ``num_ctx``, and then a change of the workload separates. Of the version only its metric
generation separates."""


def compare_fingerprints(before: Fingerprint, after: Fingerprint) -> tuple[Change, ...]:
    """Return in words what differs between two fingerprints, what separates them first."""
    found = [
        Change(
            field=name,
            name=field.label,
            before=field.say(old),
            after=field.say(new),
            separates=_is_separating(name, old, new),
        )
        for name, field in COMPARABILITY.items()
        if (old := getattr(before, name)) != (new := getattr(after, name))
    ]
    found += compare_counter_meaning(before, after)
    found += _compare_settings(before.parameters, after.parameters, "parameters", "model option ")
    found += _compare_settings(before.server_env, after.server_env, "server_env", "")
    found += _compare_settings(before.client, after.client, "client", "client ")
    return tuple(sorted(found, key=lambda change: not change.separates))


def _is_separating(name: str, old: object, new: object) -> bool:
    """A GPU or driver that only one of two runs could read is nothing that is known to have changed."""
    return COMPARABILITY[name].separates and (name not in {"gpu", "driver"} or bool(old and new))


def compare_counter_meaning(before: Fingerprint, after: Fingerprint) -> tuple[Change, ...]:
    """Return the change of what the server's counters mean, where there is one."""
    old, new = find_metric_generation(before.server_version), find_metric_generation(after.server_version)
    if old == new:
        return ()
    return (Change(field=COUNTER_MEANING, name="meaning of the counters", before=old, after=new, separates=True),)


def _compare_settings(before: Mapping[str, str], after: Mapping[str, str], group: str, prefix: str) -> list[Change]:
    return [
        Change(
            field=f"{group}.{key}",
            name=prefix + sanitize(key, 60),
            before=sanitize(before.get(key, "unset"), 60),
            after=sanitize(after.get(key, "unset"), 60),
            separates=False,
        )
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def compare_workloads(before: Workload, after: Workload) -> tuple[Change, ...]:
    """Return in words what another load two workloads ask for; all of it separates."""
    if compute_identity(before) == compute_identity(after):
        return ()
    old, new = collect_identity_fields(before), collect_identity_fields(after)
    return tuple(
        Change(
            field=f"workload.{name}",
            name=name,
            before=_format_option(old, name),
            after=_format_option(new, name),
            separates=True,
        )
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    )


def _format_option(load: Mapping[str, Any], name: str) -> str:
    if name not in load:
        return "as usual"
    return "server default" if load[name] is None else sanitize(str(load[name]), 60)


def compare_runs(before: Run, after: Run) -> tuple[Change, ...]:
    """Return in words what differs between two runs: the load first, then server, model and machine."""
    load = compare_workloads(before.workload, after.workload)
    implied = {_IMPLIED_BY_WORKLOAD.get(change.field) for change in load}
    rest = (
        change for change in compare_fingerprints(before.fingerprint, after.fingerprint) if change.field not in implied
    )
    return (*load, *rest)


_IMPLIED_BY_WORKLOAD = {"workload.num_ctx": "context_length"}
"""Fields of the workload whose change also changes a field of the fingerprint: it is named once."""


def is_comparable(before: Run, after: Run) -> bool:
    """Whether the numbers of two runs may be compared: same load, and nothing that separates."""
    return not any(change.separates for change in compare_runs(before, after))


def select_baseline(history: StoredRuns, now: Run, limit: int | None = None) -> BaselineRuns:
    """Return the stored runs since the newest acceptance that may be compared with ``now``, at most ``limit``.

    Runs of another machine or model in between are passed over: two runners that take turns both keep a history.
    """
    current = [run for run in select_current_epoch(history) if run.id != now.id and has_success(run)]
    fit: list[Run] = []
    apart: list[Run] = []
    for run in current:
        (fit if is_comparable(run, now) else apart).append(run)
    fit = fit[-limit:] if limit else fit
    nearest = fit or apart
    return BaselineRuns(runs=tuple(fit), apart=tuple(apart), changed=compare_runs(nearest[-1], now) if nearest else ())


def has_success(run: Run) -> bool:
    """Whether a run can be part of a baseline: one of its measured requests succeeded."""
    return any(sample.ok for sample in run.measured) or not run.samples


def select_current_epoch(history: StoredRuns) -> tuple[Run, ...]:
    """Return the runs of the current epoch: those accepted last, and those saved since.

    A test may have several loads; an acceptance counts for the load whose runs it lists, or for all if it lists none.
    """
    known = {run.id for run in history.runs}
    ours = [one for one in history.acceptances if history.identity or not one.runs or known & set(one.runs)]
    if not ours:
        return history.runs
    last = max(ours, key=lambda acceptance: acceptance.at)
    return tuple(run for run in history.runs if run.id in last.runs or run.started_at >= last.at)


def find_epoch_starts(history: StoredRuns) -> tuple[tuple[Change | Acceptance, ...], ...]:
    """Return for every run of ``history`` what starts an epoch with it: acceptances and separating changes."""
    found: list[tuple[Change | Acceptance, ...]] = []
    previous: Run | None = None
    for run in history.runs:
        accepted = [item for item in history.acceptances if _is_epoch_start(item, run, previous)]
        changed = [change for change in compare_runs(previous, run) if change.separates] if previous else []
        found.append((*accepted, *changed))
        previous = run
    return tuple(found)


def _is_epoch_start(acceptance: Acceptance, run: Run, previous: Run | None) -> bool:
    """Whether ``run`` is the first of the epoch that ``acceptance`` began."""
    inside = run.id in acceptance.runs or run.started_at >= acceptance.at
    before = previous is not None and (previous.id in acceptance.runs or previous.started_at >= acceptance.at)
    return inside and not before
