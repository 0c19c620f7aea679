"""What the directory alone promises: whole files, whatever happens to disk and writer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store_makers import TEST, make_run

from pytest_ollama_perf.analysis.epochs import RunKind
from pytest_ollama_perf.core import CorruptRecordError, StoreError
from pytest_ollama_perf.store import files as store_files
from pytest_ollama_perf.store.directory import DirectoryStore, build_folder_name
from pytest_ollama_perf.store.files import ABANDONED_S, encode_checked, write_once
from pytest_ollama_perf.store.record import encode_run

HERE = Path(__file__).parent


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "history")


def files(store: DirectoryStore) -> list[str]:
    found = (path.relative_to(store.root) for path in store.root.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.name != ".gitignore")


def test_a_person_finds_a_run_by_test_and_time(store: DirectoryStore) -> None:
    store.add(make_run())
    store.add(make_run("r2"), RunKind.REGRESSED)
    store.accept(TEST, why="x", who="y", at=1_700_000_100.0)
    names = files(store)
    assert names[0].startswith("test_chat_speed-")
    folder = names[0].partition("/")[0]
    assert names[0].startswith(f"{folder}/20231114T221320.250000Z-")
    assert names[0].endswith("-r1.json")
    assert names[1].startswith(f"{folder}/epochs/20231114T221500.000000Z-")
    assert names[2].startswith(f"{folder}/regressed/20231114T221320.250000Z-")
    assert names[3] == f"{folder}/test.json"
    assert len(names) == 4


@pytest.mark.parametrize(
    "test", ["x.py::t", "x.py::t[" + "ä" * 500 + "]", "/../..", "..", "\ud800", "a\0b", ".hidden", "NUL"]
)
def test_folder_names_are_short_and_harmless_everywhere(test: str) -> None:
    name = build_folder_name(test)
    assert len(name) <= 65
    assert name.isascii()
    assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
    assert name[0] not in "-."


def test_tests_that_differ_in_case_only_have_folders_of_their_own() -> None:
    assert build_folder_name("x.py::t[a]").lower() != build_folder_name("x.py::t[A]").lower()


def test_a_lookup_opens_one_tests_files_only(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        store.add(make_run(f"r{number}", test=f"t{number}"))
    opened: list[Path] = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: opened.append(self) or real(self, *a, **k))
    assert len(store.read_history("t3").runs) == 1
    assert {path.parent.name for path in opened} == {build_folder_name("t3")}


def test_a_lookup_opens_no_more_files_than_it_needs(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        store.add(make_run(f"r{number}", started_at=float(number), requests=1, tokens=2))
    opened: list[Path] = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: opened.append(self) or real(self, *a, **k))
    assert len(store.read_history(TEST, limit=3).runs) == 3
    assert len(opened) == 3


@pytest.mark.parametrize("call", ["write", "fsync", "link"])
def test_a_full_disk_leaves_the_old_data_whole_and_says_so(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store.add(make_run())
    before = files(store)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(*((store_files, "_write_synced") if call == "write" else (os, call)), full)
        if call == "link":
            patched.setattr(Path, "replace", full)
        with pytest.raises(StoreError) as caught:
            store.add(make_run("r2"))
    assert str(caught.value) == (
        f"run r2 could not be saved in {store.root}: No space left on device; records stored earlier are not affected"
    )
    assert files(store) == before
    assert [run.id for run in store.read_history(TEST).runs] == ["r1"]


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A tmpfs of 64 KiB, in a mount namespace of our own; not every machine lets us."""
    script = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
from pathlib import Path
from store_makers import make_run, TEST
from pytest_ollama_perf.core import StoreError
from pytest_ollama_perf.store.directory import DirectoryStore
store = DirectoryStore(Path({str(tmp_path)!r}))
added = []
try:
    for number in range(200):
        store.add(make_run(f"r{{number}}", started_at=float(number)))
        added.append(f"r{{number}}")
