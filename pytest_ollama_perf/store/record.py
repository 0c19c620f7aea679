"""A run as one JSON file: what identifies it in plain keys, its samples in columns.

Nothing derived is stored, and nothing that a metric needs is lost:

- times of samples are whole microseconds after ``origin_ns``, rounded down; the server's counters are exact;
- chunk times after a request's first are whole ticks after it, a tick being the power of two of microseconds that is
  nearest below a five-hundredth of the run's median gap (and at least one): a run of 7 ms per token has ticks of 8 us;
- of prompts that a person gave, their hash is kept; synthetic ones are made again from the seed.

``check`` is a hash over everything else, so that a damaged file cannot pass for another run. Whoever changes the layout
raises ``run.SCHEMA`` and adds one step to ``UPGRADES``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from pytest_ollama_perf.errors import CorruptRecord, StoreError
from pytest_ollama_perf.run import SCHEMA, Fingerprint, ModelState, Run, ServerFacts, Telemetry, Watch
from pytest_ollama_perf.store.samples import SampleTable, fold, unfold
from pytest_ollama_perf.store.seal import DAMAGE, MAX_BYTES, Upgrade, corrupt, plain, seal, unseal
from pytest_ollama_perf.text import inert
from pytest_ollama_perf.workload import Workload, prompt_set

UPGRADES: Mapping[int, Upgrade] = MappingProxyType({})
"""For every older schema the step that makes the next one of it; none yet, the first schema is the current one."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run as it stands in the file."""

    schema: int
    id: str
    test: str
    session: str
    started_at: float
    git_commit: str
    plugin_version: str
    workload: Workload
    fingerprint: Fingerprint
    load_time_s: float | None
    before: dict[str, ModelState]
    after: dict[str, ModelState] | None  # null: as before
    watch: Watch
    aborted: str
    servers: dict[str, ServerFacts] = {}
    telemetry: Telemetry | None = None
    samples: SampleTable


def encode(run: Run) -> bytes:
    """Return the record of ``run``; ``StoreError`` where it holds what no record can."""
    try:
        body = msgspec.to_builtins(_record(run))
        _must_be_finite(body)
        data = seal(body, opened=("samples",))
        decode(data, "its record")
    except (*DAMAGE, AttributeError, CorruptRecord) as error:
        raise StoreError(f"run {inert(run.id)} cannot be stored: {inert(str(error))}") from error
    return data


def decode(data: bytes, where: str, upgrades: Mapping[int, Upgrade] = UPGRADES, newest: int = SCHEMA) -> Run:
    """Return the run of a record; ``where`` names the file in a ``CorruptRecord`` or ``NewerSchema``."""
    try:
        return _run(msgspec.convert(unseal(data, where, newest, upgrades), Record))
    except DAMAGE as error:
        raise corrupt(where, str(error)) from error


def read(path: Path) -> Run:
    """Return the run in the file at ``path``; ``CorruptRecord`` also where it cannot be opened."""
    return decode(content(path), inert(str(path)))


def content(path: Path) -> bytes:
    """Return what is in a file, but no more than a record can have and one byte that shows there is more."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise corrupt(inert(str(path)), error.strerror or str(error)) from error


def _must_be_finite(part: object) -> None:
    """JSON has no word for an infinity: it would come back as nothing."""
    if isinstance(part, float) and not math.isfinite(part):
        raise ValueError(f"{part} is no number that a file can hold")
    if isinstance(part, dict | list | tuple):
        for inner in part.values() if isinstance(part, dict) else part:
            _must_be_finite(inner)


def _record(run: Run) -> Record:
    carried = {name: getattr(run, name) for name in Record.__struct_fields__ if name not in {"samples", "workload"}}
    asked = run.workload
    prompts = asked.prompt_set or prompt_set(asked.prompts, asked.messages, asked.images)
    workload = msgspec.structs.replace(asked, prompts=(), messages=(), images=(), prompt_set=prompts)
    texts = {name: plain(value) for name, value in carried.items() if isinstance(value, str)}
    after = None if run.after == run.before else run.after
    return Record(**carried | texts | {"schema": SCHEMA, "after": after}, workload=workload, samples=fold(run.samples))


def _run(record: Record) -> Run:
    carried = {name: getattr(record, name) for name in Record.__struct_fields__ if name not in {"samples", "after"}}
    after = record.before if record.after is None else record.after
    return Run(**carried, after=after, samples=unfold(record.samples))
