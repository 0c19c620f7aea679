"""The interface of a history, and what a directory and a database share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from typing import Protocol

import msgspec

from pytest_ollama_perf.analysis.epochs import Acceptance, RunKind, StoredRuns, is_comparable
from pytest_ollama_perf.core import NewerSchemaError, StoreError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.workload import compute_identity
from pytest_ollama_perf.store.entries import AcceptanceEntry, Damage, RunEntry, format_stamp, sort_entries, to_slug
from pytest_ollama_perf.store.files import build_corrupt_error, escape_surrogates
from pytest_ollama_perf.store.record import decode_acceptance, decode_header, decode_run, encode_acceptance, encode_run

HISTORY_LIMIT = 20
"""Number of runs that form a baseline."""

REPAIR_REASON = "rebuilt by pytest-ollama-perf repair: the record of this acceptance was unreadable"
_LEFT = "left as it is: upgrade pytest-ollama-perf"


class Store(Protocol):
    """A history of runs. Every method raises ``StoreError`` if the store as a whole cannot be read or written.

    Records are immutable. Several processes may use one store at the same time.
    """

    @property
    def name(self) -> str:
        """The store's name for messages, without credentials."""

    def add(self, run: Run, kind: RunKind = RunKind.SAVED) -> None:
        """Store ``run`` completely or not at all; adding the same run again changes nothing."""

    def read_history(self, test: str, *, identity: str | None = None, limit: int | None = HISTORY_LIMIT) -> StoredRuns:
        """Return the newest saved and accepted runs of ``test``; with ``identity`` only those of one workload."""

    def read_comparable(self, test: str, run: Run, *, first: int, newest: int) -> StoredRuns:
        """Return runs of the current epoch that are comparable with ``run``: its first and its newest ones."""

    def read_pending(self, test: str, *, limit: int | None = HISTORY_LIMIT) -> StoredRuns:
        """Return the newest regressed runs that were not accepted."""

    def list_workloads(self, test: str) -> tuple[str, ...]:
        """Return the identities of all workloads of ``test``, the one that was stored first at the front."""

    def accept(self, test: str, *, why: str, who: str, at: float) -> Acceptance:
        """Start a new epoch at ``at`` (Unix seconds) with the pending runs of the newest regressed session."""

    def add_acceptance(self, acceptance: Acceptance) -> Acceptance:
        """Store an acceptance and return it as it was stored."""

    def list_tests(self) -> tuple[str, ...]:
        """Return the node ids of all tests with a run, sorted."""

    def read_run(self, run_id: str) -> Run | None:
        """Return one run, saved or regressed; ``None`` if there is none."""

    def find_run_ids(self, beginning: str) -> tuple[str, ...]:
        """Return the ids of all runs that start with ``beginning``, sorted."""

    def find_damage(self, *, repair: bool = False) -> tuple[Damage, ...]:
        """Check every record; with ``repair`` move the unreadable ones out of the history."""

    def prune(self, test: str, *, builds: int | None = None, before: float | None = None, dry_run: bool = False) -> int:
        """Delete runs that started before a time (Unix seconds), or that are not of the newest ``builds`` sessions of
        their workload; return their number."""

    def close(self) -> None:
        """Release connections and files."""


