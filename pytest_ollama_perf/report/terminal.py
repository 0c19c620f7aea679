"""The section after the run and the header before it: lines with a style, computed without pytest or a terminal."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from types import MappingProxyType

import msgspec

from pytest_ollama_perf.report import facts
from pytest_ollama_perf.report.failure import command, explained, measured, noted, problems
from pytest_ollama_perf.report.findings import all_lines
from pytest_ollama_perf.report.layout import WIDTH, cells, clean, cut, cut_middle, wrap
from pytest_ollama_perf.report.matrix import matrix
from pytest_ollama_perf.report.result import TestResult
from pytest_ollama_perf.report.rows import INDENT, tables
from pytest_ollama_perf.verdict.words import FAILING, Word


class Style(str, enum.Enum):
    """What a line is; ``markup`` says how pytest's terminal writer may show it."""

    PLAIN = "plain"
    GOOD = "good"
    DOUBTFUL = "doubtful"
    BAD = "bad"
    QUIET = "quiet"

    @property
    def markup(self) -> dict[str, bool]:
        """Keyword arguments for ``TerminalWriter.line``."""
        return dict(_MARKUP[self])


_MARKUP = MappingProxyType(
    {
        Style.PLAIN: (),
        Style.GOOD: (("green", True),),
        Style.DOUBTFUL: (("yellow", True),),
        Style.BAD: (("red", True), ("bold", True)),
        Style.QUIET: (("light", True),),
    }
)
_DOUBTFUL = frozenset({Word.UNSURE, Word.INCOMPARABLE})
_GRAVITY = tuple(Word)


class Line(msgspec.Struct, frozen=True):
    """One line of text, without colour codes, and what it is."""

    text: str
    style: Style = Style.PLAIN


def header(server_version: str, urls: Sequence[str], models: Sequence[str], *, width: int = WIDTH) -> str:
    """Return the line of pytest's report header: server version, addresses without credentials, models."""
    version = clean(server_version, 60)
    server = f"ollama {version}" if version else "ollama"
    places = _few([facts.public_url(url) for url in urls], 2)
    what = _few([clean(model, 60) for model in models], 3)
    line = f"{server} at {places}" if places else server
    return cut(f"{line}: {what}" if what else line, width)


def _few(words: Sequence[str], most: int) -> str:
    shown = ", ".join(words[:most])
    return f"{shown} and {len(words) - most} more" if len(words) > most else shown


def section(results: Sequence[TestResult], *, verbosity: int, width: int = WIDTH) -> list[Line]:
    """Return the lines of the section after the run; none where no test fired a load.

    ``verbosity`` is pytest's: below 0 one line for everything, above 0 every number. No line is wider than ``width``,
    but for a single word of a command to copy.
    """
    if not results:
        return []
    if verbosity < 0:
        return [_one_line(results, width)]
    lines = [line for result in results for line in [*_block(result, verbosity, width), Line("")]]
    return [*lines, *_totals(results, width)]


def _style(word: Word) -> Style:
    return Style.BAD if word in FAILING else Style.DOUBTFUL if word in _DOUBTFUL else Style.GOOD


def _worst(results: Iterable[TestResult]) -> TestResult:
    return max(results, key=lambda result: _GRAVITY.index(result.verdict.word))


def _counts(results: Iterable[TestResult]) -> str:
    counted = Counter(result.verdict.word for result in results)
    return ", ".join(f"{counted[word]} {word.value}" for word in Word if counted[word])


def _one_line(results: Sequence[TestResult], width: int) -> Line:
    worst = _worst(results)
    text = f"ollama: {_counts(results)}"
    if worst.verdict.word in FAILING | _DOUBTFUL:
        text += f"; {cut_middle(_short_name(worst.test), 30)}: {clean(worst.verdict.reason)}"
    return Line(cut(text, width), _style(worst.verdict.word))


def _short_name(test: str) -> str:
    """Return a node id without its file and classes; a ``::`` inside the parameters is none of its own."""
    path, bracket, parameters = clean(test).partition("[")
    return path.rpartition("::")[2] + bracket + parameters


def _block(result: TestResult, verbosity: int, width: int) -> Iterator[Line]:
    word = result.verdict.word
    yield Line(_title(clean(result.test), word.value, width), _style(word))
    if word is not Word.OK or verbosity > 0:
        yield from _plain(wrap(clean(result.verdict.reason), width, INDENT, INDENT * 2))
    yield from _plain(_every_number(result, width) if verbosity > 0 else _main_numbers(result, width))
    yield from _plain(problems(result.verdict.problems, width))
    yield from _plain(noted("errors", facts.errors(result.loads), width))
    yield from _plain(explained(result.verdict, width))


def _plain(lines: Iterable[str]) -> Iterator[Line]:
    return (Line(line) for line in lines if line)


def _title(test: str, word: str, width: int) -> str:
    name = cut_middle(test, width - len(word) - 2)
    return name + " " * (width - cells(name) - len(word)) + word


def _main_numbers(result: TestResult, width: int) -> Iterable[str]:
    found = all_lines(result.findings, width)
    instead = any(not finding.beside_numbers for finding in result.findings)
    told = measured(result.loads, result.verdict.stored, width, numbers=not instead, together=instead)
    return [*found, *told]


def _every_number(result: TestResult, width: int) -> Iterator[str]:
    yield from tables(result.verdict.rows, width)
    yield from all_lines(result.findings, width)
    for index, load in enumerate(result.loads, 1):
        if len(result.loads) > 1:
            yield cut(f"{INDENT}load {index} of {len(result.loads)}: {', '.join(facts.size([load]))}", width)
        yield from matrix(load.summary, width)
    yield from measured(result.loads, result.verdict.stored, width, together=bool(result.findings))


def _totals(results: Sequence[TestResult], width: int) -> Iterator[Line]:
    worst = _worst(results).verdict.word
    yield Line(cut(_counts(results), width), _style(worst))
    if worst in FAILING:
        yield from _plain(command("again, with every number", "pytest --last-failed -v", width))
