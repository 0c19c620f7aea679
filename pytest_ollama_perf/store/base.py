"""What a history must be able to do, whoever keeps it: files in a directory or a database that a team shares."""

from __future__ import annotations

import hashlib
import re
from typing import Protocol

from pytest_ollama_perf.analysis.epochs import Acceptance, RunKind, StoredRuns
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.store.files import escape_surrogates

HISTORY_LIMIT = 20
"""How many runs of a test make its history."""


class Store(Protocol):
    """A history of runs. Every method raises ``StoreError`` where the whole store cannot be read or written.

    Records are immutable: nothing that was added is ever changed. Many processes may use one store at once.
    """

    @property
    def name(self) -> str:
        """How to call this store in a message; shows no credentials."""

    def add(self, run: Run, kind: RunKind = RunKind.SAVED) -> None:
        """Keep ``run`` for good or not at all; adding the same run again changes nothing."""

    def read_history(self, test: str, *, identity: str | None = None, limit: int | None = HISTORY_LIMIT) -> StoredRuns:
        """Return the newest saved and accepted runs of ``test``, and of one workload where ``identity`` names it."""

    def read_pending(self, test: str, *, limit: int | None = HISTORY_LIMIT) -> StoredRuns:
        """Return the newest runs that were judged regressed and that nobody has accepted."""

    def accept(self, test: str, *, why: str, who: str, at: float) -> Acceptance:
        """Start a new epoch at ``at`` (Unix seconds) with the pending runs of the newest regressed session."""

    def list_tests(self) -> tuple[str, ...]:
        """Return the node ids of all tests with a run, sorted."""

    def read_run(self, run_id: str) -> Run | None:
        """Return one run, saved or regressed; ``None`` where there is none."""

    def find_run_ids(self, beginning: str) -> tuple[str, ...]:
        """Return the ids of all runs that begin so, sorted."""

    def close(self) -> None:
        """Give back what the store holds open."""


def find_newest_session(pending: StoredRuns) -> tuple[str, ...]:
    """Return the ids of the pending runs that the newest regressed session left, oldest first."""
    if not pending.runs:
        return ()
    session = pending.runs[-1].session
    return tuple(run.id for run in pending.runs if run.session == session)


def to_slug(run_id: str) -> str:
    """Return ``run_id`` as part of a file name or key: itself where it can be one, else its hash."""
    safe = re.fullmatch(r"[A-Za-z0-9_-]{1,64}", run_id)
    return run_id if safe else hashlib.sha256(escape_surrogates(run_id).encode()).hexdigest()[:32]
