"""One measurement of a contract and the clauses that share it: conducted once, judged clause by clause."""

from __future__ import annotations

from typing import Any

import msgspec

from pytest_ollama_perf.contract.clause import Clause
from pytest_ollama_perf.contract.require import Requirement, complaints
from pytest_ollama_perf.experiment import Experiment
from pytest_ollama_perf.experiment.load import LoadTest
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.trial import Lab, Trial
from pytest_ollama_perf.verdict.contract import judge_contract
from pytest_ollama_perf.verdict.words import FAILING, Row, Verdict, Word, worst


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


def judged(clause: Clause, trial: Trial, experiment: Experiment, *, strict: bool) -> Verdict:
    """Return the verdict on one clause of ``trial``, what ``experiment`` measured; what spoils that spoils them all."""
    if trial.verdict.word in {Word.INVALID, Word.ABORTED} or not trial.loads:
        return trial.verdict
    if clause.held or not isinstance(experiment, LoadTest):
        return _of_experiment(clause, trial)
    if clause.limit is not None:
        first = trial.loads[0]
        return judge_contract(first.run, first.summary, [clause.limit], strict=strict)
    return _against_history(clause, trial)


def _of_experiment(clause: Clause, trial: Trial) -> Verdict:
    """Return what an experiment's own verdict holds of one clause; what no row explains speaks for every clause."""
    whole = trial.verdict
    held = [each for found in trial.findings for each in getattr(found, "held", ())]
    judged = [*((each.word, each.reason) for each in held), *((row.word, row.reason) for row in whole.rows)]
    if whole.word in FAILING and not any(word in FAILING for word, _ in judged):
        return whole
    rows = tuple(row for row in whole.rows if _states(row, clause))
    mine = [each for each in held if clause.held and each.name.partition(" (")[0] == clause.held]
    found = [*((each.word, each.reason) for each in mine), *((row.word, f"{row.where}: {row.reason}") for row in rows)]
    word = worst(tuple(word for word, _ in found))
    reason = next((reason for each, reason in found if each is word), f"{clause.name}: met throughout")
    return _told(trial, word, reason, rows)


def _states(row: Row, clause: Clause) -> bool:
    limit = clause.limit
    return limit is not None and (row.metric, row.stat, row.bound) == (limit.metric, limit.stat, limit.bound)


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
