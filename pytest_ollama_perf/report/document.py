"""The machine-readable result: a document of one schema, written whole or not at all.

``docs/report.schema.json`` describes it and is made from the types below. Seconds are floats, ``*_ns`` are integers on
the clock of ``time.perf_counter_ns``. An infinite number, a failed request's time, is ``null``; a statistic that a
metric does not have is absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, TypeVar

import msgspec

from pytest_ollama_perf.analysis import Finding
from pytest_ollama_perf.analysis.drift import HistoryView
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.run import ClientStats, Fingerprint, ModelState, ServerInfo, Telemetry
from pytest_ollama_perf.core.sample import Counters, Outcome, Phase, Sample
from pytest_ollama_perf.core.verdict import Problem, ProblemCode, Verdict, VerdictRow, VerdictStatus
from pytest_ollama_perf.core.workload import Workload, hash_prompts
from pytest_ollama_perf.harness.evaluation import MeasuredLoad, TestResult
from pytest_ollama_perf.metrics.summary import MetricSummary
from pytest_ollama_perf.report.experiments import render_finding
from pytest_ollama_perf.report.facts import redact_url
from pytest_ollama_perf.report.tables import DEFAULT_WIDTH, clean
from pytest_ollama_perf.store.files import write_over

REPORT_SCHEMA_VERSION = 1

_Absent = msgspec.UnsetType
_UNSET = msgspec.UNSET
_StructT = TypeVar("_StructT", Fingerprint, ModelState)


class ReportMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What is true of the whole session: when it started (Unix seconds), why it ended early if it did."""

    plugin_version: str
    started_at: float
    aborted: str = ""


class MetricEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One metric: its pooled or per-run ``value``, its statistics over requests, the 95 % interval of each by name."""

    unit: str
    better: str
    n: int
    failed: int
    value: float | _Absent | None = _UNSET
    mean: float | _Absent | None = _UNSET
    p50: float | _Absent | None = _UNSET
    p90: float | _Absent | None = _UNSET
    p95: float | _Absent | None = _UNSET
    p99: float | _Absent | None = _UNSET
    min: float | _Absent | None = _UNSET
    max: float | _Absent | None = _UNSET
    ci: Mapping[str, tuple[float | None, float | None]] = {}


class SampleEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One request, with its counters. ``null`` is what the request or the server did not report."""

    request_id: str
    url: str
    outcome: Outcome
    stage: Phase
    index: int
    client: int
    attempt: int
    sent_ns: int
    done_ns: int
    scheduled_ns: int | None
    connect_ns: int | None
    header_ns: int | None
    first_token_ns: int | None
    first_answer_ns: int | None
    chunk_ns: tuple[int, ...]
    line_count: int
    read_count: int
    bytes_received: int
    read_lag_ns: int
    status: int | None
    error: str
    done_reason: str
    server: str
    total_duration_ns: int | None
    load_duration_ns: int | None
    prompt_eval_count: int | None
    prompt_eval_cached_count: int | None
    prompt_eval_duration_ns: int | None
    eval_count: int | None
    eval_duration_ns: int | None
    queue_ns: int | None
    first_sent_ns: int | None = None
    first_error: str = ""
    turn: int = 1


class ProblemEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One problem of a measurement: its stable code, its label, and whether it invalidates the run."""

    code: str
    name: str
    text: str
    invalidates: bool


class HintEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One hint: its stable code, and one line of text."""

    code: str
    text: str


class RowEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One judged number, as in ``core.verdict.VerdictRow``."""

    metric: str
    stat: str
    status: VerdictStatus
    reason: str
    gating: bool
    op: str
    value: float | None
    bound: float | None
    baseline: float | None
    change: float | None
    low: float | None
    high: float | None
    margin: float | None
    where: str = ""


class LoadEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One load: what was sent to what, the numbers, and every sample they come from, warm-up included."""

    run_id: str
    model: str
    started_at: float
    aborted: str
    load_time_s: float | None
    requests: int
    ok: int
    warmup: int
    outcomes: dict[str, int]
    wall_s: float
    steady_s: float
    prompt_tokens: int
    output_tokens: int
    workload: Workload
    fingerprint: Fingerprint
    before: dict[str, ModelState]
    after: dict[str, ModelState]
    servers: dict[str, ServerInfo] = {}
    watch: ClientStats
    telemetry: Telemetry | None = None
    metrics: dict[str, MetricEntry]
    samples: tuple[SampleEntry, ...]


class TestEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One test item and the loads it generated."""

    test: str
    verdict: VerdictStatus
    reason: str
    rows: tuple[RowEntry, ...]
    problems: tuple[ProblemEntry, ...]
    hints: tuple[HintEntry, ...]
    changed: tuple[str, ...]
    accept: str
    stored: int | None
    loads: tuple[LoadEntry, ...]
    findings: tuple[dict[str, Any], ...] = ()
    past: HistoryView | None = None


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """The whole report. ``schema`` grows by one when a reader of the old one would be misled."""

    schema: int
    plugin_version: str
    started_at: float
    aborted: str
    tests: tuple[TestEntry, ...]


def build_report(results: Sequence[TestResult], *, meta: ReportMeta) -> bytes:
    """Return the report of ``results`` as UTF-8 JSON with a newline at its end."""
    return encode_document(build_document(results, meta=meta))


def build_document(results: Sequence[TestResult], *, meta: ReportMeta) -> Document:
    """Return the report of ``results`` as a value, which every other report is made from."""
    return Document(
        schema=REPORT_SCHEMA_VERSION,
        plugin_version=meta.plugin_version,
        started_at=meta.started_at,
        aborted=clean(meta.aborted),
        tests=tuple(map(_build_test_entry_guarded, results)),
    )


def encode_document(whole: Document) -> bytes:
    """Return the document as UTF-8 JSON with a newline at its end."""
    return _encode_json(whole) + b"\n"


def _encode_json(whole: Document) -> bytes:
    try:
        return msgspec.json.encode(whole, enc_hook=_to_float)
    except UnicodeEncodeError:  # a lone surrogate in what the user wrote: a file name or an option
        return msgspec.json.encode(_replace_surrogates(msgspec.to_builtins(whole, enc_hook=_to_float)))


def _to_float(value: object) -> float:
    """Return a number of another library, such as numpy, as a plain one."""
    if isinstance(value, SupportsFloat):
        return float(value)
    raise NotImplementedError(f"a report cannot hold a {type(value).__name__}: {value!r}")


def _replace_surrogates(value: object) -> object:
    """Return plain ``value`` with a question mark for every lone surrogate."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_replace_surrogates(key): _replace_surrogates(inner) for key, inner in value.items()}
    return [_replace_surrogates(inner) for inner in value] if isinstance(value, list | tuple) else value


def _build_test_entry_guarded(result: TestResult) -> TestEntry:
    """Return the entry of one test; only its verdict if the rest cannot be built, so that other tests keep theirs."""
    try:
        return _build_test_entry(result)
    except Exception as error:  # what a finding or a load of one test raises
        text = clean(f"{type(error).__name__}: {error}", 200)
        fault = Problem(code=ProblemCode.REPORT_FAILED, text=text, invalidates=False)
        verdict = Verdict(status=result.verdict.status, reason=result.verdict.reason, problems=(fault,))
        return _build_test_entry(TestResult(test=result.test, verdict=verdict))


def _build_test_entry(result: TestResult) -> TestEntry:
    verdict = result.verdict
    return TestEntry(
        test=result.test,
        verdict=verdict.status,
        reason=clean(verdict.reason),
        rows=tuple(map(_build_row_entry, verdict.rows)),
        problems=tuple(
            ProblemEntry(code=each.code.value, name=each.name, text=clean(each.text), invalidates=each.invalidates)
            for each in verdict.problems
        ),
        hints=tuple(HintEntry(code=hint.code.value, text=clean(hint.text)) for hint in verdict.hints),
        changed=tuple(map(clean, verdict.changed)),
        accept=verdict.accept,
        stored=verdict.stored,
        loads=tuple(map(_build_load_entry, result.loads)),
        findings=tuple(map(_encode_finding, result.findings)),
        past=result.past,
    )


def _encode_finding(finding: Finding) -> dict[str, Any]:
    """Return every field of a finding, and under ``text`` the lines a terminal shows of it."""
    fields: dict[str, Any] = msgspec.to_builtins(finding, enc_hook=_to_float)
    return fields | {"text": render_finding(finding, DEFAULT_WIDTH)}


def _build_row_entry(row: VerdictRow) -> RowEntry:
    return RowEntry(**msgspec.structs.asdict(msgspec.structs.replace(row, reason=clean(row.reason))))


