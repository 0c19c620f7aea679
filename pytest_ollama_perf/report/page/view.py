"""What the page says of each test, as plain values for its template: words, tables, charts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone

import msgspec

from pytest_ollama_perf.metric import METRICS, STATS
from pytest_ollama_perf.report import series
from pytest_ollama_perf.report.json_report import Document, LoadEntry, MetricEntry, RowEntry, TestEntry, samples_of
from pytest_ollama_perf.report.layout import clean
from pytest_ollama_perf.report.page import charts, found, machine, past, requests
from pytest_ollama_perf.report.page.charts import Chart
from pytest_ollama_perf.sample import Sample
from pytest_ollama_perf.verdict.wording import count, label, percent, show
from pytest_ollama_perf.verdict.words import FAILING, Word

DISTRIBUTIONS = {"ttft": "Time to first token", "latency": "Latency", "tps": "Tokens per second"}
SERIES = 5
"""How many distributions one chart shows at most, the baseline's not counted."""

_TIMELINES = 5000
"""Requests that all timelines of a page show together."""

_TIMELINE = 150
"""Requests that one timeline shows at most."""

_STEPS = 20_000
"""Steps that all distributions of a page have together, no fewer than ``_LEAST_STEPS`` each: these bounds keep a page
of 50 tests below 3 MB."""

_LEAST_STEPS = 25
_LOADS = 12
"""How many loads of one test have a timeline and a table of their own."""

Table = list[tuple[str, ...]]


class LoadView(msgspec.Struct, frozen=True, kw_only=True):
    """One load of a test: what it was, its numbers as rows of cells, its timeline."""

    name: str
    facts: tuple[str, ...]
    numbers: Table
    chart: Chart | None


class TestView(msgspec.Struct, frozen=True, kw_only=True):
    """One test. ``charts`` are those of the test as a whole; ``judged`` and ``changed_rows`` are tables."""

    __test__ = False

    anchor: str
    test: str
    word: str
    tone: str
    reason: str
    highlights: tuple[tuple[str, str], ...]
    limits: Table
    history: Table
    problems: tuple[tuple[str, str, bool], ...]
    changed: tuple[str, ...]
    hints: tuple[str, ...]
    accept: str
    findings: tuple[str, ...]
    charts: tuple[Chart, ...]
    loads: tuple[LoadView, ...]
    more_loads: int


class PageView(msgspec.Struct, frozen=True, kw_only=True):
    """The whole page."""

    title: str
    tone: str
    started: str
    plugin_version: str
    aborted: str
    totals: tuple[tuple[str, str, int], ...]
    where: tuple[str, ...]
    tests: tuple[TestView, ...]
    glossary: tuple[tuple[str, str], ...]


def view(document: Document) -> PageView:
    """Return what the page of ``document`` says."""
    budget = _budget(document)
    words = [test.verdict for test in document.tests]
    gravest = max(words, key=tuple(Word).index, default=Word.OK)
    return PageView(
        title=f"{len(words)} performance {'test' if len(words) == 1 else 'tests'}",
        tone=tone(gravest),
        started=moment(document.started_at),
        plugin_version=document.plugin_version,
        aborted=document.aborted,
        totals=tuple((word.value, tone(word), words.count(word)) for word in Word if word in words),
        where=tuple(dict.fromkeys(", ".join(environment(load)) for test in document.tests for load in test.loads)),
        tests=tuple(_test(number, test, budget) for number, test in enumerate(document.tests, 1)),
        glossary=tuple((metric.name, metric.help) for metric in METRICS.values()),
    )


class _Budget(msgspec.Struct, frozen=True):
    """How much one chart may show: requests of a timeline, steps of a distribution."""

    requests: int
    steps: int