class BaseStore(ABC):
    """The part of a store that does not depend on where records are kept. Subclasses list, read and write records."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The store's name for messages, without credentials."""

    @abstractmethod
    def list_tests(self) -> tuple[str, ...]:
        """Return the node ids of all tests with a run, sorted."""

    @abstractmethod
    def _list_entries(self, test: str) -> list[RunEntry]:
        """Return every run of ``test`` in any order."""

    @abstractmethod
    def _list_acceptances(self, test: str) -> list[AcceptanceEntry]: ...

    @abstractmethod
    def _read_records(self, test: str, entries: Sequence[RunEntry]) -> Iterator[tuple[RunEntry, bytes | StoreError]]:
        """Yield the record of each of ``entries`` in the same order."""

    @abstractmethod
    def _describe(self, test: str, location: str) -> str:
        """Name a record in a message."""

    @abstractmethod
    def _write_run(self, run: Run, kind: RunKind, data: bytes) -> None: ...

    @abstractmethod
    def _write_acceptance(self, acceptance: Acceptance, data: bytes) -> None: ...

    @abstractmethod
    def _set_aside(self, test: str, location: str, *, is_run: bool) -> str:
        """Move an unreadable record out of the history and return its new place."""

    @abstractmethod
    def _delete(self, test: str, entries: Sequence[RunEntry]) -> None: ...

    def add(self, run: Run, kind: RunKind = RunKind.SAVED) -> None:
        """Store ``run`` completely or not at all; adding the same run again changes nothing."""
        self._write_run(run, kind, encode_run(run))

    def read_history(self, test: str, *, identity: str | None = None, limit: int | None = HISTORY_LIMIT) -> StoredRuns:
        """Return the newest saved and accepted runs of ``test``; with ``identity`` only those of one workload."""
        entries = self._list_unique_entries(test)
        acceptances, unreadable = self._read_acceptances(test, entries, identity)
        kept = _select_history(entries, acceptances, identity)
        runs, damaged = self._read_newest(test, kept, limit, identity)
        return StoredRuns(
            runs=runs,
            acceptances=acceptances,
            damaged=unreadable + damaged,
            unreadable_acceptances=unreadable,
            total=len(kept),
            identity=identity or "",
        )

    def read_comparable(self, test: str, run: Run, *, first: int, newest: int) -> StoredRuns:
        """Return runs of the current epoch that are comparable with ``run``: its first and its newest ones."""
        identity = compute_identity(run.workload)
        entries = self._list_unique_entries(test)
        acceptances, unreadable = self._read_acceptances(test, entries, identity)
        kept = _select_epoch(_select_history(entries, acceptances, identity), acceptances)
        wanted = self._scan(test, kept, run, first) | self._scan(test, kept[::-1], run, newest)
        runs, damaged = self._read_newest(test, [entry for entry in kept if entry in wanted], None, identity)
        return StoredRuns(
            runs=runs,
            acceptances=acceptances,
            damaged=unreadable + damaged,
            unreadable_acceptances=unreadable,
            total=len(kept),
            identity=identity,
        )

    def read_pending(self, test: str, *, limit: int | None = HISTORY_LIMIT) -> StoredRuns:
        """Return the newest regressed runs that were not accepted."""
        entries = self._list_unique_entries(test)
        acceptances, unreadable = self._read_acceptances(test, entries, None)
        accepted = _collect_accepted(acceptances)
        since = max((format_stamp(acceptance.at) for acceptance in acceptances), default="")
        waiting = [entry for entry in entries if entry.kind is RunKind.REGRESSED and entry.run not in accepted]
        waiting = [entry for entry in waiting if not entry.stamp or entry.stamp > since]
        runs, damaged = self._read_newest(test, waiting, limit, None)
        return StoredRuns(
            runs=runs,
            acceptances=acceptances,
            damaged=unreadable + damaged,
            unreadable_acceptances=unreadable,
            total=len(waiting),
        )

    def list_workloads(self, test: str) -> tuple[str, ...]:
        """Return the identities of all workloads of ``test``, the one that was stored first at the front."""
        return tuple(dict.fromkeys(entry.identity for entry in self._list_unique_entries(test) if entry.identity))

    def accept(self, test: str, *, why: str, who: str, at: float) -> Acceptance:
        """Start a new epoch at ``at`` (Unix seconds) with the pending runs of the newest regressed session."""
        runs = find_newest_session(self.read_pending(test, limit=None))
        acceptance = Acceptance(test=test, at=at, why=why, who=who, runs=runs)
        return self.add_acceptance(acceptance)

    def add_acceptance(self, acceptance: Acceptance) -> Acceptance:
        """Store an acceptance and return it as it was stored."""
        stored = Acceptance(
            test=escape_surrogates(acceptance.test),
            at=acceptance.at,
            why=escape_surrogates(acceptance.why),
            who=escape_surrogates(acceptance.who),
            runs=acceptance.runs,
        )
        self._write_acceptance(stored, encode_acceptance(stored))
        return stored

    def find_damage(self, *, repair: bool = False) -> tuple[Damage, ...]:
        """Check every record; with ``repair`` move the unreadable ones out of the history."""
        return tuple(damage for test in self.list_tests() for damage in self._check_test(test, repair=repair))

    def prune(self, test: str, *, builds: int | None = None, before: float | None = None, dry_run: bool = False) -> int:
        """Delete runs that started before a time (Unix seconds), or that are not of the newest ``builds`` sessions of
        their workload; return their number."""
        entries = [entry for entry in self._list_entries(test) if entry.stamp]
        chosen = [] if before is None else [entry for entry in entries if entry.stamp < format_stamp(before)]
        if builds is not None:
            chosen += self._select_old_builds(test, entries, builds)
        if not dry_run:
            self._delete(test, chosen)
        return len(chosen)

    @abstractmethod
    def close(self) -> None:
        """Release connections and files."""

    def _select_old_builds(self, test: str, entries: Sequence[RunEntry], builds: int) -> list[RunEntry]:
        """Return the readable entries that are not of the newest ``builds`` sessions of their workload."""
        sessions: dict[str, dict[str, None]] = {}
        old = []
        for entry, data in self._read_records(test, sort_entries(entries)[::-1]):
            header = None if isinstance(data, StoreError) else decode_header(data)
            if header is not None:
                seen = sessions.setdefault(entry.identity, {})
                if header.session not in seen and len(seen) >= builds:
                    old.append(entry)
                else:
                    seen[header.session] = None
        return old

    def _list_unique_entries(self, test: str) -> list[RunEntry]:
        """Return the runs of ``test``, oldest first; a run that was stored twice is listed once, as saved."""
        entries = self._list_entries(test)
        found = {entry.run or entry.location: entry for entry in entries if entry.kind is RunKind.REGRESSED}
        found |= {entry.run or entry.location: entry for entry in entries if entry.kind is RunKind.SAVED}
        return sort_entries(found.values())

    def _read_acceptances(
        self, test: str, entries: Sequence[RunEntry], identity: str | None
    ) -> tuple[tuple[Acceptance, ...], tuple[str, ...]]:
        """Return the acceptances of one workload (``identity``) or of all, oldest first, and what is unreadable."""
        found: list[Acceptance] = []
        unreadable: list[str] = []
        for entry in self._list_acceptances(test):
            try:
                found.append(self._decode_acceptance(test, entry))
            except StoreError as error:
                unreadable.append(str(error))
        known = {entry.run: entry.identity for entry in entries}
        fit = [one for one in found if _covers_workload(one, identity, known)]
        return tuple(sorted(fit, key=lambda acceptance: acceptance.at)), tuple(unreadable)

    def _decode_acceptance(self, test: str, entry: AcceptanceEntry) -> Acceptance:
        if isinstance(entry.data, StoreError):
            raise entry.data
        return decode_acceptance(entry.data, self._describe(test, entry.location))

    def _scan(self, test: str, entries: Sequence[RunEntry], run: Run, count: int) -> set[RunEntry]:
        """Return the first ``count`` entries comparable with ``run``; unreadable records on the way are included."""
        found: set[RunEntry] = set()
        comparable = 0
        known: dict[bytes, bool] = {}
        for start in range(0, len(entries), count + 1):
            for entry, data in self._read_records(test, entries[start : start + count + 1]):
                if comparable >= count:
                    return found
                fits = _is_comparable_record(data, run, known)
                comparable += fits is True
                if fits is not False:
                    found.add(entry)
        return found

    def _read_newest(
        self, test: str, entries: Sequence[RunEntry], limit: int | None, identity: str | None
    ) -> tuple[tuple[Run, ...], tuple[str, ...]]:
        """Return the newest ``limit`` readable runs, newest last, and the errors of those that were skipped."""
        runs: dict[str, Run] = {}
        damaged: list[str] = []
        rest = list(entries)
        while rest and (limit is None or len(runs) < limit or not rest[-1].stamp):
            size = len(rest) if limit is None else max(1, limit - len(runs))
            page, rest = rest[-size:][::-1], rest[:-size]
            for entry, data in self._read_records(test, page):
                try:
                    run = self._decode_run(test, entry, data)
                    if identity is None or entry.identity or compute_identity(run.workload) == identity:
                        runs.setdefault(run.id, run)
                except StoreError as error:
                    damaged.append(str(error))
        ordered = sorted(runs.values(), key=lambda run: (run.started_at, run.id))
        return tuple(ordered[-limit:] if limit else ordered), tuple(damaged)

    def _decode_run(self, test: str, entry: RunEntry, data: bytes | StoreError) -> Run:
        if isinstance(data, StoreError):
            raise data
        where = self._describe(test, entry.location)
        run = decode_run(data, where)
        if run.test != escape_surrogates(test):
            raise build_corrupt_error(where, f"it is of the test {run.test}")
        return run

    def _check_test(self, test: str, *, repair: bool) -> Iterator[Damage]:
        for entry, data in self._read_records(test, self._list_entries(test)):
            try:
                self._decode_run(test, entry, data)
            except StoreError as error:
                yield Damage(test, str(error), *(self._repair_run(test, entry, error) if repair else ("", False)))
        for accepted in self._list_acceptances(test):
            try:
                self._decode_acceptance(test, accepted)
            except StoreError as error:
                done = self._repair_acceptance(test, accepted, error) if repair else ("", False)
                yield Damage(test, str(error), *done)

    def _repair_run(self, test: str, entry: RunEntry, error: StoreError) -> tuple[str, bool]:
        if isinstance(error, NewerSchemaError):
            return _LEFT, False
        return f"moved to {self._set_aside(test, entry.location, is_run=True)}", True

    def _repair_acceptance(self, test: str, entry: AcceptanceEntry, error: StoreError) -> tuple[str, bool]:
        """Replace it by an acceptance at the same time, so that runs from before it stay out of the baseline."""
        if isinstance(error, NewerSchemaError):
            return _LEFT, False
        at = datetime.now(timezone.utc).timestamp() if entry.at is None else entry.at
        self.add_acceptance(Acceptance(test=test, at=at, why=REPAIR_REASON))
        moved = self._set_aside(test, entry.location, is_run=False)
        return f"moved to {moved}; the epoch now starts with the first run saved after {format_stamp(at)}", True


