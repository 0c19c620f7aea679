"""The text of a failing test: the reason alone on its first line, the numbers, what was measured, what to do next."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

import msgspec

from pytest_ollama_perf.report import facts
from pytest_ollama_perf.report.findings import all_lines
from pytest_ollama_perf.report.layout import WIDTH, cells, clean, join_phrases, wrap
from pytest_ollama_perf.report.result import LoadResult, TestResult
from pytest_ollama_perf.report.rows import INDENT, tables
from pytest_ollama_perf.verdict.wording import count
from pytest_ollama_perf.verdict.words import Problem, Verdict, Word

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
    lines += measured(result.loads, verdict.stored, width, together=bool(result.findings))
    lines += noted("errors", facts.errors(result.loads), width)
    lines += explained(verdict, width)
    return "\n".join(lines)


def problems(found: Iterable[Problem], width: int) -> list[str]:
    """Return what makes the measurement less than it seems; ``x`` marks what spoils it."""
    lines = []
    for problem in found:
        first = f"{INDENT}{'x' if problem.spoils else '-'} "
        lines += wrap(f"{clean(problem.name, 60)}: {clean(problem.text)}", width, first, _HANGING)
    return ["", *lines] if lines else []


def measured(
    loads: Sequence[LoadResult], stored: int | None, width: int, *, numbers: bool = False, together: bool = False
) -> list[str]:
    """Return how much was measured and where, with ``numbers`` also the main ones.

    Runs of one workload in one environment share their lines; an environment is said once for all that follow in it.
    ``together`` says in one line how much it was: the table of an experiment has the loads one by one.
    """
    groups = [list(group) for _, group in groupby(loads, key=_alike)]
    if together and len(groups) > 1:
        return _together(loads, stored, width)
    lines, said = [], [""]
    for group in groups[:_LOADS_SHOWN]:
        lines += join_phrases(facts.main_numbers(group), width, INDENT) if numbers else []
        lines += join_phrases(facts.size(group, stored), width, INDENT)
        if (where := facts.environment(group[0].run.fingerprint)) != said:
            lines += join_phrases(where, width, INDENT)
            said = where
        lines += join_phrases(facts.telemetry(group), width, INDENT)
    if len(groups) > _LOADS_SHOWN:
        lines.append(f"{INDENT}and {count(len(groups) - _LOADS_SHOWN, 'more load')}; the JSON report has all")
    return lines or [f"{INDENT}nothing was measured"]


def _together(loads: Sequence[LoadResult], stored: int | None, width: int) -> list[str]:
    lines = join_phrases(facts.altogether(loads, stored), width, INDENT)
    places = dict.fromkeys(tuple(facts.environment(load.run.fingerprint)) for load in loads)
    for where in list(places)[:_LOADS_SHOWN]:
        lines += join_phrases(where, width, INDENT)
    return lines


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
