"""The section after the run and the header before it: lines with a style, computed without pytest or a terminal."""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby
from types import MappingProxyType

import msgspec

from pytest_ollama_perf.core.verdict import FAILING_STATUSES, Problem, ProblemCode, Verdict, VerdictStatus
from pytest_ollama_perf.harness.evaluation import MeasuredLoad, TestResult
from pytest_ollama_perf.metrics import format_count
from pytest_ollama_perf.report import facts
from pytest_ollama_perf.report.experiments import render_findings
from pytest_ollama_perf.report.tables import (
    DEFAULT_WIDTH,
    INDENT,
    clean,
    count_columns,
    format_judged_tables,
    format_metric_matrix,
    join_phrases,
    truncate,
    truncate_middle,
    wrap,
)

_HANGING = "    "
_MAX_LOADS_SHOWN = 4


def format_failure(result: TestResult, *, width: int = DEFAULT_WIDTH) -> str:
    """Return why ``result`` failed, in lines of at most ``width`` columns.

    The one line that may be longer holds a single word of a command to copy: a cut command would be a wrong one.
    """
    try:
        return "\n".join(_list_failure_lines(result, width))
    except Exception as error:  # a fault in the text must not hide the reason of the failure
        return "\n".join([*wrap(clean(result.verdict.reason), width, rest=INDENT), *_format_fault(error, width)])


def _format_fault(error: Exception, width: int) -> list[str]:
    """Return the note that the text of one test could not be built."""
    text = clean(f"{ProblemCode.REPORT_FAILED.label}: {type(error).__name__}: {error}", 200)
    return wrap(text, width, f"{INDENT}- ", _HANGING)


def _list_failure_lines(result: TestResult, width: int) -> list[str]:
    verdict = result.verdict
    lines = [*wrap(clean(verdict.reason), width, rest=INDENT), *format_judged_tables(verdict.rows, width)]
    lines += render_findings(result.findings, width)
    lines += format_problems(verdict.problems, width)
    if verdict.status is VerdictStatus.ABORTED and result.loads:
        lines += [f"{INDENT}measured until then:"]
    lines += describe_loads(result.loads, verdict.stored, width, together=bool(result.findings))
    lines += format_notes("errors", facts.describe_errors(result.loads), width)
    return [*lines, *format_advice(verdict, width)]


def format_problems(found: Iterable[Problem], width: int) -> list[str]:
    """Return what is wrong with the measurement; ``x`` marks what invalidates it."""
    lines = []
    for problem in found:
        first = f"{INDENT}{'x' if problem.invalidates else '-'} "
        lines += wrap(f"{clean(problem.name, 60)}: {clean(problem.text)}", width, first, _HANGING)
    return ["", *lines] if lines else []


def describe_loads(
    loads: Sequence[MeasuredLoad], stored: int | None, width: int, *, numbers: bool = False, together: bool = False
) -> list[str]:
    """Return how much was measured and where, with ``numbers`` also the main ones.

    Runs of one workload in one environment share their lines; an environment is shown once for all that follow in it.
    ``together`` says in one line how much it was: the table of an experiment has the loads one by one.
    """
    groups = [list(group) for _, group in groupby(loads, key=_build_group_key)]
    if together and len(groups) > 1:
        return _describe_loads_together(loads, stored, width)
    lines, shown_environment = [], [""]
    for group in groups[:_MAX_LOADS_SHOWN]:
        lines += join_phrases(facts.format_main_numbers(group), width, INDENT) if numbers else []
        lines += join_phrases(facts.describe_size(group, stored), width, INDENT)
        if (where := facts.describe_environment(group[0].run.fingerprint)) != shown_environment:
            lines += join_phrases(where, width, INDENT)
            shown_environment = where
        lines += join_phrases(facts.describe_telemetry(group), width, INDENT)
    if len(groups) > _MAX_LOADS_SHOWN:
        lines.append(
            f"{INDENT}and {format_count(len(groups) - _MAX_LOADS_SHOWN, 'more load')}; the JSON report has all"
        )
    return lines or [f"{INDENT}nothing was measured"]


def _describe_loads_together(loads: Sequence[MeasuredLoad], stored: int | None, width: int) -> list[str]:
    lines = join_phrases(facts.describe_total_size(loads, stored), width, INDENT)
    places = dict.fromkeys(tuple(facts.describe_environment(load.run.fingerprint)) for load in loads)
    for where in list(places)[:_MAX_LOADS_SHOWN]:
        lines += join_phrases(where, width, INDENT)
    return lines


def _build_group_key(load: MeasuredLoad) -> object:
    return msgspec.structs.replace(load.run.workload, salt=""), facts.describe_environment(load.run.fingerprint)


