"""The report as Markdown for pull requests and job summaries: a table of the tests, then the details of each.

Text from servers and users is escaped, or is in a code block whose fence is longer than any in it. The size is
bounded: what does not fit is dropped from the end, passing tests first, and the report says how much that was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from pytest_ollama_perf.core.verdict import FAILING_STATUSES, VerdictStatus
from pytest_ollama_perf.harness.evaluation import TestResult
from pytest_ollama_perf.metrics import format_count, format_label, format_percent, format_value
from pytest_ollama_perf.report.document import Document, RowEntry, TestEntry
from pytest_ollama_perf.report.series import MetricPoint, select_medians
from pytest_ollama_perf.report.tables import clean

MAX_COMMENT_BYTES = 60_000
"""Bytes that fit a comment: GitHub takes 65 536 characters, other forges more."""

MAX_JOB_SUMMARY_BYTES = 900_000
"""Bytes that fit GitHub's job summary: it takes 1 MiB a step, and shows nothing of a larger one."""

_TONE_MARKS = {"bad": "❌", "doubtful": "⚠️", "good": "✅"}
_FOOTER_BYTES = 200
_MAIN_METRICS = ("tps", "ttft", "latency", "throughput", "error_rate")


def format_comment(document: Document) -> bytes:
    """Return the report as it fits a comment."""
    return format_markdown(document, MAX_COMMENT_BYTES)


