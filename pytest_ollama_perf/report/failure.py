"""The text of a failing test: the reason alone on its first line, the numbers, what was measured, what to do next."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import msgspec

from pytest_ollama_perf.report import facts
from pytest_ollama_perf.report.findings import all_lines
from pytest_ollama_perf.report.layout import WIDTH, cells, clean, cut, join_phrases, table, wrap
from pytest_ollama_perf.report.result import LoadResult, TestResult
from pytest_ollama_perf.verdict.wording import count, label, number, percent, show
from pytest_ollama_perf.verdict.words import FAILING, Problem, Row, Verdict, Word

INDENT = "  "
_HANGING = "    "
_LOADS_SHOWN = 4


def failure_text(result: TestResult, *, width: int = WIDTH) -> str:
    """Return why ``result`` failed, in lines of at most ``width`` columns.

    The one line that may be longer holds a single word of a command to copy: a cut command would be a wrong one.
    """
    verdict = result.verdict
    lines = [*wrap(clean(verdict.reason), width, rest=INDENT), *tables(verdict.rows, width)]
    lines += all_lines(result.findings, width)
    lines += problems(verdict.problems, width)
    if verdict.word is Word.ABORTED and result.loads:
        lines += [f"{INDENT}measured until then:"]
    lines += measured(result.loads, verdict.stored, width)
    lines += noted("errors", facts.errors(result.loads), width)
    lines += explained(verdict, width)
    return "\n".join(lines)


def tables(rows: Sequence[Row], width: int) -> list[str]:
    """Return the judged numbers: one table of those against a limit, one of those against the history."""
    limits = [row for row in rows if row.bound is not None]
    history = [row for row in rows if row.bound is None]
    lines = []
    if limits:
        lines += ["", *_table([("", "limit", "now", "95% CI"), *_limit_cells(limits)], width)]
    if history:
        lines += ["", *_table([("", "baseline", "now", "change", "95% CI", "margin"), *_history_cells(history)], width)]
    return lines


def _table(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Set ``rows`` with the widest gap that fits; numbers beyond all reason are cut."""
    drawn = (table(rows, gap) for gap in (4, 3, 2, 1))
    fitting = (lines for lines in drawn if max(map(cells, lines)) <= width)
    return next(fitting, None) or [cut(line, width) for line in table(rows, 1)]


def _name(row: Row) -> str:
    unsure = row.word in {Word.UNSURE, Word.INCOMPARABLE}
    mark = "x" if row.gating and row.word in FAILING else "?" if row.gating and unsure else " "
    return f"{INDENT}{mark} {label(row.metric, row.stat)}"


def _limit_cells(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    intervals = _intervals([_ends(row) for row in rows])
    for row, interval in zip(rows, intervals, strict=True):
        yield _name(row), f"{row.op} {show(row.metric, row.bound)}", show(row.metric, row.value), interval


def _history_cells(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    intervals = _intervals([_change_ends(row) for row in rows])
    for row, interval in zip(rows, intervals, strict=True):
        baseline, now = show(row.metric, row.baseline), show(row.metric, row.value)
        yield _name(row), baseline, now, _tight(row.change), interval, _tight(row.margin)


def _tight(share: float | None) -> str:
    return "-" if share is None else percent(share, signed=True).replace(" ", "")


def _ends(row: Row) -> tuple[str, str]:
    """Return both ends of the interval; the first without its unit where the second has the same."""
    if row.low is None or row.high is None:
        return "", ""
    low, high = show(row.metric, row.low), show(row.metric, row.high)
    same = low.partition(" ")[2] == high.partition(" ")[2]
    return low.partition(" ")[0] if same else low, high


def _change_ends(row: Row) -> tuple[str, str]:
    if row.low is None or row.high is None:
        return "", ""
    return _signed(row.low), f"{_signed(row.high)}%"


def _signed(share: float) -> str:
    return (
        percent(share, signed=True)[:-2] if math.isinf(share) else f"{'' if share < 0 else '+'}{number(share * 100, 2)}"
    )


def _intervals(ends: Sequence[tuple[str, str]]) -> list[str]:
    """Return intervals whose ends stand under each other."""
    low_width, high_width = (max(len(pair[end]) for pair in ends) for end in (0, 1))
    return [f"{low:>{low_width}} .. {high:>{high_width}}" if high else "-" for low, high in ends]


def problems(found: Iterable[Problem], width: int) -> list[str]:
    """Return what makes the measurement less than it seems; ``x`` marks what spoils it."""
    lines = []
    for problem in found:
        first = f"{INDENT}{'x' if problem.spoils else '-'} "
        lines += wrap(f"{clean(problem.name, 60)}: {clean(problem.text)}", width, first, _HANGING)
    return ["", *lines] if lines else []


def measured(loads: Sequence[LoadResult], stored: int | None, width: int, *, numbers: bool = False) -> list[str]:
    """Return how much was measured and where, with ``numbers`` also the main ones.

    Runs of one workload in one environment share their lines; an environment is said once for all that follow in it.
    """
    groups = [list(group) for _, group in groupby(loads, key=_alike)]
    lines, said = [], [""]
    for group in groups[:_LOADS_SHOWN]:
        lines += join_phrases(facts.main_numbers(group), width, INDENT) if numbers else []
        lines += join_phrases(facts.size(group, stored), width, INDENT)
        if (where := facts.environment(group[0].run.fingerprint)) != said:
            lines += join_phrases(where, width, INDENT)
            said = where
    if len(groups) > _LOADS_SHOWN:
        lines.append(f"{INDENT}and {count(len(groups) - _LOADS_SHOWN, 'more load')}; the JSON report has all")
    return lines or [f"{INDENT}nothing was measured"]


def _alike(load: LoadResult) -> object:
    return msgspec.structs.replace(load.run.workload, salt=""), facts.environment(load.run.fingerprint)


def explained(verdict: Verdict, width: int) -> list[str]:
    """Return what changed since the baseline, the hints and the command that accepts."""
    lines = noted("changed since the baseline", verdict.changed, width) + noted("hint", verdict.hints, width)
    return lines + (command("to accept", verdict.accept, width) if verdict.accept else [])


def noted(word: str, texts: Iterable[str], width: int) -> list[str]:
    """Return each text behind ``word:``, wrapped."""
    return [line for text in texts for line in wrap(f"{word}: {clean(text)}", width, INDENT, _HANGING)]


def command(word: str, text: str, width: int) -> list[str]:
    """Return a command to copy behind ``word:``, broken between words with a backslash, never inside one."""
    whole = f"{INDENT}{word}: {clean(text, 4000)}"
    if cells(whole) <= width:
        return [whole]
    lines, line = [f"{INDENT}{word}:"], ""
    for part in _words(clean(text, 4000)):
        if line and cells(_HANGING) + cells(line) + cells(part) + 3 > width:
            lines.append(f"{_HANGING}{line} \\")
            line = ""
        line = f"{line} {part}" if line else part
    return [*lines, f"{_HANGING}{line}"]


def _words(text: str) -> list[str]:
    """Split a command at spaces outside quotes, quotes kept."""
    return re.findall(r"""(?:[^\s"']|"[^"]*"|'[^']*'|["'])+""", text)