def find_newest_session(pending: StoredRuns) -> tuple[str, ...]:
    """Return the ids of the pending runs of the newest regressed session, oldest first."""
    if not pending.runs:
        return ()
    session = pending.runs[-1].session
    return tuple(run.id for run in pending.runs if run.session == session)


def _covers_workload(acceptance: Acceptance, identity: str | None, known: dict[str, str]) -> bool:
    """Whether an acceptance is for a workload: it lists one of its runs, or none that the store still has."""
    if identity is None or not acceptance.runs:
        return True
    workloads = {known[slug] for run in acceptance.runs if (slug := to_slug(run)) in known}
    return not workloads or identity in workloads


def _collect_accepted(acceptances: Iterable[Acceptance]) -> set[str]:
    return {to_slug(run) for acceptance in acceptances for run in acceptance.runs}


def _select_history(
    entries: Sequence[RunEntry], acceptances: Sequence[Acceptance], identity: str | None
) -> list[RunEntry]:
    accepted = _collect_accepted(acceptances)
    kept = [entry for entry in entries if entry.kind is RunKind.SAVED or entry.run in accepted]
    return [entry for entry in kept if identity is None or entry.identity in {identity, ""}]


def _select_epoch(entries: Sequence[RunEntry], acceptances: Sequence[Acceptance]) -> list[RunEntry]:
    """Return the entries of the current epoch: the runs accepted last and those saved since."""
    if not acceptances:
        return list(entries)
    accepted, since = _collect_accepted(acceptances[-1:]), format_stamp(acceptances[-1].at)
    return [entry for entry in entries if entry.run in accepted or not entry.stamp or entry.stamp >= since]


def _is_comparable_record(data: bytes | StoreError, run: Run, known: dict[bytes, bool]) -> bool | None:
    """Whether a stored run is comparable with ``run``; ``None`` if the record is unreadable.

    ``known`` holds the answers for the combinations of load and server that were met before.
    """
    header = None if isinstance(data, StoreError) else decode_header(data)
    if header is None:
        return None
    key = msgspec.json.encode((header.workload, header.fingerprint))
    if key not in known:
        known[key] = is_comparable(header, run)
    return known[key]
