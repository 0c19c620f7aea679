"""The report as one HTML file that needs nothing else: no network, no other file, no permission to run foreign script.

The content security policy names the hashes of the page's own script and style and refuses everything else, so that a
text from a server, were it ever not escaped, still could not run, load or send anything. Charts are Vega-Lite
specifications, drawn by Vega with its interpreter of expressions (no ``eval``), each when it comes into view.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from functools import lru_cache
from importlib import resources
from typing import Any

import msgspec

from pytest_ollama_perf.core import MissingExtraError
from pytest_ollama_perf.core.sample import Sample
from pytest_ollama_perf.core.verdict import FAILING_STATUSES, VerdictStatus
from pytest_ollama_perf.metrics import METRICS, STATS, format_count, format_label, format_percent, format_value
from pytest_ollama_perf.report import series
from pytest_ollama_perf.report.document import Document, LoadEntry, MetricEntry, RowEntry, TestEntry, to_samples
from pytest_ollama_perf.report.html import chart_data, charts
from pytest_ollama_perf.report.html.charts import Chart
from pytest_ollama_perf.report.tables import clean

DISTRIBUTION_TITLES = {"ttft": "Time to first token", "latency": "Latency", "tps": "Tokens per second"}
MAX_SERIES = 5
"""How many distributions one chart shows at most, the baseline's not counted."""

_MAX_PAGE_REQUESTS = 5000
"""Requests that all timelines of a page show together."""

_MAX_TIMELINE_REQUESTS = 150
"""Requests that one timeline shows at most."""

_MAX_PAGE_STEPS = 20_000
"""Steps that all distributions of a page have together, no fewer than ``_LEAST_STEPS`` each: these bounds keep a page
of 50 tests below 3 MB."""

_MIN_STEPS = 25
_MAX_LOADS = 12
"""How many loads of one test have a separate timeline and table."""

TableRows = list[tuple[str, ...]]


class LoadView(msgspec.Struct, frozen=True, kw_only=True):
    """One load of a test: what it was, its numbers as rows of cells, its timeline."""

    name: str
    facts: tuple[str, ...]
    numbers: TableRows
    chart: Chart | None


class TestView(msgspec.Struct, frozen=True, kw_only=True):
    """One test. ``charts`` are those of the test as a whole.

    ``limits`` and ``history`` are tables; the statuses are those of their rows.
    """

    __test__ = False

    anchor: str
    test: str
    status: str
    tone: str
    reason: str
    highlights: tuple[tuple[str, str], ...]
    limits: TableRows
    limit_statuses: tuple[str, ...]
    history: TableRows
    history_statuses: tuple[str, ...]
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


def build_page(document: Document) -> PageView:
    """Return what the page of ``document`` says."""
    budget = _compute_chart_limits(document)
    words = [test.verdict for test in document.tests]
    gravest = max(words, key=tuple(VerdictStatus).index, default=VerdictStatus.OK)
    return PageView(
        title=f"{len(words)} performance {'test' if len(words) == 1 else 'tests'}",
        tone=choose_tone(gravest),
        started=format_timestamp(document.started_at),
        plugin_version=document.plugin_version,
        aborted=document.aborted,
        totals=tuple((word.value, choose_tone(word), words.count(word)) for word in VerdictStatus if word in words),
        where=tuple(
            dict.fromkeys(", ".join(describe_load_environment(load)) for test in document.tests for load in test.loads)
        ),
        tests=tuple(_build_test_view(number, test, budget) for number, test in enumerate(document.tests, 1)),
        glossary=tuple((metric.name, metric.help) for metric in METRICS.values()),
    )


class _ChartLimits(msgspec.Struct, frozen=True):
    """How much one chart may show: requests of a timeline, steps of a distribution."""

    requests: int
    steps: int


