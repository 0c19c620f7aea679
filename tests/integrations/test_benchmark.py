"""pytest-benchmark: latencies of loads in its table, files and comparisons, for those who ask."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import pytest
from plugin_runs import LOAD, needs

pytestmark = needs("benchmark")
ASK = "--ollama-benchmark"
BESIDE = ("benchmark",)
TESTS = f"""
@pytest.mark.parametrize("n", [1])
@load
def test_one(n):
    pass

def test_two(ollama):
    ollama.load({LOAD})
    ollama.load({LOAD}, concurrency=2)

def test_plain():
    pass
"""


def rows(path) -> dict[str, dict]:
    return {row["fullname"]: row for row in json.loads(path.read_bytes())["benchmarks"]}


def test_latencies_are_rows_of_table_and_file_and_can_be_compared(run) -> None:
    run.write(TESTS)
    ran = run(ASK, "--benchmark-json=bench.json", "--benchmark-autosave", beside=BESIDE)
    assert ran.status == 0, ran.out
    found = rows(run.folder / "bench.json")
    names = ["test_one[1]", "test_two 1", "test_two 2"]
    assert sorted(found) == sorted(f"test_it.py::{name}{end}" for name in names for end in ("", " ttft"))
    row = found["test_it.py::test_one[1]"]
    samples = ran.tests[0]["loads"][0]["samples"]
    latencies = [(sample["done_ns"] - sample["sent_ns"]) / 1e9 for sample in samples]
    assert row["stats"]["data"] == pytest.approx(latencies)
    assert row["stats"]["median"] == pytest.approx(statistics.median(latencies))
    assert (row["stats"]["rounds"], row["group"], row["param"]) == (8, "ollama latency", "1")
    assert row["params"] == {"model": "tiny", "concurrency": 1, "rate": None}
    assert row["extra_info"]["verdict"] == "ok"
    assert found["test_it.py::test_two 2 ttft"]["group"] == "ollama ttft"
    assert "benchmark 'ollama latency': 3 tests" in ran.out

    again = run(ASK, "--benchmark-compare", "--benchmark-compare-fail=min:900%", beside=BESIDE)
    assert again.status == 0, again.out
    assert "test_one[1] (NOW)" in again.out
    assert "test_one[1] (0001_" in again.out
    command = [sys.executable, "-m", "pytest_benchmark", "compare", "--group-by=param:model"]
    compared = subprocess.run(command, cwd=run.folder, capture_output=True, text=True, check=True, timeout=30)
    assert "benchmark 'model=tiny': 6 tests" in compared.stdout


def test_a_slower_load_fails_the_comparison(run) -> None:
    run.write("@load\ndef test_one():\n    pass")
    run(ASK, "--benchmark-autosave", beside=BESIDE)
    slow = "sim:?tps=100&load_time=0&models=tiny"
    ran = run(ASK, "--benchmark-compare", "--benchmark-compare-fail=mean:20%", beside=BESIDE, url=slow)
    assert ran.status == 1
    assert "Performance has regressed" in ran.out


def test_rows_stand_beside_benchmarks_of_other_things(run) -> None:
    run.write("@load\ndef test_one():\n    pass\n\ndef test_own(benchmark):\n    benchmark(int)")
    ran = run(
        ASK, "--benchmark-json=bench.json", "--benchmark-max-time=0.01", "--benchmark-group-by=param:n", beside=()
    )
    assert ran.status == pytest.ExitCode.USAGE_ERROR  # its options are not ours
    ran = run(ASK, "--benchmark-json=bench.json", "--benchmark-max-time=0.01", beside=BESIDE)
    assert set(rows(run.folder / "bench.json")) == {f"test_it.py::test_{end}" for end in ("one", "one ttft", "own")}


def test_nobody_gets_rows_who_did_not_ask(run) -> None:
    run.write("@load\ndef test_one():\n    pass")
    ran = run("--benchmark-json=bench.json", beside=BESIDE)
    assert (ran.status, ran.verdicts) == (0, {"test_one": "ok"})
    assert "ollama latency" not in ran.out


@pytest.mark.parametrize("off", ["--benchmark-disable", "--benchmark-skip"])
def test_who_switches_benchmarks_off_gets_none(run, off: str) -> None:
    run.write("@load\ndef test_one():\n    pass")
    ran = run(ASK, off, "--benchmark-json=bench.json", beside=BESIDE)
    assert (ran.status, ran.verdicts) == (0, {"test_one": "ok"})
    assert "ollama latency" not in ran.out
    assert "--ollama-benchmark" not in ran.out


@needs("xdist")
def test_loads_that_take_turns_on_workers_are_rows_too(run) -> None:
    run.write(TESTS)
    ran = run(ASK, "-n", "2", "--benchmark-json=bench.json", beside=(*BESIDE, "xdist"))
    assert ran.status == 0, ran.out
    assert len(rows(run.folder / "bench.json")) == 6


def test_requests_that_failed_keep_a_load_out_of_the_files(run) -> None:
    run.write(f"@pytest.mark.ollama_load({LOAD}, max_error_rate=1)\ndef test_one():\n    pass")
    url = "sim:?load_time=0&fault=http_500@2&models=tiny"
    ran = run(ASK, "--benchmark-json=bench.json", beside=BESIDE, url=url)
    assert (ran.status, ran.verdicts) == (0, {"test_one": "ok"}), ran.out
    assert rows(run.folder / "bench.json") == {}
    assert "benchmark 'ollama latency': 1 tests" in ran.out


def warnings(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("--ollama-benchmark:")]


def test_without_pytest_benchmark_one_line_says_so(run) -> None:
    run.write("@load\ndef test_one():\n    pass")
    ran = run(ASK)
    assert (ran.status, ran.verdicts) == (0, {"test_one": "ok"})
    assert warnings(ran.out) == [
        "--ollama-benchmark: pytest-benchmark is not installed: pip install pytest-benchmark, or remove the option"
    ]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            "import pytest_benchmark.stats as s; del s.Metadata",
            "AttributeError: module 'pytest_benchmark.stats' has no",
        ),
        ("import pytest_benchmark.stats as s; s.Metadata.as_dict = None", "TypeError: 'NoneType' object"),
        ("def pytest_sessionstart(session): del session.config._benchmarksession.benchmarks", "AttributeError: "),
    ],
)
def test_where_its_insides_have_changed_one_line_says_so_and_the_rest_goes_on(run, change: str, why: str) -> None:
    finish = "import pytest_benchmark.session as b; b.BenchmarkSession.finish = lambda self: None\n"
    run.write("@load\ndef test_one():\n    pass", conftest=finish + change)
    ran = run(ASK, beside=BESIDE)
    assert (ran.status, ran.verdicts) == (0, {"test_one": "ok"}), ran.out
    (said,) = warnings(ran.out)
    assert said.startswith(f"--ollama-benchmark: this version of pytest-benchmark is not supported ({why}")
    assert said.endswith("; no rows added")
