"""Plugins that run tests again, stop them, shuffle them, count their lines, freeze their time or run them on a loop."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ET

import pytest
from plugin_runs import LOAD, SIM, needs

LONG = "model='tiny', requests=20000, warmup=0, num_predict=4"


@needs("rerunfailures")
def test_a_test_that_is_run_again_measures_again_and_reports_the_last(run, sim) -> None:
    run.write("""
        attempts = []

        @load
        def test_it(ollama_load):
            attempts.append(ollama_load.run.id)
            assert len(set(attempts)) == 3

        @load
        def test_other():
            pass
    """)
    sim.reset()
    ran = run("--reruns=2", "--junitxml=junit.xml", beside=("rerunfailures",))
    assert ran.status == 0, ran.out
    assert "2 passed, 2 rerun" in ran.out
    assert [len(test["loads"]) for test in ran.tests] == [1, 1]
    requests = [one for one in sim.requests() if one.eval_count]
    assert len(requests) == 4 * 8
    last = {sample["request_id"] for sample in ran.tests[0]["loads"][0]["samples"]}
    assert last == {one.request_id for one in requests[16:24]}
    cases = {case.get("name"): case for case in ET.parse(run.folder / "junit.xml").iter("testcase")}
    (*_, tps) = (one.get("value") for one in cases["test_it"].iter("property") if one.get("name") == "ollama.tps")
    assert float(tps) == ran.tests[0]["loads"][0]["metrics"]["tps"]["value"]


@needs("rerunfailures", "xdist")
def test_a_test_that_a_worker_runs_again_is_reported_once(run) -> None:
    run.write("""
        attempts = []

        @load
        def test_it(ollama_load):
            attempts.append(ollama_load.run.id)
            assert len(set(attempts)) == 2
    """)
    ran = run("--reruns=1", "-n", "1", beside=("rerunfailures", "xdist"))
    assert ran.status == 0, ran.out
    assert re.search(r"= 1 passed, (\d+ warnings?, )?1 rerun in", ran.out), ran.out
    assert [len(test["loads"]) for test in ran.tests] == [1]


@needs("flaky")
def test_flaky_runs_a_load_test_again_like_any_other(run) -> None:
    run.write("""
        from flaky import flaky

        attempts = []

        @flaky(max_runs=2)
        @load
        def test_it(ollama_load):
            attempts.append(ollama_load.run.id)
            assert len(set(attempts)) == 2
    """)
    ran = run(beside=("flaky",))
    assert ran.status == 0, ran.out
    assert [len(test["loads"]) for test in ran.tests] == [1]


@needs("repeat")
def test_repeats_are_tests_of_their_own(run) -> None:
    run.write("@load\ndef test_it():\n    pass")
    ran = run("--count=2", beside=("repeat",))
    assert (ran.status, ran.verdicts) == (0, {"test_it[1-2]": "ok", "test_it[2-2]": "ok"})


@needs("timeout")
@pytest.mark.parametrize(
    "fire",
    [f"@pytest.mark.ollama_load({LONG})\ndef test_it():", "def test_it(ollama):"],
    ids=["from the marker", "from code"],
)
def test_a_timeout_by_signal_stops_the_load_and_keeps_what_it_measured(run, fire: str) -> None:
    run.write(f"@pytest.mark.timeout(2)\n{fire}\n    ollama.load({LONG})\n\n@load\ndef test_after():\n    pass")
    ran = run("--timeout-method=signal", beside=("timeout",))
    assert ran.status == 1, ran.out
    assert "1 failed, 1 passed" in ran.out
    assert ran.verdicts == {"test_it": "aborted", "test_after": "ok"}
    outcomes = [sample["outcome"] for sample in ran.tests[0]["loads"][0]["samples"]]
    assert outcomes.count("ok") >= 3
    assert set(outcomes) <= {"ok", "cancelled"}
    assert "Timeout" in ran.tests[0]["loads"][0]["aborted"]
    assert "Timeout" in ran.out
    assert not re.findall(r"^\S*(?:pytest_ollama_perf|asyncio|anyio|selectors)\S*\.py:\d+", ran.out, re.MULTILINE), (
        ran.out
    )
    if "ollama.load" in fire:
        assert "> " in ran.out


@needs("timeout")
def test_a_timeout_by_thread_ends_the_process_and_frees_the_server(run) -> None:
    run.write(f"@pytest.mark.timeout(0.5)\n@pytest.mark.ollama_load({LONG})\ndef test_it():\n    pass")
    ran = run("--timeout-method=thread", beside=("timeout",))
    assert ran.status == 1
    assert "Timeout" in ran.out
    run.write("@load\ndef test_it():\n    pass")
    assert run(beside=("timeout",)).verdicts == {"test_it": "ok"}


@needs("randomly")
def test_tests_in_any_order_are_all_reported(run) -> None:
    run.write("@pytest.mark.parametrize('n', range(4))\n@load\ndef test_it(n):\n    pass")
    orders = set()
    prompts = set()
    for seed in (1, 2):
        ran = run("-p", "no:cacheprovider", f"--randomly-seed={seed}", beside=("randomly",))
        assert (ran.status, set(ran.verdicts.values())) == (0, {"ok"}), ran.out
        orders.add(tuple(ran.verdicts))
        prompts |= {test["loads"][0]["workload"]["salt"] for test in ran.tests}
    assert len(orders) == 2
    assert {frozenset(order) for order in orders} == {frozenset(f"test_it[{n}]" for n in range(4))}
    # a seed that makes chance repeat itself must not make two runs share their prompts, and so the prompt cache
    assert len(prompts) == 8


@needs("cov")
def test_coverage_counts_the_lines_of_a_load_test(run) -> None:
    run.write(f"""
        @load
        def test_it(ollama_load):
            if ollama_load.error_rate:
                raise AssertionError

        def test_code(ollama):
            ollama.load({LOAD})
    """)
    ran = run("--cov=test_it", "--cov-report=term-missing", beside=("cov",))
    assert (ran.status, ran.verdicts) == (0, {"test_it": "ok", "test_code": "ok"}), ran.out
    assert re.search(r"^test_it\.py +\d+ +1 +\d+%", ran.out, re.MULTILINE)


@needs("asyncio")
@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_pytest_asyncio_awaits_loads_and_its_loop_goes_on(run, mode: str) -> None:
    run.write(f"""
        import asyncio

        @pytest.mark.asyncio
        async def test_it(ollama):
            beats = 0

            async def beat():
                nonlocal beats
                while True:
                    await asyncio.sleep(0)
                    beats += 1

            beating = asyncio.create_task(beat())
            result = await ollama.aload({LOAD})
            beating.cancel()
            assert result.error_rate == 0
            assert beats > 1

        @pytest.mark.asyncio
        @load
        async def test_marked(ollama_load):
            assert ollama_load.error_rate == 0
    """)
    ran = run(f"--asyncio-mode={mode}", "-W", "ignore::pytest.PytestDeprecationWarning", beside=("asyncio",))
    assert (ran.status, ran.verdicts) == (0, {"test_it": "ok", "test_marked": "ok"}), ran.out


def test_anyio_awaits_loads_on_both_its_loops(run) -> None:
    run.write(f"""
        @pytest.mark.anyio
        async def test_it(ollama):
            assert (await ollama.aload({LOAD})).error_rate == 0

        @pytest.mark.anyio
        @load
        async def test_marked(ollama_load):
            assert ollama_load.error_rate == 0
    """)
    ran = run(beside=("anyio",))
    assert ran.status == 0, ran.out
    assert sorted(ran.verdicts) == [
        f"{name}[{loop}]" for name in ("test_it", "test_marked") for loop in ("asyncio", "trio")
    ]


@needs("freezegun")
def test_clocks_that_a_test_has_stopped_run_for_its_load(run) -> None:
    run.write(f"""
        import time

        from freezegun import freeze_time

        @freeze_time("2001-02-03")
        def test_code(ollama):
            before = time.time(), time.perf_counter()
            ollama.load({LOAD})
            assert (time.time(), time.perf_counter()) == before

        @freeze_time("2001-02-03")
        @load
        def test_marked(ollama_load):
            assert time.gmtime().tm_year == 2001
    """)
    began = time.time()
    ran = run()
    assert (ran.status, ran.verdicts) == (0, {"test_code": "ok", "test_marked": "ok"}), ran.out
    for test in ran.tests:
        (load,) = test["loads"]
        assert began <= load["started_at"] <= time.time()
        assert load["wall_s"] > 0
        assert all(sample["sent_ns"] < sample["first_token_ns"] <= sample["done_ns"] for sample in load["samples"])


@needs("freezegun")
def test_a_stopped_clock_does_not_hang_a_load_on_any_event_loop(run) -> None:
    run.write(
        f"""
        from freezegun import freeze_time

        def test_it(ollama):
            with freeze_time("2001-02-03"):
                assert ollama.load({LOAD}, rate=200).error_rate == 0
        """,
        conftest="import sys\nsys.modules['uvloop'] = None\n",
    )
    ran = run(url=SIM)
    assert (ran.status, ran.verdicts) == (0, {"test_it": "ok"}), ran.out
