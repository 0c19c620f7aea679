"""One load at a time: who holds the turn at a server, who waits, and what becomes of both."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pytest_ollama_perf.core.lock import ServerLock, make_lock_name

URL = "http://gpu-box:11434"


class Bored(Exception):
    pass


class Waiting:
    """Counts how often somebody waited and keeps what was said; gives up after ``patience`` times."""

    def __init__(self, patience: int = 3) -> None:
        self.times, self.patience, self.said = 0, patience, []

    def wait(self, seconds: float) -> None:
        self.times += 1
        if self.times > self.patience:
            raise Bored

    def at(self, turn: ServerLock, *urls: str, what: str = "test_other"):
        return turn.hold(urls or (URL,), what, wait=self.wait, say=self.said.append)


def is_free(folder: Path, url: str = URL) -> bool:
    other = Waiting(patience=0)
    try:
        with other.at(ServerLock(folder), url):
            return True
    except Bored:
        return False


def test_a_second_session_waits_and_says_for_whom(tmp_path) -> None:
    first, second = Waiting(), Waiting()
    with first.at(ServerLock(tmp_path), what="test_chat.py::test_speed"), pytest.raises(Bored):
        with second.at(ServerLock(tmp_path)):
            pass
    assert (first.times, first.said) == (0, [])
    assert len(set(second.said)) == 1
    assert second.said[0].startswith(f"waiting for another load on {URL}: process ")
    assert second.said[0].endswith(", test_chat.py::test_speed")
    assert is_free(tmp_path)


def test_whoever_waits_goes_on_as_soon_as_the_turn_is_free(tmp_path) -> None:
    turn, holding, done = ServerLock(tmp_path), threading.Event(), threading.Event()

    def hold() -> None:
        with Waiting().at(turn):
            holding.set()
            done.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert holding.wait(10)

    class Patient(Waiting):
        def wait(self, seconds: float) -> None:
            self.times += 1
            done.set()
            holder.join(10)

    patient = Patient()
    with patient.at(ServerLock(tmp_path)):
        assert patient.times == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_whatever_ends_a_load_ends_its_turn(tmp_path, error) -> None:
    with pytest.raises(error), Waiting().at(ServerLock(tmp_path)):
        raise error
    assert is_free(tmp_path)


def test_a_process_that_dies_gives_its_turn_back(tmp_path) -> None:
    source = (
        "import sys, pathlib, time\n"
        "from pytest_ollama_perf.core.lock import ServerLock\n"
        f"with ServerLock(pathlib.Path({str(tmp_path)!r})).hold(({URL!r},), 'test', wait=time.sleep, say=print):\n"
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
    turn, impatient = ServerLock(tmp_path), Waiting(patience=0)
    with impatient.at(turn):
        with impatient.at(turn):
            pass
        assert not is_free(tmp_path)
    assert is_free(tmp_path)


def test_servers_are_taken_in_one_order_whoever_names_them(tmp_path) -> None:
    one, other = "http://a:1", "http://b:2"
    with Waiting().at(ServerLock(tmp_path), other):
        blocked = Waiting(patience=0)
        with pytest.raises(Bored), blocked.at(ServerLock(tmp_path), other, one):
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
    alone = Waiting(patience=0)
    with alone.at(ServerLock(tmp_path / "missing")):
        pass
    (said,) = alone.said
    assert said.startswith(f"cannot keep other loads away from {URL}: ")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    (tmp_path / make_lock_name(URL)).symlink_to(precious)
    alone = Waiting(patience=0)
    with alone.at(ServerLock(tmp_path)):
        pass
    assert precious.read_text() == "keep me"
    assert len(alone.said) == 1