def _budget(document: Document) -> _Budget:
    timelines = sum(min(_LOADS, len(test.loads)) for test in document.tests)
    series = len(DISTRIBUTIONS) * sum(min(SERIES + 1, 1 + len(test.loads)) for test in document.tests)
    steps = max(_LEAST_STEPS, min(requests.STEPS, _STEPS // max(1, series)))
    return _Budget(max(1, min(_TIMELINE, _TIMELINES // max(1, timelines))), steps)


def tone(word: Word) -> str:
    """Return how a verdict is coloured; the word itself always stands beside it."""
    if word in FAILING:
        return "bad"
    return "doubtful" if word in {Word.UNSURE, Word.INCOMPARABLE} else "good"


def moment(at: float) -> str:
    """Return Unix seconds as a person reads them."""
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _test(number: int, test: TestEntry, budget: _Budget) -> TestView:
    named = list(zip(series.names(test.loads), test.loads, strict=True))
    samples = [samples_of(load) for load in test.loads]
    return TestView(
        anchor=f"test-{number}",
        test=clean(test.test),
        word=test.verdict.value,
        tone=tone(test.verdict),
        reason=test.reason,
        highlights=tuple(_highlights(test.loads)),
        limits=list(_limits([row for row in test.rows if row.bound is not None])),
        history=list(_changes([row for row in test.rows if row.bound is None])),
        problems=tuple((each.name, each.text, each.spoils) for each in test.problems),
        changed=test.changed,
        hints=test.hints,
        accept=clean(test.accept, 4000),
        findings=tuple("\n".join(finding.get("text", ())) for finding in test.findings),
        charts=tuple(_charts(test, named, samples, budget.steps)),
        loads=tuple(_loads(named, samples, budget.requests)),
        more_loads=max(0, len(named) - _LOADS),
    )


_HIGHLIGHTS = (("tps", ""), ("throughput", ""), ("qps", ""), ("ttft", "p50"), ("latency", "p95"), ("error_rate", ""))


def _highlights(loads: Sequence[LoadEntry]) -> Iterator[tuple[str, str]]:
    """Yield the numbers to see first; of several loads the range."""
    for metric, stat in _HIGHLIGHTS:
        entries = [load.metrics[metric] for load in loads if metric in load.metrics]
        values = [value for entry in entries if (value := number(entry, stat)) is not None]
        if values:
            ends = dict.fromkeys(show(metric, end) for end in (min(values), max(values)))
            yield label(metric, stat), " to ".join(ends)


def number(entry: MetricEntry, stat: str = "") -> float | None:
    """Return one number of a metric, in its own unit; ``inf`` where it is a failed request's."""
    value = getattr(entry, stat or "value")
    if value is msgspec.UNSET:
        return None
    return float("inf") if value is None else float(value)


def _limits(rows: Sequence[RowEntry]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        ends = f"{show(row.metric, row.low)} to {show(row.metric, row.high)}" if row.low is not None else ""
        bound = f"{row.op} {show(row.metric, row.bound)}"
        yield _named(row), bound, _shown(row), ends, row.word.value, row.reason


def _changes(rows: Sequence[RowEntry]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        ends = "" if row.low is None or row.high is None else f"{_signed(row.low)} to {_signed(row.high)}"
        yield (
            _named(row),
            show(row.metric, row.baseline),
            _shown(row),
            _signed(row.change),
            ends,
            _signed(past.allowed(row)),
            row.word.value if row.gating else f"{row.word.value} (not gating)",
            row.reason,
        )


def _named(row: RowEntry) -> str:
    where = f", {clean(row.where, 60)}" if row.where else ""
    return label(row.metric, row.stat) + where


def _shown(row: RowEntry) -> str:
    return show(row.metric, row.value) if row.value is not None else "inf"


def _signed(share: float | None) -> str:
    return "" if share is None else percent(share, signed=True)


def environment(load: LoadEntry) -> Iterator[str]:
    """Yield server, model and machine, as phrases."""
    prints = load.fingerprint
    yield from (f"ollama {prints.server_version}",) if prints.server_version else ()
    yield clean(f"{prints.model or load.model} {prints.quantization}", 120)
    yield from (prints.gpu,) if prints.gpu else ()
    yield from (f"{percent(prints.vram_share)} on the GPU",) if prints.vram_share is not None else ()


def _charts(
    test: TestEntry, named: Sequence[tuple[str, LoadEntry]], samples: Sequence[Sequence[Sample]], steps: int
) -> Iterator[Chart]:
    yield from found.charts_of(test.findings)
    yield from past.changes(test.rows)
    for metric, title in DISTRIBUTIONS.items():
        pooled: dict[str, list[float]] = {}
        for (name, _), taken in zip(named, samples, strict=True):
            pooled.setdefault(name, []).extend(requests.values_of(metric, taken))
        yield from _distribution(metric, title, pooled, past.baseline(test.past, metric), steps)
    yield from past.history(test.past)
    if rows := requests.answered(sample for taken in samples for sample in taken):
        says = "; ".join(f"{row[0]}: {row[2]} {row[1]}" for row in rows)
        yield charts.balance(says, rows)


def _distribution(
    metric: str, title: str, pooled: dict[str, list[float]], stored: Sequence[float], most: int
) -> Iterator[Chart]:
    known = {name: values for name, values in pooled.items() if values}
    if not known:
        return
    shown: dict[str, Sequence[float]] = dict(list(known.items())[:SERIES])
    shown |= {charts.BASELINE: stored} if stored else {}
    scale, axis = requests.axis(metric, (value for values in shown.values() for value in values))
    rows = [row for name, values in shown.items() for row in requests.steps(name, values, scale, most)]
    more = f"; {len(known) - SERIES} more are not drawn" if len(known) > SERIES else ""
    says = f"Distribution of {metric} over the requests of {', '.join(shown)}{more}"
    yield charts.distribution(title, says, axis, rows)


def _loads(
    named: Sequence[tuple[str, LoadEntry]], samples: Sequence[Sequence[Sample]], most: int
) -> Iterator[LoadView]:
    for (name, load), taken in list(zip(named, samples, strict=True))[:_LOADS]:
        yield LoadView(
            name=name,
            facts=tuple(_facts(load)),
            numbers=[_row(metric, entry) for metric, entry in load.metrics.items()],
            chart=_timeline(load, taken, most),
        )


def _facts(load: LoadEntry) -> Iterator[str]:
    workload = load.workload
    yield f"{count(load.requests, 'request')}, {load.ok} ok, {load.warmup} warm-up dropped"
    yield f"{workload.rate:g} a second ({workload.arrival.value})" if workload.rate else f"{workload.clients} at once"
    yield f"{load.prompt_tokens} prompt and {load.output_tokens} output tokens in {show('latency', load.wall_s)}"
    yield from environment(load)
    yield from machine.lines(load.telemetry)
    failed = {outcome: number for outcome, number in load.outcomes.items() if outcome != "ok"}
    if failed:
        yield "failed: " + ", ".join(f"{number} {outcome}" for outcome, number in failed.items())
    if load.load_time_s is not None:
        yield f"the model was loaded in {show('load_time', load.load_time_s)}"
    if load.aborted:
        yield f"aborted: {load.aborted}"


def _row(metric: str, entry: MetricEntry) -> tuple[str, ...]:
    cells = (_cell(metric, number(entry, stat)) for stat in ("", *STATS))
    return metric, *cells


def _cell(metric: str, value: float | None) -> str:
    return "" if value is None else show(metric, value)


def _timeline(load: LoadEntry, samples: Iterable[Sample], most: int) -> Chart | None:
    taken = list(samples)
    rows, shown, lanes = requests.timeline_rows(load.workload, taken, most)
    if not rows:
        return None
    part = f"the first {shown} of {len(taken)} requests" if shown < len(taken) else f"all {shown} requests"
    return charts.timeline(f"What {part} did: each a bar on its client's line, cut into phases", lanes, rows)
