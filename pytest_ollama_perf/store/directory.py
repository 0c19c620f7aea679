"""The history in a directory: one immutable file per run, suitable for git, CI caches and artifacts.

.ollama-perf/
    .gitignore                                   excludes temporary files
    test_chat_speed-5f0c1d2e3a4b5c6d/            one folder per test
        test.json                                its node id
        20261120T205836.123456Z-<workload>-<run id>.json
        regressed/                               regressed runs, quarantined until they are accepted
        epochs/                                  acceptances: who, when and why
        damaged/                                 unreadable records that `repair` moved out of the history
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from pytest_ollama_perf.analysis.epochs import Acceptance, RunKind
from pytest_ollama_perf.core import StoreError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.workload import compute_identity
from pytest_ollama_perf.store.base import BaseStore
from pytest_ollama_perf.store.entries import AcceptanceEntry, RunEntry, format_stamp, parse_stamp, sort_entries, to_slug
from pytest_ollama_perf.store.files import DECODE_ERRORS, escape_surrogates, write_once
from pytest_ollama_perf.store.record import read_bytes, read_run

_FILE_NAME_PATTERN = re.compile(r"(\d{8}T\d{6}\.\d{6}Z)-([0-9a-f]{16})-([A-Za-z0-9_-]{1,64})\.json")
_REGRESSED, _EPOCHS, _DAMAGED, _TEST_FILE = "regressed", "epochs", "damaged", "test.json"
_LISTING_SETTLES_NS = 2_000_000_000
"""A folder that changed more recently is listed again: file systems write the time of a change in coarse steps."""
_GITIGNORE = b"# Temporary files of interrupted writes\n.*.tmp\n"


class DirectoryStore(BaseStore):
    """Runs as files under ``root``, which is created when the first run is added."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listing: tuple[str, tuple[int, ...], list[RunEntry]] = ("", (), [])

    @property
    def name(self) -> str:
        """The path of the directory."""
        return sanitize(str(self.root))

    def list_tests(self) -> tuple[str, ...]:
        """Return the tests that have runs."""
        return tuple(sorted({test for folder in self._list_folders() if (test := _read_test_id(folder))}))

    def read_run(self, run_id: str) -> Run | None:
        """Return a run by its id, None without one."""
        wanted = to_slug(run_id)
        return next((read_run(path) for path, entry in self._iterate_files() if entry.run == wanted), None)

    def find_run_ids(self, beginning: str) -> tuple[str, ...]:
        """Return the ids that begin with ``beginning``."""
        found = {entry.run for _, entry in self._iterate_files() if entry.run and entry.run.startswith(beginning)}
        return tuple(sorted(found))

    def close(self) -> None:
        """Nothing is held open."""

    def _list_entries(self, test: str) -> list[RunEntry]:
        folder = self._get_folder(test)
        changed = _read_change_times(folder)
        if self._listing[:2] == (test, changed):
            return self._listing[2]
        entries = _list_records(folder)
        if max(changed, default=0) < time.time_ns() - _LISTING_SETTLES_NS:
            self._listing = test, changed, entries
        return entries

    def _list_acceptances(self, test: str) -> list[AcceptanceEntry]:
        folder = self._get_folder(test) / _EPOCHS
        return [
            AcceptanceEntry(f"{_EPOCHS}/{name}", parse_stamp(name.partition("-")[0]), _read_or_error(folder / name))
            for name in sorted(_list_json_names(folder))
        ]

    def _read_records(self, test: str, entries: Sequence[RunEntry]) -> Iterator[tuple[RunEntry, bytes | StoreError]]:
        folder = self._get_folder(test)
        for entry in entries:
            yield entry, _read_or_error(folder / entry.location)

    def _describe(self, test: str, location: str) -> str:
        return sanitize(str(self._get_folder(test) / location))

    def _write_run(self, run: Run, kind: RunKind, data: bytes) -> None:
        what = f"run {sanitize(run.id)}"
        folder = self._get_folder(run.test)
        self._write(self.root / ".gitignore", _GITIGNORE, what, must_match=False)
        self._write(folder / _TEST_FILE, msgspec.json.encode({"test": escape_surrogates(run.test)}) + b"\n", what)
        self._write((folder / _REGRESSED if kind is RunKind.REGRESSED else folder) / _build_file_name(run), data, what)

    def _write_acceptance(self, acceptance: Acceptance, data: bytes) -> None:
        name = f"{format_stamp(acceptance.at)}-{hashlib.sha256(data).hexdigest()[:16]}.json"
        what = f"the acceptance of {sanitize(acceptance.test)}"
        self._write(self._get_folder(acceptance.test) / _EPOCHS / name, data, what)

    def _set_aside(self, test: str, location: str, *, is_run: bool) -> str:
        source = self._get_folder(test) / location
        target = self._get_folder(test) / _DAMAGED / location.replace("/", "-")
        try:
            target.parent.mkdir(exist_ok=True)
            source.replace(target)
        except OSError as error:
            raise StoreError(f"{sanitize(str(source))} cannot be moved: {error.strerror or error}") from error
        return sanitize(str(target))

    def _delete(self, test: str, entries: Sequence[RunEntry]) -> None:
        folder = self._get_folder(test)
        for entry in entries:
            try:
                (folder / entry.location).unlink(missing_ok=True)
            except OSError as error:
                where = sanitize(str(folder / entry.location))
                raise StoreError(f"{where} cannot be deleted: {error.strerror or error}") from error

    def _get_folder(self, test: str) -> Path:
        return self.root / build_folder_name(test)

    def _list_folders(self) -> list[Path]:
        return [self.root / entry.name for entry in _list_files(self.root) if entry.is_dir() and entry.name[0] != "."]

    def _iterate_files(self) -> Iterator[tuple[Path, RunEntry]]:
        for folder in self._list_folders():
            for entry in _list_records(folder):
                yield folder / entry.location, entry

    def _write(self, path: Path, data: bytes, what: str, *, must_match: bool = True) -> None:
        try:
            if not path.is_file():
                write_once(path, data)
        except OSError as error:
            if not (isinstance(error, FileExistsError) and path.is_file()):
                raise StoreError(
                    f"{what} could not be saved in {self.name}: {error.strerror or error}; "
                    "records stored earlier are not affected"
                ) from error
        if must_match and read_bytes(path) != data:
            raise StoreError(
                f"{what} could not be saved: {sanitize(str(path))} already exists; stored runs are immutable"
            )


