"""A run as one JSON file: what identifies it in plain keys, its samples in columns.

Nothing derived is stored, and nothing that a metric needs is lost:

- times of samples are whole microseconds after ``origin_ns``, rounded down; the server's counters are exact;
- chunk times after a request's first are whole ticks after it, a tick being the power of two of microseconds that is
  nearest below a five-hundredth of the run's median gap (and at least one): a run of 7 ms per token has ticks of 8 us;
- of the user's prompts only a hash is stored; synthetic prompts are generated again from the seed.

``check`` is a hash over everything else, so that a damaged file cannot pass for another run. Whoever changes the layout
raises ``run.SCHEMA`` and adds one step to ``UPGRADES``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from pytest_ollama_perf.analysis.epochs import Acceptance
from pytest_ollama_perf.core import CorruptRecordError, StoreError
from pytest_ollama_perf.core.run import SCHEMA, ClientStats, Fingerprint, ModelState, Run, ServerInfo, Telemetry
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.workload import Workload, hash_prompts
from pytest_ollama_perf.store.files import (
    DECODE_ERRORS,
    MAX_FILE_BYTES,
    SchemaUpgrade,
    build_corrupt_error,
    decode_checked,
    encode_checked,
    escape_surrogates,
)
from pytest_ollama_perf.store.samples import SampleTable, pack_samples, unpack_samples

RUN_UPGRADES: Mapping[int, SchemaUpgrade] = MappingProxyType({})
"""For every older schema the step that makes the next one of it; none yet, the first schema is the current one."""


class RunRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run as it is in the file."""

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
    watch: ClientStats
    aborted: str
    servers: dict[str, ServerInfo] = {}
    telemetry: Telemetry | None = None
    samples: SampleTable


def encode_run(run: Run) -> bytes:
    """Return the record of ``run``; ``StoreError`` where it holds what no record can."""
    try:
        body = msgspec.to_builtins(_to_record(run))
        _check_finite(body)
        data = encode_checked(body, opened=("samples",))
        decode_run(data, "its record")
    except (*DECODE_ERRORS, AttributeError, CorruptRecordError) as error:
        raise StoreError(f"run {sanitize(run.id)} cannot be stored: {sanitize(str(error))}") from error
    return data


def decode_run(
    data: bytes, where: str, upgrades: Mapping[int, SchemaUpgrade] = RUN_UPGRADES, newest: int = SCHEMA
) -> Run:
    """Return the run of a record; ``where`` names the file in a ``CorruptRecord`` or ``NewerSchema``."""
    try:
        return _from_record(msgspec.convert(decode_checked(data, where, newest, upgrades), RunRecord))
    except DECODE_ERRORS as error:
        raise build_corrupt_error(where, str(error)) from error


class _RunHeader(msgspec.Struct, frozen=True):
    """What decides whether a run is comparable; the samples are not decoded."""

    id: str
    workload: Workload
    fingerprint: Fingerprint
    session: str = ""
    started_at: float = 0.0


def decode_header(data: bytes) -> Run | None:
    """Return the run of a record without its samples and unchecked; ``None`` if the record is unreadable."""
    try:
        header = msgspec.json.decode(data, type=_RunHeader)
    except DECODE_ERRORS:
        return None
    return Run(
        id=header.id,
        session=header.session,
        started_at=header.started_at,
        workload=header.workload,
        fingerprint=header.fingerprint,
    )


def read_run(path: Path) -> Run:
    """Return the run in the file at ``path``; ``CorruptRecord`` also where it cannot be opened."""
    return decode_run(read_bytes(path), sanitize(str(path)))


def read_bytes(path: Path) -> bytes:
    """Return what is in a file, but no more than a record can have and one byte that shows there is more."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise build_corrupt_error(sanitize(str(path)), error.strerror or str(error)) from error


def _check_finite(part: object) -> None:
    """JSON has no word for an infinity: it would come back as nothing."""
    if isinstance(part, float) and not math.isfinite(part):
        raise ValueError(f"{part} is no number that a file can hold")
    if isinstance(part, dict | list | tuple):
        for inner in part.values() if isinstance(part, dict) else part:
            _check_finite(inner)


def _to_record(run: Run) -> RunRecord:
    carried = {name: getattr(run, name) for name in RunRecord.__struct_fields__ if name not in {"samples", "workload"}}
    asked = run.workload
    prompts = asked.prompt_set or hash_prompts(asked.prompts, asked.messages, asked.images)
    workload = msgspec.structs.replace(asked, prompts=(), messages=(), images=(), prompt_set=prompts)
    texts = {name: escape_surrogates(value) for name, value in carried.items() if isinstance(value, str)}
    after = None if run.after == run.before else run.after
    return RunRecord(
        **carried | texts | {"schema": SCHEMA, "after": after}, workload=workload, samples=pack_samples(run.samples)
    )


def _from_record(record: RunRecord) -> Run:
    carried = {name: getattr(record, name) for name in RunRecord.__struct_fields__ if name not in {"samples", "after"}}
    after = record.before if record.after is None else record.after
    return Run(**carried, after=after, samples=unpack_samples(record.samples))


ACCEPTANCE_SCHEMA = 1
ACCEPTANCE_UPGRADES: MappingProxyType[int, SchemaUpgrade] = MappingProxyType({})


def encode_acceptance(acceptance: Acceptance) -> bytes:
    """Return ``acceptance`` as a file; ``StoreError`` where it holds what no file can."""
    try:
        data = encode_checked({"schema": ACCEPTANCE_SCHEMA} | msgspec.to_builtins(acceptance))
        decode_acceptance(data, "it")
    except (*DECODE_ERRORS, CorruptRecordError) as error:
        raise StoreError(f"the acceptance of {acceptance.test} cannot be stored: {error}") from error
    return data


def decode_acceptance(data: bytes, where: str) -> Acceptance:
    """Return the acceptance in a file; ``where`` names it in a ``CorruptRecord`` or ``NewerSchema``."""
    try:
        return msgspec.convert(decode_checked(data, where, ACCEPTANCE_SCHEMA, ACCEPTANCE_UPGRADES), Acceptance)
    except DECODE_ERRORS as error:
        raise build_corrupt_error(where, str(error)) from error
