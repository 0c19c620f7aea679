"""A simulator in a process of its own: it starts, says where, and never outlives who started it."""

from __future__ import annotations

import os
import signal
import sys
import time

import httpx
import pytest
from child_process import ChildProcess

from pytest_ollama_perf.cli import main
from pytest_ollama_perf.core import ServerError
from pytest_ollama_perf.simulator import process
from pytest_ollama_perf.simulator.process import start_simulator
from pytest_ollama_perf.simulator.settings import SimulatorSettings

PARENT = """
import time
from pytest_ollama_perf.simulator.process import start_simulator
with start_simulator() as simulator:
    print(simulator.url, flush=True)
    time.sleep(60)
"""


def gone(url):
    """Wait, up to a generous limit, until nothing answers at ``url``."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            httpx.get(url, trust_env=False)
        except httpx.TransportError:
            return True
        time.sleep(0.01)
    return False


def test_it_answers_until_the_block_ends():
    with start_simulator(SimulatorSettings(version="0.33.3")) as simulator:
        version = httpx.get(f"{simulator.url}/api/version", trust_env=False).json()
        assert version == {"version": "0.33.3"}
    assert gone(simulator.url)
    with pytest.raises(ServerError, match="does not answer"):
        simulator.requests()


def test_it_ends_when_its_parent_is_killed():
    with ChildProcess([sys.executable, "-c", PARENT]) as parent:
        url = parent.stdout.readline().strip()
        assert httpx.get(url, trust_env=False).text == "Ollama is running"
        parent.kill()
    assert gone(url)


def test_a_start_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(process.msgspec.json, "encode", lambda value: b'{"slots": "many"}')
    with pytest.raises(ServerError, match=r"the simulator did not start: .*Expected `int \| null`, got `str`"):
        start_simulator().__enter__()


def test_the_command_serves_until_told_to_stop():
    command = [
        sys.executable,
        "-m",
        "pytest_ollama_perf",
        "simulate",
        "--port",
        "0",
        "--slots",
        "3",
        "--models",
        "tiny",
    ]
    with ChildProcess(command) as server:
        url = server.stdout.readline().strip()
        assert server.stdout.readline() == "Ollama 0.32.15, 3 slots, 80 tokens/s; models tiny\n"
        assert server.stdout.readline() == "Ctrl-C stops it\n"
        assert httpx.get(f"{url}/sim/settings", trust_env=False).json()["slots"] == 3
        os.kill(server.pid, signal.SIGTERM)
        rest, _ = server.communicate(timeout=20)
    assert (server.returncode, rest) == (0, "")


def test_a_taken_port_is_one_clear_line(capsys):
    with start_simulator() as simulator:
        port = simulator.url.rsplit(":", 1)[1]
        assert main(["simulate", "--port", port]) == 2
    assert f"pytest-ollama-perf: cannot serve on 127.0.0.1:{port}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sim:?slot=4"], "unknown setting 'slot'; did you mean 'slots'?"),
        (["sim:?slots=4", "--tps", "3"], "give either a sim: URL or options, not both"),
        (["http://x"], "'http://x': a simulator is written as sim: or sim:?slots=4&tps=80"),
        (["--fault", "dorp"], "unknown fault 'dorp'; did you mean 'drop'?"),
    ],
)
def test_wrong_words_are_one_clear_line(capsys, arguments, words):
    assert main(["simulate", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_help_names_every_fault_and_says_when(capsys):
    with pytest.raises(SystemExit):
        main(["simulate", "--help"])
    text = capsys.readouterr().out
    assert "  drop            close the connection after N tokens (drop:0 before the first)\n" in text
    assert "WHEN: 3 (the third request), 3+7, 5-9" in text
