"""One measurement of a contract and the clauses that share it: conducted once, judged clause by clause."""

from __future__ import annotations

from typing import Any

import msgspec

from pytest_ollama_perf.contract.clause import Clause
from pytest_ollama_perf.contract.require import Requirement, complaints
from pytest_ollama_perf.experiment import Experiment
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.trial import Lab, Trial
from pytest_ollama_perf.verdict.contract import judge_contract
from pytest_ollama_perf.verdict.words import Row, Verdict, Word


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """``model`` and ``name`` say where it stands, ``llama3.2:3b`` and ``4 at once``; ``line`` is that of its table.

    ``experiment`` measures, with every limit of ``clauses``; ``require`` must hold before it begins.
    """

    model: str
    name: str
    line: int
    experiment: Experiment
    clauses: tuple[Clause, ...]
    require: tuple[Requirement, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """The models it needs."""
        return self.experiment.models

    @property
    def gating(self) -> int:
        """How many numbers history may fail here: those with a regression clause."""
        return sum(clause.margin is not None for clause in self.clauses)

    def conduct(self, lab: Lab, test: str) -> Trial:
        """Measure, unless a precondition is broken.

        Raises:
            OllamaPerfError: nothing could be measured.
        """
        lab.admit = self._complaint
        return self.experiment.conduct(lab, test)

    def present(self, host: Any, test: str, trial: Trial) -> Any:
        """Return what a fixture would give; nobody asks a contract file."""
        return self.experiment.present(host, test, trial)

    def _complaint(self, run: Run) -> str:
        return complaints(self.require, run)


def judged(clause: Clause, trial: Trial, *, strict: bool) -> Verdict:
    """Return the verdict on one clause of the measurement ``trial``; what spoils that spoils every clause."""
    if trial.verdict.word in {Word.INVALID, Word.ABORTED} or not trial.loads:
        return trial.verdict
    if clause.limit is not None:
        first = trial.loads[0]
        return judge_contract(first.run, first.summary, [clause.limit], strict=strict)
    return _against_history(clause, trial)


def _against_history(clause: Clause, trial: Trial) -> Verdict:
    assert clause.margin is not None
    metric, _, stat = clause.margin[0].partition(".")
    compared = trial.compared
    if compared is None:
        return _told(trial, Word.NEW, "no baseline yet: save some runs with --ollama-save")
    found = [row for row in compared.rows if row.gating and (row.metric, row.stat) == (metric, stat)]
    if not found:
        return _told(trial, compared.word, compared.reason)
    return _told(trial, found[0].word, _reason(found[0], trial), (found[0],))


def _reason(row: Row, trial: Trial) -> str:
    """Return the row's own reason, with what the phases explain where it speaks for the whole comparison."""
    whole = trial.compared.reason if trial.compared else ""
    return whole if whole.startswith(row.reason) else row.reason


def _told(trial: Trial, word: Word, reason: str, rows: tuple[Row, ...] = ()) -> Verdict:
    regressed = word is Word.REGRESSED
    return msgspec.structs.replace(
        trial.verdict,
        word=word,
        reason=reason,
        rows=rows,
        accept=trial.verdict.accept if regressed else "",
        changed=trial.compared.changed if trial.compared and word is not Word.OK else (),
    )