def build_folder_name(test: str) -> str:
    """Return the folder of ``test``: a readable part of the node id, and a hash that makes the name unique."""
    name = escape_surrogates(test)
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", name.rpartition("::")[2] or name).strip("-")[:48]
    return f"{readable or 'test'}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _build_file_name(run: Run) -> str:
    return f"{format_stamp(run.started_at)}-{compute_identity(run.workload)}-{to_slug(run.id)}.json"


def _read_or_error(path: Path) -> bytes | StoreError:
    try:
        return read_bytes(path)
    except StoreError as error:
        return error


def _list_files(folder: Path) -> list[os.DirEntry[str]]:
    """Return the content of ``folder``; an empty list if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"the history in {sanitize(str(folder))} cannot be read: {error.strerror or error}") from error


def _list_json_names(folder: Path) -> list[str]:
    return [entry.name for entry in _list_files(folder) if entry.name.endswith(".json") and entry.is_file()]


def _list_records(folder: Path) -> list[RunEntry]:
    saved = [_build_entry(name, RunKind.SAVED, name) for name in _list_json_names(folder) if name != _TEST_FILE]
    regressed = _list_json_names(folder / _REGRESSED)
    return saved + [_build_entry(name, RunKind.REGRESSED, f"{_REGRESSED}/{name}") for name in regressed]


def _build_entry(name: str, kind: RunKind, location: str) -> RunEntry:
    match = _FILE_NAME_PATTERN.fullmatch(name)
    return RunEntry(match[1], match[2], match[3], kind, location) if match else RunEntry("", "", "", kind, location)


def _read_change_times(folder: Path) -> tuple[int, ...]:
    """Return when a name was last added to or removed from the folders of a test, in nanoseconds; 0 for no folder."""
    times = []
    for each in (folder, folder / _REGRESSED):
        try:
            times.append(each.stat().st_mtime_ns)
        except OSError:
            times.append(0)
    return tuple(times)


def _read_test_id(folder: Path) -> str:
    """Return the node id of ``folder``; from a record if ``test.json`` is lost."""
    try:
        return msgspec.json.decode(read_bytes(folder / _TEST_FILE), type=dict[str, str])["test"]
    except (StoreError, *DECODE_ERRORS):
        entries = _list_records(folder)
    for entry in sort_entries(entries):
        try:
            return read_run(folder / entry.location).test
        except StoreError:
            continue
    return ""
