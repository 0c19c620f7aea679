"""One run against its whole contract: limits, validity and hints in one verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pytest_ollama_perf.run import Run
from pytest_ollama_perf.summary import Summary
from pytest_ollama_perf.text import inert
from pytest_ollama_perf.verdict.absolute import everyone, judge_limit
from pytest_ollama_perf.verdict.hints import hints
from pytest_ollama_perf.verdict.limits import Limit
from pytest_ollama_perf.verdict.validity import problems
from pytest_ollama_perf.verdict.wording import count
from pytest_ollama_perf.verdict.words import Problem, Row, Verdict, Word, worst


def judge_contract(run: Run, summary: Summary, limits: Sequence[Limit], *, strict: bool = False) -> Verdict:
    """Return the verdict on ``run``: aborted before invalid before broken before unsure before ok.

    ``summary`` is that of ``run``. Without a measured request, and without a successful one, nothing is ever ``ok``.
    With ``strict`` the reason of an unsure verdict says that strict mode fails it.
    """
    rows = tuple(judge_limit(limit, run, summary) for limit in limits)
    found = problems(run, summary)
    word, reason = _decided(run, summary, rows, found)
    if strict and word is Word.UNSURE:
        reason += " (strict: unsure fails)"
    return Verdict(word=word, reason=reason, rows=rows, problems=found, hints=hints(run, summary))


def _decided(run: Run, summary: Summary, rows: Sequence[Row], found: Iterable[Problem]) -> tuple[Word, str]:
    if run.aborted:
        return Word.ABORTED, f"stopped after {count(summary.requests, 'request')}: {inert(run.aborted)}"
    if not summary.requests:
        return Word.INVALID, "no request was measured, so nothing can be said"
    spoiling = [problem for problem in found if problem.spoils]
    if spoiling:
        return Word.INVALID, f"not a valid measurement: {spoiling[0].text}" + _and_more(len(spoiling) - 1)
    word = worst(tuple(row.word for row in rows))
    if word is Word.OK and not summary.ok:
        return Word.BROKEN, f"{everyone(summary.requests)} failed: {_outcomes(summary)}"
    if word is Word.OK:
        return word, _fine(rows, summary)
    telling = [row for row in rows if row.word is word]
    return word, _telling(telling, summary) + _and_more(len(telling) - 1)


def _telling(rows: Sequence[Row], summary: Summary) -> str:
    """When requests failed, which failures they were says more than what they did to other numbers."""
    first = next((row for row in rows if row.metric == "error_rate" and summary.ok < summary.requests), rows[0])
    return f"{first.reason} ({_outcomes(summary)})" if first.metric == "error_rate" else first.reason


def _outcomes(summary: Summary) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in summary.outcomes.items() if outcome != "ok")


def _fine(rows: Sequence[Row], summary: Summary) -> str:
    measured = count(summary.requests, "request")
    return f"{count(len(rows), 'limit')} met over {measured}" if rows else f"{measured} measured, no limits given"


def _and_more(number: int) -> str:
    return f" (and {number} more)" if number > 0 else ""
