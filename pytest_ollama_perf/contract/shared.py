"""The measurement that the clauses of a group share: made for the first clause that runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from pytest_ollama_perf.contract.clause import Clause
from pytest_ollama_perf.contract.group import Group, judged
from pytest_ollama_perf.experiment import Experiment
from pytest_ollama_perf.settings import Settings
from pytest_ollama_perf.trial import Trial
from pytest_ollama_perf.verdict.words import Verdict


class Host(Protocol):
    """Who measures, keeps what was measured, and fails the running test."""

    @property
    def settings(self) -> Settings: ...

    def measure(self, experiment: Experiment, test: str) -> Trial:
        """Return what the experiment measured, also where that is nothing; whatever interrupts it passes through."""

    def keep_these(self, test: str, trials: Iterable[Trial]) -> None: ...

    def fail_if_bad(self, test: str, trial: Trial) -> None: ...


class SharedLoad:
    """One group of a contract file in one session. ``test`` is what its run is called in the history and in reports."""

    def __init__(self, host: Host, test: str, group: Group) -> None:
        self.group = group
        self._host, self.test = host, test
        self._trial: Trial | None = None
        self._judged: set[str] = set()
        self._kept: dict[str, Trial] = {}

    def judge(self, clause: Clause, test: str) -> None:
        """Judge ``clause`` for the item ``test`` and fail that where it is broken.

        A clause that is judged a second time is being run again, and so measured again.
        """
        if self._trial is None or clause.name in self._judged:
            self._trial = self._host.measure(self.group, self.test)
            self._judged.clear()
            self._kept = {name: Trial(kept.verdict) for name, kept in self._kept.items()}
        trial = replace(self._trial, verdict=self._verdict(clause, self._trial))
        # The loads and findings are reported once, beside the verdicts of all clauses.
        self._kept[clause.name] = Trial(trial.verdict) if self._judged else trial
        self._judged.add(clause.name)
        self._host.keep_these(self.test, self._kept.values())
        self._host.fail_if_bad(test, trial)

    def _verdict(self, clause: Clause, trial: Trial) -> Verdict:
        return judged(clause, trial, self.group.experiment, strict=self._host.settings.strict)