def format_advice(verdict: Verdict, width: int) -> list[str]:
    """Return what changed since the baseline, the hints and the command that accepts."""
    lines = format_notes("changed since the baseline", verdict.changed, width) + format_notes(
        "hint", (hint.text for hint in verdict.hints), width
    )
    return lines + (format_command("to accept", verdict.accept, width) if verdict.accept else [])


def format_notes(word: str, texts: Iterable[str], width: int) -> list[str]:
    """Return each text behind ``word:``, wrapped."""
    return [line for text in texts for line in wrap(f"{word}: {clean(text)}", width, INDENT, _HANGING)]


def format_command(word: str, text: str, width: int) -> list[str]:
    """Return a command to copy behind ``word:``, broken between words with a backslash, never inside one."""
    whole = f"{INDENT}{word}: {clean(text, 4000)}"
    if count_columns(whole) <= width:
        return [whole]
    lines, line = [f"{INDENT}{word}:"], ""
    for part in _split_command(clean(text, 4000)):
        if line and count_columns(_HANGING) + count_columns(line) + count_columns(part) + 3 > width:
            lines.append(f"{_HANGING}{line} \\")
            line = ""
        line = f"{line} {part}" if line else part
    return [*lines, f"{_HANGING}{line}"]


def _split_command(text: str) -> list[str]:
    """Split a command at spaces outside quotes, quotes kept."""
    return re.findall(r"""(?:[^\s"']|"[^"]*"|'[^']*'|["'])+""", text)


class LineStyle(str, enum.Enum):
    """What a line is; ``markup`` says how pytest's terminal writer may show it."""

    PLAIN = "plain"
    GOOD = "good"
    DOUBTFUL = "doubtful"
    BAD = "bad"
    QUIET = "quiet"

    @property
    def markup(self) -> dict[str, bool]:
        """Keyword arguments for ``TerminalWriter.line``."""
        return dict(_STYLE_MARKUP[self])


_STYLE_MARKUP = MappingProxyType(
    {
        LineStyle.PLAIN: (),
        LineStyle.GOOD: (("green", True),),
        LineStyle.DOUBTFUL: (("yellow", True),),
        LineStyle.BAD: (("red", True), ("bold", True)),
        LineStyle.QUIET: (("light", True),),
    }
)
_DOUBTFUL_STATUSES = frozenset({VerdictStatus.UNSURE, VerdictStatus.INCOMPARABLE})
_SEVERITY_ORDER = tuple(VerdictStatus)


class StyledLine(msgspec.Struct, frozen=True):
    """One line of text, without colour codes, and what it is."""

    text: str
    style: LineStyle = LineStyle.PLAIN


def format_header(
    server_version: str, urls: Sequence[str], models: Sequence[str], *, width: int = DEFAULT_WIDTH
) -> str:
    """Return the line of pytest's report header: server version, addresses without credentials, models."""
    version = clean(server_version, 60)
    server = f"ollama {version}" if version else "ollama"
    places = _join_first([facts.redact_url(url) for url in urls], 2)
    what = _join_first([clean(model, 60) for model in models], 3)
    line = f"{server} at {places}" if places else server
    return truncate(f"{line}: {what}" if what else line, width)


def _join_first(words: Sequence[str], most: int) -> str:
    shown = ", ".join(words[:most])
    return f"{shown} and {len(words) - most} more" if len(words) > most else shown


def build_section(
    results: Sequence[TestResult],
    *,
    verbosity: int,
    width: int = DEFAULT_WIDTH,
    explained: Collection[str] = (),
    rerun: str = "pytest --last-failed -v",
) -> list[StyledLine]:
    """Return the lines of the section after the run; none if no test generated a load.

    ``verbosity`` is pytest's: below 0 one line for everything, above 0 every number. A failing test of ``explained``,
    whose failure pytest has printed already, has one line. ``rerun`` is the command that shows every metric. No line
    is wider than ``width``, except for a single word of a command to copy.
    """
    if not results:
        return []
    if verbosity < 0:
        return [_build_one_line(results, width), *_list_damaged_records(results)]
    lines: list[StyledLine] = []
    for result in results:
        if verbosity == 0 and result.test in explained and result.verdict.status in FAILING_STATUSES:
            lines.append(_build_title(result, width))
        else:
            lines += [*_build_guarded_block(result, verbosity, width), StyledLine("")]
    if lines[-1].text:
        lines.append(StyledLine(""))
    return [*lines, *_build_totals(results, width, rerun)]


