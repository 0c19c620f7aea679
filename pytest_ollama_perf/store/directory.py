"""The history in a directory: one immutable file per run, fit for git, CI caches and artifacts.

.ollama-perf/
    test_chat_speed-5f0c1d2e3a4b5c6d/            one folder per test
        test.json                                its node id
        20261120T205836.123456Z-<workload>-<run id>.json
        regressed/                               runs kept apart until somebody accepts them
        epochs/                                  who accepted what, when and why
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import msgspec

from pytest_ollama_perf.errors import StoreError
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.store.acceptance import decode_acceptance, encode_acceptance
from pytest_ollama_perf.store.atomic import write_once
from pytest_ollama_perf.store.base import LIMIT, newest_session, slug
from pytest_ollama_perf.store.record import content, encode, read
from pytest_ollama_perf.store.seal import DAMAGE, corrupt, plain
from pytest_ollama_perf.text import inert
from pytest_ollama_perf.verdict.epoch import Acceptance, History, Kind
from pytest_ollama_perf.workload import identity as identity_of

_NAME = re.compile(r"(\d{8}T\d{6}\.\d{6}Z)-([0-9a-f]{16})-([A-Za-z0-9_-]{1,64})\.json")
_REGRESSED, _EPOCHS, _TEST = "regressed", "epochs", "test.json"
_LAST_SECOND = 253402300799.0


class _File(NamedTuple):
    """A file that should be a record; a foreign name leaves ``stamp``, ``identity`` and ``run`` empty."""

    folder: Path
    name: str
    stamp: str
    identity: str
    run: str

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def age(self) -> tuple[bool, str]:
        """Sorts oldest first, foreign names last: those are always looked at."""
        return (not self.stamp, self.name)


class DirectoryStore:
    """Runs as files under ``root``, which need not exist before the first run is added."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def name(self) -> str:
        return inert(str(self.root))

    def add(self, run: Run, kind: Kind = Kind.SAVED) -> None:
        data = encode(run)
        what = f"run {inert(run.id)}"
        folder = self._folder(run.test)
        self._write(folder / _TEST, msgspec.json.encode({"test": plain(run.test)}) + b"\n", what)
        self._write((folder / _REGRESSED if kind is Kind.REGRESSED else folder) / _file_name(run), data, what)

    def history(self, test: str, *, identity: str | None = None, limit: int | None = LIMIT) -> History:
        folder = self._folder(test)
        acceptances, damaged = self._acceptances(folder)
        accepted = _accepted(acceptances)
        files = _files(folder) + [file for file in _files(folder / _REGRESSED) if file.run in accepted]
        files = [file for file in files if identity is None or file.identity in {identity, ""}]
        runs, unread = _newest(files, plain(test), limit)
        return History(runs=runs, acceptances=acceptances, damaged=damaged + unread)

    def pending(self, test: str, *, limit: int | None = LIMIT) -> History:
        folder = self._folder(test)
        acceptances, damaged = self._acceptances(folder)
        accepted = _accepted(acceptances)
        since = max((_stamp(acceptance.at) for acceptance in acceptances), default="")
        files = [file for file in _files(folder / _REGRESSED) if file.run not in accepted]
        files = [file for file in files if not file.stamp or file.stamp > since]
        runs, unread = _newest(files, plain(test), limit)
        return History(runs=runs, acceptances=acceptances, damaged=damaged + unread)

    def accept(self, test: str, *, why: str, who: str, at: float) -> Acceptance:
        runs = newest_session(self.pending(test, limit=None))
        acceptance = Acceptance(test=plain(test), at=at, why=plain(why), who=plain(who), runs=runs)
        data = encode_acceptance(acceptance)
        name = f"{_stamp(at)}-{hashlib.sha256(data).hexdigest()[:16]}.json"
        self._write(self._folder(test) / _EPOCHS / name, data, f"the acceptance of {inert(test)}")
        return acceptance

    def tests(self) -> tuple[str, ...]:
        return tuple(sorted({test for folder in self._folders() if (test := _test_of(folder))}))

    def get(self, run_id: str) -> Run | None:
        wanted = slug(run_id)
        return next((read(file.path) for file in self._all_files() if file.run == wanted), None)

    def runs_like(self, beginning: str) -> tuple[str, ...]:
        return tuple(sorted(file.run for file in self._all_files() if file.run and file.run.startswith(beginning)))

    def close(self) -> None:
        """Nothing is held open."""

    def _folder(self, test: str) -> Path:
        return self.root / folder_name(test)

    def _folders(self) -> list[Path]:
        return [self.root / entry.name for entry in _entries(self.root) if entry.is_dir() and entry.name[0] != "."]

    def _all_files(self) -> Iterator[_File]:
        for folder in self._folders():
            yield from _files(folder)
            yield from _files(folder / _REGRESSED)

    def _acceptances(self, folder: Path) -> tuple[tuple[Acceptance, ...], tuple[str, ...]]:
        found: list[Acceptance] = []
        damaged: list[str] = []
        for name in _json_names(folder / _EPOCHS):
            path = folder / _EPOCHS / name
            try:
                found.append(decode_acceptance(content(path), inert(str(path))))
            except StoreError as error:
                damaged.append(str(error))
        return tuple(sorted(found, key=lambda acceptance: acceptance.at)), tuple(damaged)

    def _write(self, path: Path, data: bytes, what: str) -> None:
        try:
            if not path.is_file():
                write_once(path, data)
        except OSError as error:
            if not (isinstance(error, FileExistsError) and path.is_file()):
                raise StoreError(
                    f"{what} could not be saved in {self.name}: {error.strerror or error}; "
                    "what was stored before is whole"
                ) from error
        if content(path) != data:
            raise StoreError(f"{what} could not be saved: {inert(str(path))} is there already and never changed")