def _build_load_entry(load: MeasuredLoad) -> LoadEntry:
    run, summary = load.run, load.summary
    numbers = msgspec.structs.asdict(summary) | {
        "metrics": {name: _build_metric_entry(each) for name, each in summary.metrics.items()}
    }
    return LoadEntry(
        run_id=run.id,
        model=run.workload.model,
        started_at=run.started_at,
        aborted=clean(run.aborted),
        load_time_s=run.load_time_s,
        workload=_strip_images(run.workload),
        fingerprint=_sanitize_texts(run.fingerprint),
        before=_key_by_url(run.before),
        after=_key_by_url(run.after),
        servers={redact_url(url): _sanitize_server_facts(facts) for url, facts in run.servers.items()},
        watch=run.watch,
        telemetry=run.telemetry,
        samples=tuple(map(_build_sample_entry, run.samples)),
        **numbers,
    )


def _strip_images(workload: Workload) -> Workload:
    """Replace images, which can be megabytes of base64, by the hash of everything that was sent."""
    if not workload.images:
        return workload
    given = hash_prompts(workload.prompts, workload.messages, workload.images)
    return msgspec.structs.replace(workload, images=(), prompt_set=given)


def _key_by_url(states: dict[str, ModelState]) -> dict[str, ModelState]:
    return {redact_url(url): _sanitize_texts(state) for url, state in states.items()}


def _sanitize_server_facts(facts: ServerInfo) -> ServerInfo:
    return msgspec.structs.replace(facts, fingerprint=_sanitize_texts(facts.fingerprint), down=clean(facts.down))


def _sanitize_texts(value: _StructT) -> _StructT:
    """Return ``value`` with every text that a server may have sent made inert."""
    texts = {name: clean(text) for name, text in msgspec.structs.asdict(value).items() if isinstance(text, str)}
    return msgspec.structs.replace(value, **texts)


def _build_metric_entry(found: MetricSummary) -> MetricEntry:
    value: float | _Absent = _UNSET if found.value is None else found.value
    return MetricEntry(
        unit=found.unit, better=found.better, n=found.n, failed=found.failed, value=value, ci=found.ci, **found.stats
    )


def _build_sample_entry(sample: Sample) -> SampleEntry:
    fields = msgspec.structs.asdict(sample)
    counters = msgspec.structs.asdict(fields.pop("counters"))
    texts = {name: clean(fields[name]) for name in ("error", "first_error", "done_reason", "server", "request_id")}
    fields |= counters | texts | {"url": redact_url(sample.url), "queue_ns": sample.counters.queue_ns}
    return SampleEntry(**fields)


def to_samples(load: LoadEntry) -> tuple[Sample, ...]:
    """Return the samples of a load as the value that ``summary`` computes with."""
    return tuple(map(_to_sample, load.samples))


def _to_sample(entry: SampleEntry) -> Sample:
    fields = msgspec.structs.asdict(entry)
    counters = Counters(**{name: fields.pop(name) for name in Counters.__struct_fields__})
    fields.pop("queue_ns")
    return Sample(**fields, counters=counters)


def parse_document(content: bytes, where: str) -> Document:
    """Return the document in ``content``, which came from ``where``.

    Raises ``ConfigError``, one line, where it is no such report or one of a newer schema.
    """
    try:
        found = msgspec.json.decode(content, type=_SchemaVersion).schema
        if found <= REPORT_SCHEMA_VERSION:
            return msgspec.json.decode(content, type=Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        why = clean(str(error), 200)
        raise ConfigError(
            f"{where}: no report of this plugin ({why}); give a file of --ollama-report json:PATH"
        ) from None
    raise ConfigError(
        f"{where}: schema {found} is newer than this version understands ({REPORT_SCHEMA_VERSION}); upgrade the plugin"
    )


class _SchemaVersion(msgspec.Struct):
    schema: int


def build_report_schema() -> bytes:
    """Return the JSON Schema of the document, indented, as it is kept in ``docs/report.schema.json``."""
    made = msgspec.json.schema(Document)
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "pytest-ollama-perf report", **made}
    return msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n"


def write_report(path: Path, content: bytes, *, option: str = "--ollama-report") -> None:
    """Write ``content`` to ``path`` whole or not at all; missing folders are made.

    Raises ``ConfigError``, which names ``option``, where the path cannot be written; nothing is left behind then.
    """
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{option}: {path} is no regular file; give the path of a file")
        write_over(path, content)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise ConfigError(f"{option}: cannot write {path}: {why}; give a path that can be written") from error