def _list_damaged_records(results: Iterable[TestResult]) -> list[StyledLine]:
    """Name every unreadable record once, also in quiet runs: the verdicts were reached without it."""
    found = (
        clean(problem.text)
        for result in results
        for problem in result.verdict.problems
        if problem.code is ProblemCode.DAMAGED_HISTORY
    )
    return [StyledLine(f"damaged history: {text}", LineStyle.DOUBTFUL) for text in dict.fromkeys(found)]


def _choose_style(word: VerdictStatus) -> LineStyle:
    return (
        LineStyle.BAD
        if word in FAILING_STATUSES
        else LineStyle.DOUBTFUL
        if word in _DOUBTFUL_STATUSES
        else LineStyle.GOOD
    )


def _find_worst(results: Iterable[TestResult]) -> TestResult:
    return max(results, key=lambda result: _SEVERITY_ORDER.index(result.verdict.status))


def _count_verdicts(results: Iterable[TestResult]) -> str:
    counted = Counter(result.verdict.status for result in results)
    return ", ".join(f"{counted[word]} {word.value}" for word in VerdictStatus if counted[word])


def _build_one_line(results: Sequence[TestResult], width: int) -> StyledLine:
    worst = _find_worst(results)
    text = f"ollama: {_count_verdicts(results)}"
    if worst.verdict.status in FAILING_STATUSES | _DOUBTFUL_STATUSES:
        text += f"; {truncate_middle(_shorten_test_name(worst.test), 30)}: {clean(worst.verdict.reason)}"
    return StyledLine(truncate(text, width), _choose_style(worst.verdict.status))


def _shorten_test_name(test: str) -> str:
    """Return a node id without its file and classes; a ``::`` inside the parameters does not count."""
    path, bracket, parameters = clean(test).partition("[")
    return path.rpartition("::")[2] + bracket + parameters


def _build_guarded_block(result: TestResult, verbosity: int, width: int) -> list[StyledLine]:
    """Return the block of one test; only its verdict if the rest cannot be built, so that other tests keep theirs."""
    try:
        return list(_build_block(result, verbosity, width))
    except Exception as error:
        reason = wrap(clean(result.verdict.reason), width, INDENT, INDENT * 2)
        return [_build_title(result, width), *_wrap_plain([*reason, *_format_fault(error, width)])]


def _build_block(result: TestResult, verbosity: int, width: int) -> Iterator[StyledLine]:
    word = result.verdict.status
    yield _build_title(result, width)
    if word is not VerdictStatus.OK or verbosity > 0:
        yield from _wrap_plain(wrap(clean(result.verdict.reason), width, INDENT, INDENT * 2))
    yield from _wrap_plain(_format_all_numbers(result, width) if verbosity > 0 else _format_main_lines(result, width))
    yield from _wrap_plain(format_problems(result.verdict.problems, width))
    yield from _wrap_plain(format_notes("errors", facts.describe_errors(result.loads), width))
    yield from _wrap_plain(format_advice(result.verdict, width))


def _wrap_plain(lines: Iterable[str]) -> Iterator[StyledLine]:
    return (StyledLine(line) for line in lines if line)


def _build_title(result: TestResult, width: int) -> StyledLine:
    word = result.verdict.status
    return StyledLine(_format_title(clean(result.test), word.value, width), _choose_style(word))


def _format_title(test: str, word: str, width: int) -> str:
    name = truncate_middle(test, width - len(word) - 2)
    return name + " " * (width - count_columns(name) - len(word)) + word


def _format_main_lines(result: TestResult, width: int) -> Iterable[str]:
    found = render_findings(result.findings, width)
    instead = any(not finding.supplements_metrics for finding in result.findings)
    loads_text = describe_loads(result.loads, result.verdict.stored, width, numbers=not instead, together=instead)
    return [*found, *loads_text]


def _format_all_numbers(result: TestResult, width: int) -> Iterator[str]:
    yield from format_judged_tables(result.verdict.rows, width)
    yield from render_findings(result.findings, width)
    for index, load in enumerate(result.loads, 1):
        if len(result.loads) > 1:
            yield truncate(
                f"{INDENT}load {index} of {len(result.loads)}: {', '.join(facts.describe_size([load]))}", width
            )
        yield from format_metric_matrix(load.summary, width)
    yield from describe_loads(result.loads, result.verdict.stored, width, together=bool(result.findings))


def _build_totals(results: Sequence[TestResult], width: int, rerun: str) -> Iterator[StyledLine]:
    worst = _find_worst(results).verdict.status
    yield StyledLine(truncate(_count_verdicts(results), width), _choose_style(worst))
    if worst in FAILING_STATUSES:
        yield from _wrap_plain(format_command("rerun with all metrics", rerun, width))