except StoreError as error:
    print(error)
history = store.read_history(TEST, limit=None)
assert 3 < len(added) < 200 and [run.id for run in history.runs] == added and not history.damaged, history.damaged
"""
    mount = f'mount -t tmpfs -o size=64k none {tmp_path} && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, sys.executable, script], capture_output=True, text=True, check=False
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no tmpfs of our own here")
    assert done.returncode == 0, done.stderr
    assert "No space left on device; records stored earlier are not affected" in done.stdout


def test_where_there_are_no_hard_links_a_rename_serves(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    store.add(make_run())
    store.add(make_run())
    assert [run.id for run in store.read_history(TEST).runs] == ["r1"]
    with pytest.raises(FileExistsError):
        write_once(next(store.root.glob("*/*-r1.json")), b"other")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match=r"run r1 could not be saved in .*file: .*; records stored earlier"):
        DirectoryStore(tmp_path / "file").add(make_run())
    with pytest.raises(StoreError, match=r"the history in .*file.* cannot be read: Not a directory"):
        DirectoryStore(tmp_path / "file").read_history(TEST)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_read_and_not_written(store: DirectoryStore) -> None:
    store.add(make_run())
    folder = next(store.root.iterdir())
    folder.chmod(0o555)
    try:
        with pytest.raises(StoreError, match="Permission denied"):
            store.add(make_run("r2"))
        assert [run.id for run in store.read_history(TEST).runs] == ["r1"]
    finally:
        folder.chmod(0o755)


KILLED = """
import os, sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from store_makers import make_run
from pytest_ollama_perf.store.directory import DirectoryStore
store = DirectoryStore(Path(sys.argv[1]))
store.add(make_run("r1"))
os.fsync = lambda descriptor: (print("in the middle", flush=True), time.sleep(60))
store.add(make_run("r2", started_at=2e9))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_writer_killed_in_the_middle_leaves_no_half_run(store: DirectoryStore) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(store.root), str(HERE)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    with writer:
        assert writer.stdout.readline() == "in the middle\n"
        writer.kill()
    leftovers = list(store.root.rglob("*.tmp"))
    assert len(leftovers) == 1
    history = store.read_history(TEST)
    assert ([run.id for run in history.runs], history.damaged) == (["r1"], ())
    os.utime(leftovers[0], (0, time.time() - 2 * ABANDONED_S))
    store.add(make_run("r2", started_at=2e9))
    assert not list(store.root.rglob("*.tmp"))
    assert [run.id for run in store.read_history(TEST).runs] == ["r1", "r2"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("package.json", b'{"name": "left-pad"}'),
        ("20231114T221320.250000Z-0123456789abcdef-r9.json", b""),
        ("20231114T221320.250000Z-0123456789abcdef-r9.json", b"\xff\xfe\x00garbage"),
        ("20231114T221320.250000Z-0123456789abcdef-r9.json", b'{"schema":1,"id":"r9"}'),
        ("notes.json", encode_checked({"schema": 9})),
    ],
)
def test_foreign_and_newer_files_are_named(store: DirectoryStore, name: str, content: bytes) -> None:
    store.add(make_run())
    (store.root / build_folder_name(TEST) / name).write_bytes(content)
    history = store.read_history(TEST, limit=1)
    assert [run.id for run in store.read_history(TEST).runs] == ["r1"]
    assert len(store.read_history(TEST).damaged) == 1
    assert name in store.read_history(TEST).damaged[0]
    assert [run.id for run in history.runs] == ["r1"]


def test_files_that_are_no_json_are_nobodys_business(store: DirectoryStore) -> None:
    store.add(make_run())
    (store.root / build_folder_name(TEST) / "README").write_text("hello")
    (store.root / ".gitattributes").write_text("* -text")
    assert store.read_history(TEST).damaged == ()
    assert store.list_tests() == (TEST,)


