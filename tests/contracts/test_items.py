"""A contract file under pytest: items, verdicts, one load for all clauses of a group, selection, reports."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from contract_runs import Contracts

TWO_LOADS = """\
schema = 1
[model.tiny]
concurrency = [1, 2]
requests = 6
num_predict = 4
tps = ">= 10"
ttft = ["p50 <= 1us", "regression <= 20%"]
"""
CLAUSES = ["tps >= 10", "ttft p50 <= 1us", "ttft regression <= 20%", "error_rate <= 0%"]


def outcomes(out: str) -> dict[str, str]:
    return dict(re.findall(r"^(c\.ollama\.toml::.*?) (?:\n .*?)*\n?(PASSED|FAILED)", out, re.MULTILINE))


def sent(contracts: Contracts) -> list[int]:
    """Return the number of samples of every load in the report."""
    return [len(load["samples"]) for test in contracts.report["tests"] for load in test["loads"]]


def test_every_clause_is_an_item_that_passes_or_fails_by_itself(contracts: Contracts) -> None:
    contracts.write(TWO_LOADS)
    result = contracts.run("-v")
    result.assert_outcomes(passed=6, failed=2)
    assert outcomes(result.stdout.str()) == {
        f"c.ollama.toml::tiny::{place}::{clause}": "FAILED" if clause == "ttft p50 <= 1us" else "PASSED"
        for place in ("concurrency=1", "concurrency=2")
        for clause in CLAUSES
    }


def test_a_load_is_fired_once_for_all_its_clauses(contracts: Contracts) -> None:
    contracts.write(TWO_LOADS)
    contracts.run()
    assert sent(contracts) == [7, 8]
    assert [(test["test"], test["verdict"]) for test in contracts.report["tests"]] == [
        ("c.ollama.toml::tiny::concurrency=1", "broken"),
        ("c.ollama.toml::tiny::concurrency=2", "broken"),
    ]
    rows = contracts.report["tests"][0]["rows"]
    assert [(row["metric"], row["stat"], row["status"]) for row in rows] == [
        ("tps", "", "ok"),
        ("ttft", "p50", "broken"),
        ("error_rate", "", "ok"),
    ]


def test_a_broken_clause_says_why_with_what_was_measured_and_where_it_stands(contracts: Contracts) -> None:
    contracts.write(TWO_LOADS)
    out = contracts.run("c.ollama.toml::tiny::concurrency=1", "-k", "p50").stdout.str()
    masked = re.sub(r"\d+(\.\d+)?", "#", out)
    assert re.search(r"^_+ tiny, concurrency=#: ttft p# <= #us _+$", masked, re.MULTILINE)
    failure = masked[masked.index("ttft p# # ms, limit <= # ms") :].splitlines()
    assert failure[0] == "ttft p# # ms, limit <= # ms: # of # requests over"
    assert failure[2].split() == ["limit", "now", "#%", "CI"]
    assert failure[3].split()[:6] == ["x", "ttft", "p#", "<=", "#", "ms"]
    assert failure[4] == "  # requests, concurrency #, # warm-up dropped, # errors"
    assert sent(contracts) == [7]


def test_selection_by_keyword_node_id_and_stop_work(contracts: Contracts) -> None:
    contracts.write(TWO_LOADS)
    contracts.run("c.ollama.toml::tiny::concurrency=2::tps >= 10").assert_outcomes(passed=1)
    assert sent(contracts) == [8]
    contracts.run("c.ollama.toml::tiny::concurrency=2").assert_outcomes(passed=3, failed=1)
    contracts.run("-k", "error_rate").assert_outcomes(passed=2, deselected=6)
    contracts.run("-x").assert_outcomes(passed=1, failed=1)
    assert sent(contracts) == [7]


def test_last_failed_runs_the_broken_clauses_again(contracts: Contracts) -> None:
    contracts.write(TWO_LOADS)
    contracts.run(cache=True).assert_outcomes(passed=6, failed=2)
    contracts.run("--lf", cache=True).assert_outcomes(failed=2)


def test_junit_names_every_clause(contracts: Contracts) -> None:
    contracts.write(TWO_LOADS)
    contracts.run("--junitxml=junit.xml", "c.ollama.toml::tiny::concurrency=1")
    cases = ElementTree.parse(contracts.path / "junit.xml").findall(".//testcase")
    assert [(case.get("classname"), case.get("name")) for case in cases] == [
        ("c.ollama.toml.tiny.concurrency=1", clause) for clause in CLAUSES
    ]
    (failed,) = [case for case in cases if case.find("failure") is not None]
    assert "ttft p50" in (failed.find("failure").get("message") or "")


def test_a_broken_precondition_makes_every_clause_invalid_and_fires_nothing(contracts: Contracts) -> None:
    contracts.write(TWO_LOADS + '[model.tiny.require]\nquantization = "Q8_0"\nversion = ">= 0.1"\n')
    result = contracts.run("c.ollama.toml::tiny::concurrency=2")
    result.assert_outcomes(failed=4)
    text = "precondition quantization = 'Q8_0' is broken: it is F16"
    assert result.stdout.str().count(f"\n{text}\n") == 4
    (test,) = contracts.report["tests"]
    assert (test["verdict"], test["reason"], test["loads"]) == ("invalid", text, [])


def test_preconditions_that_hold_are_no_news(contracts: Contracts) -> None:
    require = """
    [model.tiny.require]
    gpu_offload = "0%"
    context_length = ">= 4096"
    version = ">= 0.1, < 99"
    quantization = ["F16", "q4_k_m"]
    server_env = { OLLAMA_NUM_PARALLEL = "4" }
    """
    contracts.write(TWO_LOADS + "\n".join(line.strip() for line in require.splitlines()))
    first = "c.ollama.toml::tiny::concurrency=1"
    declared = "--ollama-server-env=OLLAMA_NUM_PARALLEL=4"
    contracts.run(first, "-k", "tps", declared).assert_outcomes(passed=1, deselected=3)
    contracts.run(first, "-k", "tps").assert_outcomes(failed=1, deselected=3)


def test_regression_clauses_are_judged_by_history_and_no_other_number_is(contracts: Contracts) -> None:
    contracts.write(
        """\
        schema = 1
        [model.tiny]
        requests = 6
        num_predict = 4
        tps = "regression <= 40%"
        """
    )
    out = contracts.run("--ollama-save").stdout.str()
    assert "no baseline yet: save some runs with --ollama-save" in out
    contracts.run("--ollama-save")
    contracts.run("--ollama-require-baseline").assert_outcomes(passed=2)
    rows = contracts.report["tests"][0]["rows"]
    judged = [row["metric"] for row in rows if row["baseline"] is not None]
    assert judged == ["tps"]


def test_a_regression_fails_its_own_clause_alone(contracts: Contracts) -> None:
    contracts.write(
        """\
        schema = 1
        [model.tiny]
        requests = 6
        num_predict = 16
        tps = ["regression <= 20%", ">= 1"]
        """
    )
    for _ in range(3):
        contracts.run("--ollama-save")
    slow = "sim:?slots=4&tps=400&prefill_tps=100000&load_time=0&overhead=0&models=tiny"
    result = contracts.run(url=slow)
    result.assert_outcomes(passed=2, failed=1)
    out = result.stdout.str()
    assert re.search(r"^tps -[89]\d(\.\d+)? % ", out, re.MULTILINE)
    assert "pytest-ollama-perf accept c.ollama.toml::tiny::concurrency=1 " in out


def test_a_contract_in_pyproject_is_collected_where_it_is_asked_for(contracts: Contracts) -> None:
    contracts.write(
        "[project]\nname = 'x'\n[tool.pytest_ollama_perf]\nschema = 1\n"
        "[tool.pytest_ollama_perf.model.tiny]\nrequests = 4\nnum_predict = 4\ntps = '>= 1'\n",
        "pyproject.toml",
    )
    contracts.run("pyproject.toml").assert_outcomes(passed=2)


def test_other_files_of_that_name_and_ending_are_left_alone(contracts: Contracts) -> None:
    contracts.write("[project]\nname = 'pytest_ollama_perf'\n", "pyproject.toml")
    contracts.write("this is = = no TOML, pytest_ollama_perf", "sub.pyproject.toml")
    contracts.write("def test_one(): pass", "test_one.py")
    contracts.run().assert_outcomes(passed=1)


def test_a_wrong_file_stops_the_run_before_the_first_test_with_its_line(contracts: Contracts) -> None:
    contracts.write("schema = 1\n[model.tiny]\nconcurency = 4\n")
    contracts.write("def test_one(): pass", "test_one.py")
    result = contracts.run()
    assert result.ret == 2
    assert "\nc.ollama.toml:3: unknown key 'concurency' of a load; did you mean 'concurrency'?\n" in result.stdout.str()


def test_experiments_fail_clause_by_clause(contracts: Contracts) -> None:
    contracts.write(
        """\
        schema = 1
        [model.tiny]
        num_predict = 4
        [model.tiny.sweep]
        concurrency = [1, 2]
        requests = 6
        knee = ">= 1"
        ttft = ["p50 <= 10s", "p50 <= 1us"]
        [model.tiny.cold_start]
        repeats = 1
        requests = 3
        cold_ttft = "<= 10s"
        cold_latency = "<= 1us"
        [model.tiny.max_concurrency]
        maximum = 2
        requests = 6
        max_latency = "10s"
        concurrency = ">= 2"
        """
    )
    result = contracts.run("-v")
    assert outcomes(result.stdout.str()) == {
        "c.ollama.toml::tiny::sweep::knee >= 1": "PASSED",
        "c.ollama.toml::tiny::sweep::ttft p50 <= 10s": "PASSED",
        "c.ollama.toml::tiny::sweep::ttft p50 <= 1us": "FAILED",
        "c.ollama.toml::tiny::sweep::error_rate <= 0%": "PASSED",
        "c.ollama.toml::tiny::cold start::cold_ttft <= 10s": "PASSED",
        "c.ollama.toml::tiny::cold start::cold_latency <= 1us": "FAILED",
        "c.ollama.toml::tiny::cold start::error_rate <= 0%": "PASSED",
        "c.ollama.toml::tiny::max concurrency::concurrency >= 2": "PASSED",
    }


def test_a_model_that_is_missing_fails_every_clause_with_the_command_to_type(contracts: Contracts) -> None:
    contracts.write("schema = 1\n[model.nope]\ntps = '>= 1'")
    result = contracts.run()
    result.assert_outcomes(failed=2)
    assert result.stdout.str().count("ollama pull nope") >= 2


def test_a_contract_that_is_not_utf_8_names_file_and_line(contracts: Contracts) -> None:
    (contracts.path / "c.ollama.toml").write_bytes(b'schema = 1\n[load]\nprompt = "gr\xfc\xdfe"\n')
    contracts.run("c.ollama.toml").stdout.fnmatch_lines(["*c.ollama.toml:3: not UTF-8; save the file with*"])
