"""Beside other plugins, and without some of pytest's own."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

LOAD = "model='tiny', requests=20, warmup=0, num_predict=4"
TWO = f"""
@pytest.mark.ollama_load({LOAD}, min_tps=1e9)
def test_bad():
    pass

@pytest.mark.ollama_load({LOAD})
def test_good():
    pass
"""


def test_without_a_terminal_loads_are_judged_and_written(perf) -> None:
    perf.write(TWO)
    found = perf.run("-p", "no:terminal", "--junitxml=junit.xml")
    assert (found.status, found.out) == (1, "")
    suite = ET.parse(perf.path / "junit.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [test["verdict"] for test in found.report["tests"]] == ["broken", "ok"]


@pytest.mark.parametrize("capture", ["no", "sys", "fd", "tee-sys"])
def test_what_a_test_prints_is_captured_as_ever(perf, capture: str) -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD})
        def test_it(ollama_load, capsys):
            print("own words")
            ollama_load.tps
            assert capsys.readouterr().out == "own words\\n"
    """)
    assert perf.run(f"--capture={capture}").counts == {"passed": 1}


def test_a_test_that_is_run_again_measures_again(perf, sim) -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD})
        def test_it(ollama_load):
            assert ollama_load.error_rate == 0
    """)
    (perf.path / "conftest.py").write_text(
        "from _pytest.runner import runtestprotocol\n"
        "def pytest_runtest_protocol(item, nextitem):\n"
        "    runtestprotocol(item, nextitem=nextitem, log=False)\n"
        "    item._initrequest()\n"
    )
    sim.reset()
    found = perf.run()
    assert found.counts == {"passed": 1}
    assert len([one for one in sim.requests() if one.eval_count]) == 40
    assert [len(test["loads"]) for test in found.report["tests"]] == [1]


def test_a_session_that_imports_nothing_of_ours_pays_for_nothing(perf) -> None:
    perf.write("""
        import sys

        def test_it():
            heavy = {"scipy", "numpy", "httpx", "rich", "anyio", "uvloop", "msgspec", "httptools", "jinja2"}
            assert not heavy & set(sys.modules)
    """)
    with perf.start() as process:
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0, out