def folder_name(test: str) -> str:
    """Return the folder of ``test``: what people recognise, and a hash that tells every node id from every other."""
    name = plain(test)
    words = re.sub(r"[^A-Za-z0-9_]+", "-", name.rpartition("::")[2] or name).strip("-")[:48]
    return f"{words or 'test'}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _file_name(run: Run) -> str:
    return f"{_stamp(run.started_at)}-{identity_of(run.workload)}-{slug(run.id)}.json"


def _stamp(seconds: float) -> str:
    when = datetime.fromtimestamp(min(max(seconds, 0.0), _LAST_SECOND), timezone.utc)
    return when.strftime("%Y%m%dT%H%M%S.%fZ")


def _accepted(acceptances: Iterable[Acceptance]) -> set[str]:
    return {slug(run) for acceptance in acceptances for run in acceptance.runs}


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in ``folder``; nothing where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"the history in {inert(str(folder))} cannot be read: {error.strerror or error}") from error


def _json_names(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.name.endswith(".json") and entry.is_file()]


def _files(folder: Path) -> list[_File]:
    names = (name for name in _json_names(folder) if name != _TEST)
    return [
        _File(folder, name, *(match.groups() if (match := _NAME.fullmatch(name)) else ("", "", ""))) for name in names
    ]


def _newest(files: list[_File], test: str, limit: int | None) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """Return the newest ``limit`` runs that can be read, newest last, and what is wrong with the files passed over."""
    runs: list[Run] = []
    damaged: list[str] = []
    for file in sorted(files, key=lambda file: file.age, reverse=True):
        if file.stamp and limit is not None and len(runs) >= limit:
            break
        try:
            run = read(file.path)
            if run.test != test:
                raise corrupt(inert(str(file.path)), f"it is of the test {run.test}")
            runs.append(run)
        except StoreError as error:
            damaged.append(str(error))
    ordered = sorted(runs, key=lambda run: (run.started_at, run.id))
    return tuple(ordered[-limit:] if limit else ordered), tuple(damaged)


def _test_of(folder: Path) -> str:
    """Return the node id of ``folder``, from a record where the file that says it is lost."""
    try:
        return msgspec.json.decode(content(folder / _TEST), type=dict[str, str])["test"]
    except (StoreError, *DAMAGE):
        files = _files(folder) + _files(folder / _REGRESSED)
    for file in sorted(files, key=lambda file: file.age):
        try:
            return read(file.path).test
        except StoreError:
            continue
    return ""
