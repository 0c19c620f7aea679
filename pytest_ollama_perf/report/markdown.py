"""The report as Markdown for pull requests and job summaries: a table of the tests, then the details of each.

Text from servers and people is escaped, or stands in a code block whose fence is longer than any in it. The size is
bounded: what does not fit is dropped from the end, passing tests first, and the report says how much that was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from pytest_ollama_perf.report.json_report import Document, RowEntry, TestEntry
from pytest_ollama_perf.report.layout import clean
from pytest_ollama_perf.report.numbers import Number, medians
from pytest_ollama_perf.verdict.wording import count, label, percent, show
from pytest_ollama_perf.verdict.words import FAILING, Word

COMMENT = 60_000
"""Bytes that fit a comment: GitHub takes 65 536 characters, other forges more."""

SUMMARY = 900_000
"""Bytes that fit GitHub's job summary: it takes 1 MiB a step, and shows nothing of a larger one."""

_MARKS = {"bad": "❌", "doubtful": "⚠️", "good": "✅"}
_ROOM_FOR_REST = 200
_FIRST = ("tps", "ttft", "latency", "throughput", "error_rate")


def comment(document: Document) -> bytes:
    """Return the report as it fits a comment."""
    return markdown(document, COMMENT)


def markdown(document: Document, limit: int) -> bytes:
    """Return the report in at most ``limit`` bytes of UTF-8, at least 1000."""
    head = [f"## {_mark(_gravest(document))} Performance: {_counts(document)}", ""]
    if document.aborted:
        head += [f"The session ended early: {inline(document.aborted)}", ""]
    head += _environments(document)
    rows, lost_rows = _fitting(_rows(document), limit // 2 - _size(head))
    table = ["| | test | verdict | numbers |", "| --- | --- | --- | --- |", *rows] if rows else []
    details, lost = _fitting(_details(document), limit - _size([*head, *table]) - _ROOM_FOR_REST)
    whole = [*head, *table, *_rest(lost_rows, "test"), "", *details, *_rest(lost, "test", "details of ")]
    return ("\n".join(whole).rstrip("\n") + "\n").encode("utf-8", "replace")


def _fitting(blocks: Iterable[str], room: int) -> tuple[list[str], int]:
    """Return the first blocks that fit ``room`` bytes, and how many do not."""
    all_blocks = list(blocks)
    kept: list[str] = []
    for block in all_blocks:
        room -= _size([block])
        if room < 0:
            break
        kept.append(block)
    return kept, len(all_blocks) - len(kept)


def _size(lines: Iterable[str]) -> int:
    return sum(len(line.encode("utf-8", "replace")) + 1 for line in lines)


def _rest(lost: int, noun: str, what: str = "") -> list[str]:
    return (
        ["", f"... and {what}{count(lost, f'more {noun}')}: the JSON and HTML reports have everything."] if lost else []
    )


def _gravest(document: Document) -> Word:
    return max((test.verdict for test in document.tests), key=tuple(Word).index, default=Word.OK)


def _mark(word: Word) -> str:
    if word in FAILING:
        return _MARKS["bad"]
    return _MARKS["doubtful" if word in {Word.UNSURE, Word.INCOMPARABLE} else "good"]


def _counts(document: Document) -> str:
    words = [test.verdict for test in document.tests]
    return ", ".join(f"{words.count(word)} {word.value}" for word in Word if word in words) or "no test fired a load"


def _environments(document: Document) -> list[str]:
    found = dict.fromkeys(
        f"ollama {prints.server_version or 'unknown'}, {prints.model or load.model} {prints.quantization}".strip()
        for test in document.tests
        for load in test.loads
        for prints in (load.fingerprint,)
    )
    shown = [inline(text, 120) for text in list(found)[:5]]
    more = [f"and {len(found) - len(shown)} more"] if len(found) > len(shown) else []
    return ["; ".join([*shown, *more]), ""] if shown else []


def _in_order(document: Document) -> list[TestEntry]:
    """Return the tests, the gravest first."""
    return sorted(document.tests, key=lambda test: -tuple(Word).index(test.verdict))


def _rows(document: Document) -> Iterator[str]:
    numbers: dict[str, list[Number]] = {}
    for number in medians(document):
        numbers.setdefault(number.test, []).append(number)
    for test in _in_order(document):
        main = _main(numbers.get(clean(test.test), []))
        cells = (_mark(test.verdict), inline(test.test, 200), test.verdict.value, main)
        yield f"| {' | '.join(cells)} |"


def _main(numbers: Sequence[Number]) -> str:
    """Return the numbers to see first; a test of several loads has none that stand for all of them."""
    if len({number.load for number in numbers}) != 1:
        return ""
    shown = {(number.metric, number.stat): number.value for number in numbers}
    wanted = [(metric, stat) for metric in _FIRST for stat in ("", "p50") if (metric, stat) in shown]
    known = [(metric, stat) for metric, stat in wanted if not stat or (metric, "") not in shown]
    return ", ".join(f"{inline(label(metric, stat))} {show(metric, shown[metric, stat])}" for metric, stat in known)


def _details(document: Document) -> Iterator[str]:
    for test in _in_order(document):
        lines = [*_why(test), *_table(test.rows), *_findings(test), *_explained(test)]
        opened = " open" if test.verdict in FAILING else ""
        summary = f"<summary>{_mark(test.verdict)} {_html(clean(test.test, 300))}: {test.verdict.value}</summary>"
        yield "\n".join([f"<details{opened}>", summary, "", *lines, "</details>", ""])


def _why(test: TestEntry) -> list[str]:
    problems = (f"- {inline(problem.name)}: {inline(problem.text)}" for problem in test.problems)
    reason = [f"**{inline(test.reason)}**", ""] if test.reason else []
    return [*reason, *problems, ""] if test.problems else reason


def _table(rows: Sequence[RowEntry]) -> list[str]:
    if not rows:
        return []
    head = ["| number | now | limit or baseline | change | margin | verdict |", "| --- | --: | --: | --: | --: | --- |"]
    return [*head, *map(_judged, rows), ""]


def _judged(row: RowEntry) -> str:
    against = f"{row.op} {show(row.metric, row.bound)}" if row.bound is not None else show(row.metric, row.baseline)
    where = f", {clean(row.where, 60)}" if row.where else ""
    cells = (
        inline(label(row.metric, row.stat) + where),
        "inf" if row.value is None else show(row.metric, row.value),
        inline(against),
        "" if row.change is None else percent(row.change, signed=True),
        "" if row.margin is None else percent(row.margin),
        row.word.value if row.gating else f"{row.word.value} (not gating)",
    )
    return f"| {' | '.join(cells)} |"


def _findings(test: TestEntry) -> Iterator[str]:
    for finding in test.findings:
        if lines := finding.get("text"):
            yield from (block("\n".join(map(str, lines))), "")


def _explained(test: TestEntry) -> Iterator[str]:
    yield from (f"- changed since the baseline: {inline(change)}" for change in test.changed)
    yield from (f"- hint: {inline(hint)}" for hint in test.hints)
    if test.accept:
        yield from ("", "To accept:", "", block(clean(test.accept, 4000)))
    yield ""


def inline(text: str, limit: int = 600) -> str:
    """Return ``text`` on one line so that Markdown shows it as it is: no markup, link, mention or cell border."""
    return _html(re.sub(r"([\\`*_{}\[\]()!+|~$])", r"\\\1", clean(text, limit)))


def _html(text: str) -> str:
    """Return ``text`` as HTML; empty comments keep it from becoming a mention, a reference or a link."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"(?i)([@#]|https?(?=:)|www(?=\.))", r"\1<!-- -->", escaped)


def block(text: str) -> str:
    """Return ``text`` in a code block that it cannot end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
