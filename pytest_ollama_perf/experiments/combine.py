"""One verdict of several loads of one experiment, each of which says where it belongs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from pytest_ollama_perf.analysis.findings import BoundCheck, Finding
from pytest_ollama_perf.core.verdict import Problem, ProblemCode, Verdict, VerdictRow, VerdictStatus, get_worst_status
from pytest_ollama_perf.harness.evaluation import Evaluation


@dataclass(frozen=True)
class ExperimentPart:
    """One judged load and its position in the experiment: ``concurrency 4``."""

    where: str
    evaluation: Evaluation

    @property
    def verdict(self) -> Verdict:
        """The verdict on this part."""
        return self.evaluation.verdict


def combine_verdicts(parts: Sequence[ExperimentPart], *, summary: str, checks: Sequence[BoundCheck] = ()) -> Verdict:
    """Return the verdict on all parts and the limits ``checks`` against what they show together.

    The most severe status counts; ``summary`` is the reason if nothing is wrong. Rows which only say that no request
    failed are omitted, because the table of the experiment shows it. Hints are those of the last part, which had the
    highest load.
    """
    word = get_worst_status((*(part.verdict.word for part in parts), *(each.word for each in checks)))
    return Verdict(
        word=word,
        reason=_build_reason(word, parts, checks) or summary,
        rows=tuple(_list_rows(parts)),
        problems=tuple(_list_problems(parts)),
        hints=parts[-1].verdict.hints if parts else (),
        changed=tuple(dict.fromkeys(change for part in parts for change in part.verdict.changed)),
        accept=next((part.verdict.accept for part in parts if part.verdict.accept), ""),
        stored=max((part.verdict.stored for part in parts if part.verdict.stored is not None), default=None),
    )


def find_last_findings(parts: Sequence[ExperimentPart]) -> tuple[Finding, ...]:
    """Return the findings of the last load that has some, such as how several servers shared it."""
    return next((part.evaluation.findings for part in reversed(parts) if part.evaluation.findings), ())


def _build_reason(word: VerdictStatus, parts: Sequence[ExperimentPart], checks: Sequence[BoundCheck]) -> str:
    """Return the first reason as grave as ``word``; what a whole experiment promised speaks before its parts."""
    if word is VerdictStatus.OK:
        return ""
    reasons = [each.reason for each in checks if each.word is word]
    reasons += [f"{part.where}: {part.verdict.reason}" for part in parts if part.verdict.word is word]
    more = len(reasons) - 1
    return reasons[0] + (f" (and {more} more)" if more else "")


def _list_rows(parts: Sequence[ExperimentPart]) -> Iterable[VerdictRow]:
    for part in parts:
        for row in part.verdict.rows:
            if row.metric != "error_rate" or row.word is not VerdictStatus.OK:
                yield msgspec.structs.replace(row, where=part.where)


def _list_problems(parts: Sequence[ExperimentPart]) -> Iterable[Problem]:
    """Yield each problem once, with the places that have it in common."""
    found: dict[tuple[ProblemCode, bool], list[tuple[str, Problem]]] = {}
    for part in parts:
        for problem in part.verdict.problems:
            found.setdefault((problem.code, problem.invalidates), []).append((part.where, problem))
    for several in found.values():
        where, problem = several[0]
        more = f" (and at {len(several) - 1} more levels)" if len(several) > 2 else ""
        more = f" (and {several[1][0]})" if len(several) == 2 else more
        yield msgspec.structs.replace(problem, text=f"{where}: {problem.text}{more}")
