"""One load at a time: who holds the turn at a server, who waits, and what becomes of both."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pytest_ollama_perf.core import ServerBusyError
from pytest_ollama_perf.core import lock as lock_module
from pytest_ollama_perf.core.lock import ServerLock, Waiting, find_lock_folder, make_lock_name

URL = "http://gpu-box:11434"


class Bored(Exception):
    pass


class Patience:
    """Counts the waits and keeps what was announced; gives up after ``patience`` waits."""

    def __init__(self, patience: int = 3) -> None:
        self.times, self.patience, self.said = 0, patience, []

    def sleep(self, seconds: float) -> None:
        self.times += 1
        if self.times > self.patience:
            raise Bored

    def at(self, lock: ServerLock, *urls: str, what: str = "test_other", limit_s: float = 1e9):
        return lock.hold(urls or (URL,), what, Waiting(self.sleep, self.said.append, limit_s))


def is_free(folder: Path, url: str = URL) -> bool:
    other = Patience(patience=0)
    try:
        with other.at(ServerLock(folder=folder), url):
            return True
    except Bored:
        return False


def test_a_second_session_waits_and_says_for_whom(tmp_path) -> None:
    first, second = Patience(), Patience()
    with first.at(ServerLock(folder=tmp_path), what="test_chat.py::test_speed"), pytest.raises(Bored):
        with second.at(ServerLock(folder=tmp_path)):
            pass
    assert (first.times, first.said) == (0, [])
    assert len(set(second.said)) == 1
    assert second.said[0].startswith(f"waiting for another load on {URL}: process ")
    assert second.said[0].endswith(", test_chat.py::test_speed")
    assert is_free(tmp_path)


def test_whoever_waits_goes_on_as_soon_as_the_turn_is_free(tmp_path) -> None:
    turn, holding, done = ServerLock(folder=tmp_path), threading.Event(), threading.Event()

    def hold() -> None:
        with Patience().at(turn):
            holding.set()
            done.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert holding.wait(10)

    class Patient(Patience):
        def sleep(self, seconds: float) -> None:
            self.times += 1
            done.set()
            holder.join(10)

    patient = Patient()
    with patient.at(ServerLock(folder=tmp_path)):
        assert patient.times == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_whatever_ends_a_load_ends_its_turn(tmp_path, error) -> None:
    with pytest.raises(error), Patience().at(ServerLock(folder=tmp_path)):
        raise error
    assert is_free(tmp_path)


def test_a_process_that_dies_gives_its_turn_back(tmp_path) -> None:
    source = (
        "import sys, pathlib\n"
        "from pytest_ollama_perf.core.lock import ServerLock, Waiting\n"
        f"with ServerLock(folder=pathlib.Path({str(tmp_path)!r})).hold(({URL!r},), 'test', Waiting()):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    child = subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdout.readline() == b"held\n"
        assert not is_free(tmp_path)
        child.kill()
        child.wait(10)
    assert is_free(tmp_path)


def test_two_loads_of_one_process_may_run_at_once(tmp_path) -> None:
    turn, impatient = ServerLock(folder=tmp_path), Patience(patience=0)
    with impatient.at(turn):
        with impatient.at(turn):
            pass
        assert not is_free(tmp_path)
    assert is_free(tmp_path)


def test_servers_are_taken_in_one_order_whoever_names_them(tmp_path) -> None:
    one, other = "http://a:1", "http://b:2"
    with Patience().at(ServerLock(folder=tmp_path), other):
        blocked = Patience(patience=0)
        with pytest.raises(Bored), blocked.at(ServerLock(folder=tmp_path), other, one):
            pass
        # it had taken the first and gave it back
        assert is_free(tmp_path, one)
        assert other in blocked.said[0]


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ("http://localhost:11434", "http://127.0.0.1:11434"),
        ("http://127.0.0.1:11434/", "http://127.0.0.1:11434"),
        ("http://user:secret@gpu-box:1", "http://gpu-box:1"),
        ("http://GPU-box:1", "http://gpu-box:1"),
    ],
)
def test_one_server_has_one_lock_however_it_is_written(given: str, same: str) -> None:
    assert make_lock_name(given) == make_lock_name(same)


def test_other_servers_have_other_locks() -> None:
    urls = ("http://a:1", "http://a:2", "https://a:1", "http://a:1/ollama")
    assert len({make_lock_name(url) for url in urls}) == len(urls)


def test_where_no_lock_can_be_had_the_load_runs_and_says_so(tmp_path) -> None:
    alone = Patience(patience=0)
    with alone.at(ServerLock(folder=tmp_path / "missing")):
        pass
    (said,) = alone.said
    assert said.startswith(f"cannot keep other loads away from {URL}: ")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    (tmp_path / make_lock_name(URL)).symlink_to(precious)
    alone = Patience(patience=0)
    with alone.at(ServerLock(folder=tmp_path)):
        pass
    assert precious.read_text() == "keep me"
    assert len(alone.said) == 1


@pytest.mark.timeout(20)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_in_the_place_of_the_lock_is_refused(tmp_path) -> None:
    os.mkfifo(tmp_path / make_lock_name(URL))
    alone = Patience(patience=0)
    with alone.at(ServerLock(folder=tmp_path)):
        pass
    assert len(alone.said) == 1


def test_a_released_lock_leaves_no_file(tmp_path) -> None:
    with Patience().at(ServerLock(folder=tmp_path)):
        assert [path.name for path in tmp_path.iterdir()] == [make_lock_name(URL)]
    assert not list(tmp_path.iterdir())


def test_a_removed_file_is_never_locked_by_two(tmp_path) -> None:
    """A process that opened the file before it was removed must not hold a lock that others do not see."""
    path = tmp_path / make_lock_name(URL)
    path.touch()
    real_lock = lock_module._lock_file

    def lock_and_remove(descriptor: int) -> None:
        real_lock(descriptor)
        if path.exists() and not removed:
            removed.append(path)
            path.unlink()

    removed: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock_module, "_lock_file", lock_and_remove)
        with Patience().at(ServerLock(folder=tmp_path)):
            assert removed
            assert path.exists()
            assert not is_free(tmp_path)


def test_a_file_of_something_else_is_neither_changed_nor_removed(tmp_path) -> None:
    path = tmp_path / make_lock_name(URL)
    path.write_text("not a lock")
    with Patience().at(ServerLock(folder=tmp_path)):
        assert not is_free(tmp_path)
    assert path.read_text() == "not a lock"


def test_waiting_has_a_limit_that_names_the_other_session(tmp_path) -> None:
    blocked = Patience(patience=10)
    with Patience().at(ServerLock("first", tmp_path), what="test_chat.py::test_speed"):
        with pytest.raises(ServerBusyError) as error, blocked.at(ServerLock("second", tmp_path), limit_s=0.0):
            pass
    assert "test_chat.py::test_speed" in str(error.value)
    assert "--ollama-wait" in str(error.value)
    assert len(blocked.said) == 1


def test_processes_of_one_session_wait_without_limit_and_message(tmp_path) -> None:
    blocked = Patience(patience=3)
    with Patience().at(ServerLock("one", tmp_path)):
        with pytest.raises(Bored), blocked.at(ServerLock("one", tmp_path), limit_s=0.0):
            pass
    assert blocked.said == []


@pytest.mark.skipif(sys.platform == "win32", reason="other permissions")
def test_lock_files_are_in_a_folder_that_only_this_user_can_use(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = find_lock_folder()
    assert folder.is_relative_to(tmp_path)
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_used(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    foreign = tmp_path / f"pytest-ollama-perf-{os.getuid()}"
    foreign.mkdir()
    os.chown(foreign, 65534, 65534)
    alone = Patience(patience=0)
    with alone.at(ServerLock()):
        pass
    assert "belongs to another user" in alone.said[0]
    assert not list(foreign.iterdir())
