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

from pytest_ollama_perf.analysis.epochs import Acceptance, RunKind, StoredRuns
from pytest_ollama_perf.core.errors import StoreError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.workload import compute_identity as identity_of
from pytest_ollama_perf.store.base import HISTORY_LIMIT, find_newest_session, to_slug
from pytest_ollama_perf.store.files import DECODE_ERRORS, build_corrupt_error, escape_surrogates, write_once
from pytest_ollama_perf.store.record import decode_acceptance, encode_acceptance, encode_run, read_bytes, read_run

_FILE_NAME_PATTERN = re.compile(r"(\d{8}T\d{6}\.\d{6}Z)-([0-9a-f]{16})-([A-Za-z0-9_-]{1,64})\.json")
_REGRESSED, _EPOCHS, _TEST_FILE = "regressed", "epochs", "test.json"
_MAX_TIMESTAMP_S = 253402300799.0


class _RecordFile(NamedTuple):
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
    def sort_key(self) -> tuple[bool, str]:
        """Sorts oldest first, foreign names last: those are always looked at."""
        return (not self.stamp, self.name)


class DirectoryStore:
    """Runs as files under ``root``, which need not exist before the first run is added."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def name(self) -> str:
        return sanitize(str(self.root))

    def add(self, run: Run, kind: RunKind = RunKind.SAVED) -> None:
        data = encode_run(run)
        what = f"run {sanitize(run.id)}"
        folder = self._get_folder(run.test)
        self._write(folder / _TEST_FILE, msgspec.json.encode({"test": escape_surrogates(run.test)}) + b"\n", what)
        self._write((folder / _REGRESSED if kind is RunKind.REGRESSED else folder) / _build_file_name(run), data, what)

    def read_history(self, test: str, *, identity: str | None = None, limit: int | None = HISTORY_LIMIT) -> StoredRuns:
        folder = self._get_folder(test)
        acceptances, damaged = self._read_acceptances(folder)
        accepted = _collect_accepted(acceptances)
        files = _list_files(folder) + [file for file in _list_files(folder / _REGRESSED) if file.run in accepted]
        files = [file for file in files if identity is None or file.identity in {identity, ""}]
        runs, unread = _read_newest(files, escape_surrogates(test), limit)
        return StoredRuns(runs=runs, acceptances=acceptances, damaged=damaged + unread)

    def read_pending(self, test: str, *, limit: int | None = HISTORY_LIMIT) -> StoredRuns:
        folder = self._get_folder(test)
        acceptances, damaged = self._read_acceptances(folder)
        accepted = _collect_accepted(acceptances)
        since = max((_format_timestamp(acceptance.at) for acceptance in acceptances), default="")
        files = [file for file in _list_files(folder / _REGRESSED) if file.run not in accepted]
        files = [file for file in files if not file.stamp or file.stamp > since]
        runs, unread = _read_newest(files, escape_surrogates(test), limit)
        return StoredRuns(runs=runs, acceptances=acceptances, damaged=damaged + unread)

    def accept(self, test: str, *, why: str, who: str, at: float) -> Acceptance:
        runs = find_newest_session(self.read_pending(test, limit=None))
        acceptance = Acceptance(
            test=escape_surrogates(test), at=at, why=escape_surrogates(why), who=escape_surrogates(who), runs=runs
        )
        data = encode_acceptance(acceptance)
        name = f"{_format_timestamp(at)}-{hashlib.sha256(data).hexdigest()[:16]}.json"
        self._write(self._get_folder(test) / _EPOCHS / name, data, f"the acceptance of {sanitize(test)}")
        return acceptance

    def list_tests(self) -> tuple[str, ...]:
        return tuple(sorted({test for folder in self._list_folders() if (test := _read_test_id(folder))}))

    def read_run(self, run_id: str) -> Run | None:
        wanted = to_slug(run_id)
        return next((read_run(file.path) for file in self._iterate_files() if file.run == wanted), None)

    def find_run_ids(self, beginning: str) -> tuple[str, ...]:
        return tuple(sorted(file.run for file in self._iterate_files() if file.run and file.run.startswith(beginning)))

    def close(self) -> None:
        """Nothing is held open."""

    def _get_folder(self, test: str) -> Path:
        return self.root / build_folder_name(test)

    def _list_folders(self) -> list[Path]:
        return [self.root / entry.name for entry in _list_entries(self.root) if entry.is_dir() and entry.name[0] != "."]

    def _iterate_files(self) -> Iterator[_RecordFile]:
        for folder in self._list_folders():
            yield from _list_files(folder)
            yield from _list_files(folder / _REGRESSED)

    def _read_acceptances(self, folder: Path) -> tuple[tuple[Acceptance, ...], tuple[str, ...]]:
        found: list[Acceptance] = []
        damaged: list[str] = []
        for name in _list_json_names(folder / _EPOCHS):
            path = folder / _EPOCHS / name
            try:
                found.append(decode_acceptance(read_bytes(path), sanitize(str(path))))
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
        if read_bytes(path) != data:
            raise StoreError(f"{what} could not be saved: {sanitize(str(path))} is there already and never changed")


def build_folder_name(test: str) -> str:
    """Return the folder of ``test``: what people recognise, and a hash that tells every node id from every other."""
    name = escape_surrogates(test)
    words = re.sub(r"[^A-Za-z0-9_]+", "-", name.rpartition("::")[2] or name).strip("-")[:48]
    return f"{words or 'test'}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _build_file_name(run: Run) -> str:
    return f"{_format_timestamp(run.started_at)}-{identity_of(run.workload)}-{to_slug(run.id)}.json"


def _format_timestamp(seconds: float) -> str:
    when = datetime.fromtimestamp(min(max(seconds, 0.0), _MAX_TIMESTAMP_S), timezone.utc)
    return when.strftime("%Y%m%dT%H%M%S.%fZ")


def _collect_accepted(acceptances: Iterable[Acceptance]) -> set[str]:
    return {to_slug(run) for acceptance in acceptances for run in acceptance.runs}


def _list_entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in ``folder``; nothing where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"the history in {sanitize(str(folder))} cannot be read: {error.strerror or error}") from error


def _list_json_names(folder: Path) -> list[str]:
    return [entry.name for entry in _list_entries(folder) if entry.name.endswith(".json") and entry.is_file()]


def _list_files(folder: Path) -> list[_RecordFile]:
    names = (name for name in _list_json_names(folder) if name != _TEST_FILE)
    return [
        _RecordFile(folder, name, *(match.groups() if (match := _FILE_NAME_PATTERN.fullmatch(name)) else ("", "", "")))
        for name in names
    ]


def _read_newest(files: list[_RecordFile], test: str, limit: int | None) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """Return the newest ``limit`` runs that can be read, newest last, and what is wrong with the files passed over."""
    runs: list[Run] = []
    damaged: list[str] = []
    for file in sorted(files, key=lambda file: file.sort_key, reverse=True):
        if file.stamp and limit is not None and len(runs) >= limit:
            break
        try:
            run = read_run(file.path)
            if run.test != test:
                raise build_corrupt_error(sanitize(str(file.path)), f"it is of the test {run.test}")
            runs.append(run)
        except StoreError as error:
            damaged.append(str(error))
    ordered = sorted(runs, key=lambda run: (run.started_at, run.id))
    return tuple(ordered[-limit:] if limit else ordered), tuple(damaged)


def _read_test_id(folder: Path) -> str:
    """Return the node id of ``folder``, from a record where the file that says it is lost."""
    try:
        return msgspec.json.decode(read_bytes(folder / _TEST_FILE), type=dict[str, str])["test"]
    except (StoreError, *DECODE_ERRORS):
        files = _list_files(folder) + _list_files(folder / _REGRESSED)
    for file in sorted(files, key=lambda file: file.sort_key):
        try:
            return read_run(file.path).test
        except StoreError:
            continue
    return ""