def format_markdown(document: Document, limit: int) -> bytes:
    """Return the report in at most ``limit`` bytes of UTF-8, at least 1000."""
    head = [f"## {_choose_mark(_find_worst_verdict(document))} Performance: {_count_verdicts(document)}", ""]
    if document.aborted:
        head += [f"The session ended early: {escape_inline(document.aborted)}", ""]
    head += _list_environments(document)
    rows, lost_rows = _take_fitting_blocks(_build_table_rows(document), limit // 2 - _count_bytes(head))
    table = ["| | test | verdict | numbers |", "| --- | --- | --- | --- |", *rows] if rows else []
    details, lost = _take_fitting_blocks(
        _build_details(document), limit - _count_bytes([*head, *table]) - _FOOTER_BYTES
    )
    whole = [
        *head,
        *table,
        *_format_omitted(lost_rows, "test"),
        "",
        *details,
        *_format_omitted(lost, "test", "details of "),
    ]
    return ("\n".join(whole).rstrip("\n") + "\n").encode("utf-8", "replace")


def _take_fitting_blocks(blocks: Iterable[str], left: int) -> tuple[list[str], int]:
    """Return the first blocks that fit ``left`` bytes, and how many do not."""
    all_blocks = list(blocks)
    kept: list[str] = []
    for block in all_blocks:
        left -= _count_bytes([block])
        if left < 0:
            break
        kept.append(block)
    return kept, len(all_blocks) - len(kept)


def _count_bytes(lines: Iterable[str]) -> int:
    return sum(len(line.encode("utf-8", "replace")) + 1 for line in lines)


def _format_omitted(lost: int, noun: str, what: str = "") -> list[str]:
    return (
        ["", f"... and {what}{format_count(lost, f'more {noun}')}: the JSON and HTML reports have everything."]
        if lost
        else []
    )


def _find_worst_verdict(document: Document) -> VerdictStatus:
    return max((test.verdict for test in document.tests), key=tuple(VerdictStatus).index, default=VerdictStatus.OK)


def _choose_mark(word: VerdictStatus) -> str:
    if word in FAILING_STATUSES:
        return _TONE_MARKS["bad"]
    return _TONE_MARKS["doubtful" if word in {VerdictStatus.UNSURE, VerdictStatus.INCOMPARABLE} else "good"]


def _count_verdicts(document: Document) -> str:
    words = [test.verdict for test in document.tests]
    return (
        ", ".join(f"{words.count(word)} {word.value}" for word in VerdictStatus if word in words)
        or "no test generated a load"
    )


def _list_environments(document: Document) -> list[str]:
    found = dict.fromkeys(
        f"ollama {prints.server_version or 'unknown'}, {prints.model or load.model} {prints.quantization}".strip()
        for test in document.tests
        for load in test.loads
        for prints in (load.fingerprint,)
    )
    shown = [escape_inline(text, 120) for text in list(found)[:5]]
    more = [f"and {len(found) - len(shown)} more"] if len(found) > len(shown) else []
    return ["; ".join([*shown, *more]), ""] if shown else []


def _sort_by_severity(document: Document) -> list[tuple[int, TestEntry]]:
    """Return the tests with their index in the document, the most severe verdict first."""
    return sorted(enumerate(document.tests), key=lambda each: -tuple(VerdictStatus).index(each[1].verdict))


def _build_table_rows(document: Document) -> Iterator[str]:
    numbers: dict[int, list[MetricPoint]] = {}
    for number in select_medians(document):
        numbers.setdefault(number.place[0], []).append(number)
    for index, test in _sort_by_severity(document):
        main = _format_main_values(numbers.get(index, []))
        cells = (_choose_mark(test.verdict), escape_inline(test.test, 200), test.verdict.value, main)
        yield f"| {' | '.join(cells)} |"


def _format_main_values(numbers: Sequence[MetricPoint]) -> str:
    """Return the numbers to see first; a test of several loads has no common ones."""
    if len({number.place for number in numbers}) != 1:
        return ""
    shown = {(number.metric, number.stat): number.value for number in numbers}
    wanted = [(metric, stat) for metric in _MAIN_METRICS for stat in ("", "p50") if (metric, stat) in shown]
    known = [(metric, stat) for metric, stat in wanted if not stat or (metric, "") not in shown]
    return ", ".join(
        f"{escape_inline(format_label(metric, stat))} {format_value(metric, shown[metric, stat])}"
        for metric, stat in known
    )


def _build_details(document: Document) -> Iterator[str]:
    for _, test in _sort_by_severity(document):
        lines = [
            *_format_reason(test),
            *_build_judged_table(test.rows),
            *_build_finding_blocks(test),
            *_format_advice(test),
        ]
        opened = " open" if test.verdict in FAILING_STATUSES else ""
        summary = (
            f"<summary>{_choose_mark(test.verdict)} {_escape_html(clean(test.test, 300))}: "
            f"{test.verdict.value}</summary>"
        )
        yield "\n".join([f"<details{opened}>", summary, "", *lines, "</details>", ""])


def _format_reason(test: TestEntry) -> list[str]:
    problems = (f"- {escape_inline(problem.name)}: {escape_inline(problem.text)}" for problem in test.problems)
    reason = [f"**{escape_inline(test.reason)}**", ""] if test.reason else []
    return [*reason, *problems, ""] if test.problems else reason


def _build_judged_table(rows: Sequence[RowEntry]) -> list[str]:
    if not rows:
        return []
    head = ["| number | now | limit or baseline | change | margin | verdict |", "| --- | --: | --: | --: | --: | --- |"]
    return [*head, *map(_build_judged_row, rows), ""]


def _build_judged_row(row: RowEntry) -> str:
    against = (
        f"{row.op} {format_value(row.metric, row.bound)}"
        if row.bound is not None
        else format_value(row.metric, row.baseline)
    )
    where = f", {clean(row.where, 60)}" if row.where else ""
    cells = (
        escape_inline(format_label(row.metric, row.stat) + where),
        "inf" if row.value is None else format_value(row.metric, row.value),
        escape_inline(against),
        "" if row.change is None else format_percent(row.change, signed=True),
        "" if row.margin is None else format_percent(row.margin),
        row.status.value if row.gating else f"{row.status.value} (not gating)",
    )
    return f"| {' | '.join(cells)} |"


def _build_finding_blocks(test: TestEntry) -> Iterator[str]:
    for finding in test.findings:
        if lines := finding.get("text"):
            yield from (format_code_block("\n".join(map(str, lines))), "")


def _format_advice(test: TestEntry) -> Iterator[str]:
    yield from (f"- changed since the baseline: {escape_inline(change)}" for change in test.changed)
    yield from (f"- hint: {escape_inline(hint.text)}" for hint in test.hints)
    if test.accept:
        yield from ("", "To accept:", "", format_code_block(clean(test.accept, 4000)))
    yield ""


def escape_inline(text: str, limit: int = 600) -> str:
    """Return ``text`` on one line so that Markdown shows it as it is: no markup, link, mention or cell border."""
    return _escape_html(re.sub(r"([\\`*_{}\[\]()!+|~$])", r"\\\1", clean(text, limit)))


def _escape_html(text: str) -> str:
    """Return ``text`` as HTML; empty comments keep it from becoming a mention, a reference or a link."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"(?i)([@#]|https?(?=:)|www(?=\.))", r"\1<!-- -->", escaped)


def format_code_block(text: str) -> str:
    """Return ``text`` in a code block that it cannot end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def format_annotation(result: TestResult, file: str, line: int | None) -> str:
    """Return the workflow command that shows ``result`` as an error at ``file``, relative to the repository, and
    ``line``, counted from 1."""
    place = f"file={_escape_property(file)}," + (f"line={line}," if line is not None else "")
    word = result.verdict.status.value
    message = "\n".join([result.verdict.reason, *(f"hint: {hint.text}" for hint in result.verdict.hints)])
    return f"::error {place}title={_escape_property(f'{word}: {clean(result.test, 200)}')}::{_escape_message(message)}"


def _escape_message(text: str) -> str:
    """Return ``text`` as the data of a workflow command, which ends at the end of its line."""
    cleaned = "\n".join(clean(line) for line in text.splitlines())
    return cleaned.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escape_property(text: str) -> str:
    return _escape_message(clean(text, 400)).replace(":", "%3A").replace(",", "%2C")
