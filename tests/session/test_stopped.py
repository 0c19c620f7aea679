"""Ctrl-C and SIGTERM in the middle of a load: it stops at once, and what was measured is said and written."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pytest_ollama_perf.simulator.process import RunningSimulator

LONG = "model='tiny', requests=100000, warmup=0, num_predict=8"
CODE = {
    "marker": f"@pytest.mark.ollama_load({LONG})\ndef test_it():\n    pass",
    "load": f"def test_it(ollama):\n    ollama.load({LONG})",
    "aload": f"""
import asyncio

def test_it(ollama):
    asyncio.run(ollama.aload({LONG}))
""",
}


def under_way(sim: RunningSimulator, process: subprocess.Popen[str]) -> None:
    """Wait until the load has been answered a few times."""
    while process.poll() is None and sum(bool(one.eval_count) for one in sim.requests()) < 20:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[0]


CTRL_C, TERM = (signal.SIGINT, "interrupted (Ctrl-C)"), (signal.SIGTERM, "terminated (SIGTERM)")


@pytest.mark.parametrize(
    ("number", "why", "how"), [(*CTRL_C, "marker"), (*CTRL_C, "aload"), (*TERM, "load"), (*TERM, "aload")]
)
def test_a_stopped_load_says_and_writes_what_it_measured(perf, sim, number: int, why: str, how: str) -> None:
    perf.write(CODE[how])
    sim.reset()
    with perf.start() as process:
        under_way(sim, process)
        process.send_signal(number)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, out
    written = json.loads((perf.path / "report.json").read_bytes())
    assert written["aborted"] == why
    (test,) = written["tests"]
    assert test["verdict"] == "aborted"
    samples = test["loads"][0]["samples"]
    ended = [sample["outcome"] for sample in samples]
    assert ended.count("ok") >= 19
    assert set(ended) <= {"ok", "cancelled"}
    truth = {one.request_id: one.eval_count for one in sim.requests()}
    assert all(truth[sample["request_id"]] == sample["eval_count"] for sample in samples if sample["outcome"] == "ok")
    section = out.partition("= ollama =")[2]
    assert "aborted" in section
    assert "json report: report.json" in section


def test_a_stop_between_tests_keeps_the_tests_before(perf) -> None:
    perf.write("""
        @pytest.mark.ollama_load(model="tiny", requests=20, warmup=0, num_predict=2)
        def test_first():
            pass

        def test_second():
            raise KeyboardInterrupt
    """)
    with perf.start() as process:
        out, _ = process.communicate(timeout=20)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, out
    written = json.loads((perf.path / "report.json").read_bytes())
    assert [(test["test"], test["verdict"]) for test in written["tests"]] == [("test_it.py::test_first", "ok")]
    assert written["aborted"] == "interrupted (Ctrl-C)"


HUP = getattr(signal, "SIGHUP", None)


@pytest.mark.skipif(HUP is None, reason="no SIGHUP here")
def test_a_hangup_ends_a_session_as_ctrl_c_does(perf, sim) -> None:
    perf.write(CODE["marker"])
    sim.reset()
    with perf.start() as process:
        under_way(sim, process)
        process.send_signal(HUP)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, out
    assert json.loads((perf.path / "report.json").read_bytes())["aborted"] == "terminated (SIGHUP)"


WAITS = """
import time

@pytest.mark.ollama_load(model="tiny", requests=20, warmup=0, num_predict=2)
def test_first():
    pass

@pytest.fixture
def slow():
    open("waiting", "w").close()
    {setup}
    yield
    open("ending", "w").close()
    {teardown}

def test_second(slow, ollama):
    pass
"""


def wait_for_file(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def test_sigterm_in_a_fixture_keeps_the_tests_before(perf) -> None:
    perf.write(WAITS.format(setup="time.sleep(60)", teardown=""))
    with perf.start() as process:
        wait_for_file(perf.path / "waiting", process)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, out
    written = json.loads((perf.path / "report.json").read_bytes())
    assert [test["test"] for test in written["tests"]] == ["test_it.py::test_first"]


def test_a_second_sigterm_does_not_lose_the_reports(perf) -> None:
    ending = "import os, signal; os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGTERM)"
    perf.write(WAITS.format(setup="", teardown=ending))
    with perf.start() as process:
        out, _ = process.communicate(timeout=20)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, out
    written = json.loads((perf.path / "report.json").read_bytes())
    assert written["aborted"] == "terminated (SIGTERM)"
    assert "json report: report.json" in out