def _compute_chart_limits(document: Document) -> _ChartLimits:
    timelines = sum(min(_MAX_LOADS, len(test.loads)) for test in document.tests)
    series = len(DISTRIBUTION_TITLES) * sum(min(MAX_SERIES + 1, 1 + len(test.loads)) for test in document.tests)
    steps = max(_MIN_STEPS, min(chart_data.MAX_STEPS, _MAX_PAGE_STEPS // max(1, series)))
    return _ChartLimits(max(1, min(_MAX_TIMELINE_REQUESTS, _MAX_PAGE_REQUESTS // max(1, timelines))), steps)


def choose_tone(word: VerdictStatus) -> str:
    """Return how a verdict is coloured; the verdict is always shown as text as well."""
    if word in FAILING_STATUSES:
        return "bad"
    return "doubtful" if word in {VerdictStatus.UNSURE, VerdictStatus.INCOMPARABLE} else "good"


def format_timestamp(at: float) -> str:
    """Return Unix seconds as ``2026-09-21 14:13 UTC``."""
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _build_test_view(number: int, test: TestEntry, budget: _ChartLimits) -> TestView:
    named = list(zip(series.name_loads(test.loads), test.loads, strict=True))
    samples = [to_samples(load) for load in test.loads]
    limits = [row for row in test.rows if row.bound is not None]
    changes = [row for row in test.rows if row.bound is None]
    return TestView(
        anchor=f"test-{number}",
        test=clean(test.test),
        status=test.verdict.value,
        tone=choose_tone(test.verdict),
        reason=test.reason,
        highlights=tuple(_build_highlights(test.loads)),
        limits=list(_build_limit_rows(limits)),
        limit_statuses=tuple(row.status.value for row in limits),
        history=list(_build_change_rows(changes)),
        history_statuses=tuple(row.status.value for row in changes),
        problems=tuple((each.name, each.text, each.invalidates) for each in test.problems),
        changed=test.changed,
        hints=tuple(hint.text for hint in test.hints),
        accept=clean(test.accept, 4000),
        findings=tuple("\n".join(finding.get("text", ())) for finding in test.findings),
        charts=tuple(_build_test_charts(test, named, samples, budget.steps)),
        loads=tuple(_build_load_views(named, samples, budget.requests)),
        more_loads=max(0, len(named) - _MAX_LOADS),
    )


_HIGHLIGHTED_STATS = (
    ("tps", ""),
    ("throughput", ""),
    ("qps", ""),
    ("ttft", "p50"),
    ("latency", "p95"),
    ("error_rate", ""),
)


def _build_highlights(loads: Sequence[LoadEntry]) -> Iterator[tuple[str, str]]:
    """Yield the numbers to see first; of several loads the range."""
    for metric, stat in _HIGHLIGHTED_STATS:
        entries = [load.metrics[metric] for load in loads if metric in load.metrics]
        values = [value for entry in entries if (value := read_stat(entry, stat)) is not None]
        if values:
            ends = dict.fromkeys(format_value(metric, end) for end in (min(values), max(values)))
            yield format_label(metric, stat), " to ".join(ends)


def read_stat(entry: MetricEntry, stat: str = "") -> float | None:
    """Return one number of a metric, in its own unit; ``inf`` where it is a failed request's."""
    value = getattr(entry, stat or "value")
    if value is msgspec.UNSET:
        return None
    return float("inf") if value is None else float(value)


def _build_limit_rows(rows: Sequence[RowEntry]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        ends = (
            f"{format_value(row.metric, row.low)} to {format_value(row.metric, row.high)}"
            if row.low is not None
            else ""
        )
        bound = f"{row.op} {format_value(row.metric, row.bound)}"
        yield _format_row_name(row), bound, _format_value(row), ends, row.status.value, row.reason


def _build_change_rows(rows: Sequence[RowEntry]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        ends = (
            ""
            if row.low is None or row.high is None
            else f"{_format_signed_share(row.low)} to {_format_signed_share(row.high)}"
        )
        yield (
            _format_row_name(row),
            format_value(row.metric, row.baseline),
            _format_value(row),
            _format_signed_share(row.change),
            ends,
            _format_signed_share(chart_data.sign_margin(row)),
            row.status.value if row.gating else f"{row.status.value} (not gating)",
            row.reason,
        )


def _format_row_name(row: RowEntry) -> str:
    where = f", {clean(row.where, 60)}" if row.where else ""
    return format_label(row.metric, row.stat) + where


def _format_value(row: RowEntry) -> str:
    return format_value(row.metric, row.value) if row.value is not None else "inf"


def _format_signed_share(share: float | None) -> str:
    return "" if share is None else format_percent(share, signed=True)


def describe_load_environment(load: LoadEntry) -> Iterator[str]:
    """Yield server, model and machine, as phrases."""
    prints = load.fingerprint
    yield from (f"ollama {prints.server_version}",) if prints.server_version else ()
    yield clean(f"{prints.model or load.model} {prints.quantization}", 120)
    yield from (prints.gpu,) if prints.gpu else ()
    yield from (f"{format_percent(prints.vram_share)} on the GPU",) if prints.vram_share is not None else ()


def _build_test_charts(
    test: TestEntry, named: Sequence[tuple[str, LoadEntry]], samples: Sequence[Sequence[Sample]], steps: int
) -> Iterator[Chart]:
    yield from chart_data.build_finding_charts(test.findings)
    yield from chart_data.build_change_charts(test.rows)
    for metric, title in DISTRIBUTION_TITLES.items():
        pooled: dict[str, list[float]] = {}
        for (name, _), taken in zip(named, samples, strict=True):
            pooled.setdefault(name, []).extend(chart_data.compute_request_values(metric, taken))
        yield from _build_distribution_chart(
            metric, title, pooled, chart_data.list_baseline_values(test.past, metric), steps
        )
    yield from chart_data.build_history_charts(test.past)
    if rows := chart_data.count_by_server(sample for taken in samples for sample in taken):
        says = "; ".join(f"{row[0]}: {row[2]} {row[1]}" for row in rows)
        yield charts.draw_server_balance(says, rows)


def _build_distribution_chart(
    metric: str, title: str, pooled: dict[str, list[float]], stored: Sequence[float], most: int
) -> Iterator[Chart]:
    known = {name: values for name, values in pooled.items() if values}
    if not known:
        return
    shown: dict[str, Sequence[float]] = dict(list(known.items())[:MAX_SERIES])
    shown |= {charts.BASELINE_SERIES: stored} if stored else {}
    scale, axis = chart_data.choose_axis(metric, (value for values in shown.values() for value in values))
    rows = [row for name, values in shown.items() for row in chart_data.build_steps(name, values, scale, most)]
    more = f"; {len(known) - MAX_SERIES} more are not drawn" if len(known) > MAX_SERIES else ""
    says = f"Distribution of {metric} over the requests of {', '.join(shown)}{more}"
    yield charts.draw_distribution(title, says, axis, rows)


def _build_load_views(
    named: Sequence[tuple[str, LoadEntry]], samples: Sequence[Sequence[Sample]], most: int
) -> Iterator[LoadView]:
    for (name, load), taken in list(zip(named, samples, strict=True))[:_MAX_LOADS]:
        yield LoadView(
            name=name,
            facts=tuple(_describe_load(load)),
            numbers=[_build_metric_row(metric, entry) for metric, entry in load.metrics.items()],
            chart=_build_timeline_chart(load, taken, most),
        )


def _describe_load(load: LoadEntry) -> Iterator[str]:
    workload = load.workload
    yield f"{format_count(load.requests, 'request')}, {load.ok} ok, {load.warmup} warm-up dropped"
    yield (
        f"{workload.rate:g} requests/s ({workload.arrival.value})"
        if workload.rate
        else f"concurrency {workload.clients}"
    )
    yield (
        f"{load.prompt_tokens} prompt and {load.output_tokens} output tokens in {format_value('latency', load.wall_s)}"
    )
    yield from describe_load_environment(load)
    yield from chart_data.describe_hardware(load.telemetry)
    failed = {outcome: number for outcome, number in load.outcomes.items() if outcome != "ok"}
    if failed:
        yield "failed: " + ", ".join(f"{number} {outcome}" for outcome, number in failed.items())
    if load.load_time_s is not None:
        yield f"the model was loaded in {format_value('load_time', load.load_time_s)}"
    if load.aborted:
        yield f"aborted: {load.aborted}"


def _build_metric_row(metric: str, entry: MetricEntry) -> tuple[str, ...]:
    cells = (_format_cell(metric, read_stat(entry, stat)) for stat in ("", *STATS))
    return metric, *cells


def _format_cell(metric: str, value: float | None) -> str:
    return "" if value is None else format_value(metric, value)


def _build_timeline_chart(load: LoadEntry, samples: Iterable[Sample], most: int) -> Chart | None:
    taken = list(samples)
    rows, shown, lanes = chart_data.build_timeline_rows(load.workload, taken, most)
    if not rows:
        return None
    part = f"the first {shown} of {len(taken)} requests" if shown < len(taken) else f"all {shown} requests"
    return charts.draw_timeline(f"What {part} did: each a bar on its client's line, cut into phases", lanes, rows)


try:
    import vl_convert
    from jinja2 import Environment, StrictUndefined, Template
    from markupsafe import Markup
except ImportError as error:
    raise MissingExtraError("the HTML report", "html") from error


def render_html(document: Document) -> bytes:
    """Return the page of ``document`` as UTF-8."""
    return _render_template(build_page(document))


def _render_template(page: PageView) -> bytes:
    book = _ChartCollector()
    script, style = _load_vega_script() + "\n" + _read_resource("page.js"), _read_resource("page.css")
    text: str = _load_template().render(
        page=page,
        chart=book.add,
        data=book.to_json,
        script=Markup(script),
        style=Markup(style),
        policy=_build_security_policy(script, style),
    )
    return text.encode("utf-8", "replace")


class _ChartCollector:
    """Gathers the charts of a page as its template comes to them.

    Equal specifications are kept once, and so are equal texts within a chart: its rows hold their numbers.
    """

    def __init__(self) -> None:
        self._specs: dict[bytes, int] = {}
        self._charts: list[dict[str, Any]] = []

    def add(self, chart: Chart) -> int:
        """Return the number under which the page's script finds the chart."""
        spec = self._specs.setdefault(msgspec.json.encode(chart.spec), len(self._specs))
        words: dict[str, int] = {}
        rows = [
            [words.setdefault(cell, len(words)) if isinstance(cell, str) else cell for cell in row]
            for row in chart.rows
        ]
        texts = [any(isinstance(row[at], str) for row in chart.rows) for at in range(len(chart.columns))]
        self._charts.append(
            {"spec": spec, "columns": chart.columns, "texts": texts, "words": list(words), "rows": rows}
        )
        return len(self._charts) - 1

    def to_json(self) -> Markup:
        """Return all charts as JSON that cannot end its HTML element."""
        whole = {"specs": [msgspec.Raw(spec) for spec in self._specs], "charts": self._charts}
        text = msgspec.json.encode(whole).decode("utf-8", "replace")
        return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


@lru_cache(maxsize=1)
def _load_vega_script() -> str:
    """Return the script of Vega, Vega-Lite and Vega-Embed, escaped for a script element."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed=vegaEmbed;")
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _read_resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _load_template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_read_resource("page.html.j2"))


def _build_security_policy(script: str, style: str) -> str:
    return (
        f"default-src 'none'; script-src {_hash_source(script)}; style-src {_hash_source(style)}; base-uri 'none'; "
        "form-action 'none'"
    )


def _hash_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