def test_a_damaged_acceptance_is_named_and_takes_nothing_with_it(store: DirectoryStore) -> None:
    store.add(make_run())
    store.accept(TEST, why="x", who="y", at=1.0)
    next(store.root.glob("*/epochs/*.json")).write_text("{}")
    history = store.read_history(TEST)
    assert [run.id for run in history.runs] == ["r1"]
    assert (history.acceptances, len(history.damaged)) == ((), 1)


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"test": 3}', b'{"nothing": "here"}'])
def test_a_lost_test_name_is_read_from_a_record(store: DirectoryStore, content: bytes | None) -> None:
    store.add(make_run())
    name = store.root / build_folder_name(TEST) / "test.json"
    name.write_bytes(content) if content is not None else name.unlink()
    assert store.list_tests() == (TEST,)


def test_asking_for_a_damaged_run_names_its_file(store: DirectoryStore) -> None:
    store.add(make_run())
    next(store.root.glob("*/*-r1.json")).write_text("[]")
    with pytest.raises(CorruptRecordError, match=r"-r1\.json is damaged or foreign"):
        store.read_run("r1")


def test_a_record_in_another_tests_folder_is_foreign(store: DirectoryStore) -> None:
    store.add(make_run())
    next(store.root.glob("*/*-r1.json")).write_bytes(encode_run(make_run(test="other::test")))
    history = store.read_history(TEST)
    assert history.runs == ()
    assert "it is of the test other::test" in history.damaged[0]


def test_a_copied_record_counts_once(store: DirectoryStore) -> None:
    store.add(make_run())
    store.add(make_run("r2", started_at=1_700_000_001.0), RunKind.REGRESSED)
    folder = store.root / build_folder_name(TEST)
    record = next(folder.glob("*-r1.json"))
    (folder / "copy of a run.json").write_bytes(record.read_bytes())
    (folder / "regressed" / record.name).write_bytes(record.read_bytes())
    assert [run.id for run in store.read_history(TEST).runs] == ["r1"]
    assert [run.id for run in store.read_pending(TEST).runs] == ["r2"]


def test_git_ignores_temporary_files_of_a_store(store: DirectoryStore) -> None:
    store.add(make_run())
    leftover = store.root / build_folder_name(TEST) / ".0123456789abcdef.tmp"
    leftover.write_bytes(b"half a record")
    git = ["git", "-C", str(store.root)]
    subprocess.run([*git, "init", "-q"], check=True)
    listed = subprocess.run(
        [*git, "ls-files", "--others", "--exclude-standard"], capture_output=True, text=True, check=True
    )
    assert sorted(line.rpartition("/")[2] for line in listed.stdout.splitlines()) == sorted(
        [".gitignore", "test.json", next(store.root.glob("*/*-r1.json")).name]
    )


def count_listings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    listed: list[object] = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or real(folder))
    return listed


def age_folder(store: DirectoryStore, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(store.root / build_folder_name(TEST), (then, then))


def test_a_folder_that_did_not_change_is_listed_once(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        store.add(make_run(f"r{number}", started_at=float(number)))
    age_folder(store, 60)
    listed = count_listings(monkeypatch)
    history = store.read_history(TEST)
    first = len(listed)
    compared = store.read_comparable(TEST, history.runs[-1], first=2, newest=2)
    assert len(compared.runs) == 3
    assert len(listed) - first < first


@pytest.mark.parametrize("age_s", [0, 60])
def test_a_run_of_another_process_is_found_at_once(store: DirectoryStore, age_s: float) -> None:
    store.add(make_run("r0"))
    age_folder(store, age_s)
    assert len(store.read_history(TEST).runs) == 1
    DirectoryStore(store.root).add(make_run("r1"))
    assert len(store.read_history(TEST).runs) == 2
    DirectoryStore(store.root).add(make_run("r2"), RunKind.REGRESSED)
    assert len(store.read_pending(TEST).runs) == 1
