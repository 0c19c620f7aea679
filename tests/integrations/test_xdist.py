"""pytest-xdist: loads take turns, the controller alone reports, nothing that was measured is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from plugin_runs import LOAD, SIM, apart, needs

from pytest_ollama_perf.core.lock import ServerLock, Waiting
from pytest_ollama_perf.store import open_store

pytestmark = needs("xdist")
TWO = ("-n", "2")

MANY = f"""
@load
def test_one():
    pass

@pytest.mark.xdist_group("b@c")
@load
def test_two(ollama_load, ollama_url):
    assert ollama_load.error_rate == 0
    assert ollama_load.samples[0].url == ollama_url

@pytest.mark.ollama_load({LOAD}, min_tps=1e9)
def test_three():
    pass

def test_code(ollama):
    ollama.load({LOAD})
    ollama.load({LOAD})

@pytest.mark.ollama_sweep({LOAD}, concurrency=[1, 2])
def test_sweep():
    pass

def test_none():
    pass
"""


@pytest.fixture
def many(run):
    """One run of two workers on one simulator."""
    run.write(MANY)
    return run(*TWO, "--dist=loadgroup", "-v", "--junitxml=junit.xml", beside=("xdist",), url=SIM)


def test_two_workers_measure_one_after_the_other_and_the_controller_reports(many) -> None:
    assert many.status == 1
    assert many.verdicts == {
        "test_one": "ok",
        "test_two": "ok",
        "test_three": "broken",
        "test_code": "ok",
        "test_sweep": "ok",
    }
    assert list(many.verdicts) == ["test_one", "test_two", "test_three", "test_code", "test_sweep"]
    assert [len(test["loads"]) for test in many.tests] == [1, 1, 1, 2, 2]
    assert [len(test["findings"]) for test in many.tests] == [0, 0, 0, 0, 1]
    assert len(many.windows) == 7
    assert apart(many.windows)
    loads = [load for test in many.tests for load in test["loads"]]
    assert len({sample["url"] for load in loads for sample in load["samples"]}) == 1
    assert many.out.count(" ollama =") == 1
    assert many.out.count("ollama 0.32.15 at sim:") == 1
    assert many.out.count("json report: report.json") == 1
    assert "_ test_three _" in many.out
    cases = {case.get("name"): case for case in ET.parse(many.folder / "junit.xml").iter("testcase")}
    found = {name: case.find("properties/property[@name='ollama.verdict']") for name, case in cases.items()}
    assert found["test_three"].get("value") == "broken"
    assert found["test_none"] is None


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_is_wrong_is_a_usage_error_with_any_number_of_workers(run, workers: str) -> None:
    run.write("""
        @pytest.mark.ollama_load(requsts=1)
        def test_one():
            pass

        @pytest.mark.ollama_load(min_tpss=1)
        def test_two():
            pass
    """)
    ran = run("-n", workers, beside=("xdist",))
    assert ran.status == pytest.ExitCode.USAGE_ERROR
    said = [line for line in ran.out.splitlines() if "test_it.py::" in line]
    assert len(said) == 2
    assert said[0].startswith("ERROR: test_it.py::test_one: unknown argument 'requsts'; did you mean 'requests'?")
    assert said[1].startswith("       test_it.py::test_two: unknown argument 'min_tpss'; did you mean 'min_tps'?")
    assert "Traceback" not in ran.out
    assert not (run.folder / "report.json").exists()


def test_no_workers_are_a_session_as_ever(run) -> None:
    run.write("@load\ndef test_one():\n    pass")
    ran = run("-n", "0", beside=("xdist",))
    assert (ran.status, ran.verdicts) == (0, {"test_one": "ok"})
    assert ran.out.count("ollama 0.32.15 at ") == 1


def test_workers_save_what_they_measured_under_the_name_it_has_without_them(run) -> None:
    run.write("""
        @pytest.mark.parametrize("n", range(3))
        @pytest.mark.xdist_group("together")
        @load
        def test_one(n):
            pass
    """)
    ran = run(*TWO, "--ollama-save", "--dist=loadgroup", beside=("xdist",))
    assert (ran.status, set(ran.verdicts.values())) == (0, {"new"}), ran.out
    with contextlib.closing(open_store(str(run.folder / ".ollama-perf"))) as store:
        sessions = {run.session for name in store.list_tests() for run in store.read_history(name).runs}
        assert store.list_tests() == tuple(test["test"] for test in ran.tests)
        assert len(sessions) == 1
    again = run("-m", "xdist_group", beside=("xdist",))
    assert [test["stored"] for test in again.tests] == [1, 1, 1]


def test_a_history_that_a_worker_could_not_save_fails_the_build(run) -> None:
    run.write(
        "@load\ndef test_one():\n    pass",
        conftest="""
            from pytest_ollama_perf.core import StoreError
            from pytest_ollama_perf.store.directory import DirectoryStore

            def add(self, run, kind):
                raise StoreError("the disk is full")

            DirectoryStore.add = add
        """,
    )
    ran = run(*TWO, "--ollama-save", beside=("xdist",))
    assert ran.status == pytest.ExitCode.TESTS_FAILED
    assert "1 passed" in ran.out
    assert "not saved: the disk is full" in ran.out


def test_a_worker_that_dies_in_a_load_costs_that_load_alone(run) -> None:
    run.write(f"""
        import os, threading

        @load
        def test_before():
            pass

        def test_dies(ollama):
            threading.Timer(0.3, os._exit, (3,)).start()
            ollama.load(model="tiny", requests=20000, warmup=0, num_predict=4)

        @pytest.mark.parametrize("n", range(3))
        @pytest.mark.ollama_load({LOAD})
        def test_after(n):
            pass
    """)
    ran = run(*TWO, beside=("xdist",))
    assert ran.status == 1
    assert "1 failed, 4 passed" in ran.out
    assert set(ran.verdicts) == {"test_before", "test_after[0]", "test_after[1]", "test_after[2]"}
    assert apart(ran.windows)


def test_the_first_failure_ends_the_session_with_a_report(run) -> None:
    run.write(f"""
        @pytest.mark.parametrize("n", range(6))
        @pytest.mark.ollama_load({LOAD}, min_tps=1e9)
        def test_bad(n):
            pass
    """)
    ran = run(*TWO, "-x", beside=("xdist",))
    assert ran.status == pytest.ExitCode.INTERRUPTED
    assert set(ran.verdicts.values()) == {"broken"}
    assert 1 <= len(ran.verdicts) <= 4
    assert list(ran.verdicts) == sorted(ran.verdicts)
    assert "stopping after 1 failures" in ran.out


def test_a_stopped_controller_reports_what_it_had_received(run) -> None:
    run.write("""
        @load
        def test_quick():
            pass

        @pytest.mark.ollama_load(model="tiny", requests=20000, warmup=0, num_predict=4)
        def test_long():
            pass
    """)
    with run.start("-n", "1", "-v", beside=("xdist",)) as process:
        for line in process.stdout:
            if "PASSED" in line:
                break
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, out
    report = json.loads((run.folder / "report.json").read_bytes())
    assert report["tests"][0]["test"] == "test_it.py::test_quick"
    assert report["aborted"] == "terminated (SIGTERM)"


def test_two_sessions_of_one_user_take_turns_at_a_server(run) -> None:
    run.write("@pytest.mark.parametrize('n', range(3))\n@load\ndef test_one(n):\n    pass")
    reports = ("--ollama-report=json:one.json", "--ollama-report=json:two.json")
    processes = [run.start(report) for report in reports]
    outs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outs
    windows = []
    for name in ("one.json", "two.json"):
        tests = json.loads((run.folder / name).read_bytes())["tests"]
        windows += [[sample for load in test["loads"] for sample in load["samples"]] for test in tests]
    spans = sorted((min(s["sent_ns"] for s in one), max(s["done_ns"] for s in one)) for one in windows)
    assert len(spans) == 6
    assert all(one[1] <= other[0] for one, other in pairwise(spans))


def test_waiting_is_said_and_ends_with_the_session(run) -> None:
    run.write("@load\ndef test_one():\n    pass")
    with ServerLock().hold((run.url,), "a long test", Waiting()):
        with run.start("-v") as process:
            said = read_until(process, "a long test")
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=20)
    assert f"waiting for another load on {run.url}: process {os.getpid()}" in said
    assert process.returncode == pytest.ExitCode.INTERRUPTED, out
    assert "KeyboardInterrupt" in out


@pytest.mark.parametrize("verbosity", ["-v", "-q", ""])
def test_waiting_has_a_limit_and_is_reported_once(run, verbosity: str) -> None:
    run.write("@load\ndef test_one():\n    pass")
    with ServerLock().hold((run.url,), "a long test", Waiting()):
        ran = run("--ollama-wait=0.3", *filter(None, [verbosity]))
    assert ran.status == pytest.ExitCode.TESTS_FAILED, ran.out
    assert ran.out.count("waiting for another load") == 1, ran.out
    assert ran.verdicts == {"test_one": "invalid"}
    assert "--ollama-wait" in ran.tests[0]["reason"]


def test_the_verdict_hook_is_called_once_per_test_in_the_controller(run) -> None:
    conftest = """
        import os
        def pytest_ollama_verdict(config, result):
            worker = hasattr(config, "workerinput")
            with open("verdicts.txt", "a") as file:
                file.write(f"{result.test} {result.verdict.status.value} {worker}\\n")
    """
    run.write("@load\ndef test_one():\n    pass\n\n@load\ndef test_two():\n    pass\n", conftest=conftest)
    assert run(*TWO, beside=("xdist",)).status == 0
    assert sorted((run.folder / "verdicts.txt").read_text().splitlines()) == [
        "test_it.py::test_one ok False",
        "test_it.py::test_two ok False",
    ]


LONG = """
import os, time

@load
def test_first():
    pass

def test_long(ollama):
    open(f"pid-{os.getpid()}", "w").close()
    ollama.load(model="tiny", requests=100000, warmup=0, num_predict=4)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_controller_keeps_what_was_measured_and_stops_its_workers(run, number: int) -> None:
    run.write(LONG)
    with run.start("-n1", beside=("xdist",)) as process:
        while not (found := list(run.folder.glob("pid-*"))):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        time.sleep(0.5)
        process.send_signal(number)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, out
    verdicts = {
        test["test"]: test["verdict"] for test in json.loads((run.folder / "report.json").read_bytes())["tests"]
    }
    assert verdicts == {"test_it.py::test_first": "ok", "test_it.py::test_long": "aborted"}, out
    with pytest.raises(ProcessLookupError):
        os.kill(int(found[0].name.removeprefix("pid-")), 0)


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Read what the process writes until ``text`` stands there; a line under way has no end yet."""
    said = b""
    while text.encode() not in said and (more := os.read(process.stdout.fileno(), 4096)):
        said += more
    return said.decode()
