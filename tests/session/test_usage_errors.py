"""What is wrong is said in one line before the first test, and nothing is sent or written then."""

from __future__ import annotations

import pytest

from pytest_ollama_perf.config.report_targets import REPORT_TYPES

GOOD = """
@pytest.mark.ollama_load(model="tiny", requests=20, warmup=0, num_predict=2)
def test_it():
    pass
"""


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--ollama-url=", "--ollama-url is empty; give the server, for example --ollama-url=http://127.0.0.1:11434"),
        (
            "--ollama-url=http://me:s3cret@gpu:99999",
            "wrong server address 'http://***@gpu:99999': the port must be a number from 1 to 65535; valid: host, "
            "host:port, :port, [IPv6]:port, http://host:port/path, https://host",
        ),
        ("--ollama-url=sim:?slots=none", "simulator: slots='none': expected a number"),
        ("--ollama-max-runs=9", "--ollama-max-runs '9': expected a whole number from 1 to 3"),
        (
            "--ollama-margin=tps=5",
            "--ollama-margin 'tps=5': expected a percentage above 0%, such as 5%, or a share up to 1, such as 0.05",
        ),
        (
            "--ollama-header=X-Key s3cret",
            "--ollama-header expects 'Name: value' on one line, for example 'Authorization: Bearer ...'",
        ),
        ("--ollama-header=Content-Length: 5", "header 'Content-Length' is set by this client and cannot be given"),
        ("--ollama-ca-file=none.pem", "--ollama-ca-file 'none.pem': no such file"),
        ("--ollama-server-env=X", "--ollama-server-env 'X': expected NAME=VALUE, for example OLLAMA_NUM_PARALLEL=4"),
        (
            "--ollama-report=xml:r.xml",
            f"--ollama-report 'xml:r.xml': unknown report type 'xml'; valid types: {', '.join(REPORT_TYPES)}",
        ),
    ],
)
def test_a_wrong_option_ends_the_session_before_the_first_test(perf, sim, argument: str, message: str) -> None:
    perf.write(GOOD)
    sim.reset()
    found = perf.run(argument, url="" if "url" in argument else None)
    assert found.status == pytest.ExitCode.USAGE_ERROR
    assert found.err.strip() == f"ERROR: {message}"
    assert "s3cret" not in found.out + found.err
    assert not found.has_report
    assert sim.requests() == []


def test_a_wrong_ini_value_ends_the_session_before_the_first_test(perf) -> None:
    perf.write(GOOD, pytest="[pytest]\nollama_max_runs = many")
    found = perf.run()
    assert found.status == pytest.ExitCode.USAGE_ERROR
    assert found.err.strip() == "ERROR: --ollama-max-runs 'many': expected a whole number from 1 to 3"


def test_every_wrong_marker_is_named_with_its_test(perf, sim) -> None:
    perf.write("""
        @pytest.mark.ollama_load(concurrency=0)
        def test_one():
            pass

        @pytest.mark.ollama_load(min_tsp=1)
        def test_two():
            pass

        @pytest.mark.ollama_load("tiny")
        def test_three():
            pass

        def test_four(ollama_load):
            pass

        def test_five():
            pass
    """)
    sim.reset()
    found = perf.run()
    assert found.status == pytest.ExitCode.USAGE_ERROR
    lines = [line.strip() for line in found.err.strip().splitlines()]
    assert [line[:74] for line in lines] == [
        "ERROR: test_it.py::test_one: concurrency=0: expected a whole number from 1 to 2147483647"[:74],
        "test_it.py::test_two: unknown argument 'min_tsp'; did you mean 'min_tps'? (valid: model"[:74],
        "test_it.py::test_three: the marker takes keyword arguments only, for example @pytest.mark"[:74],
        "test_it.py::test_four: uses the fixture ollama_load without the marker; add @pytest.mark.o"[:74],
    ]
    assert (sim.requests(), found.has_report) == ([], False)


def test_values_of_wrong_types_name_their_tests_and_hide_no_other(perf) -> None:
    perf.write("""
        @pytest.mark.ollama_sweep(concurrency=[[1, 2], [4]])
        def test_nested():
            pass

        @pytest.mark.ollama_load(min_tps=10**400)
        def test_huge():
            pass

        @pytest.mark.ollama_load(requests=0)
        def test_none():
            pass
    """)
    found = perf.run()
    assert found.status == pytest.ExitCode.USAGE_ERROR
    assert [
        line.split(": ")[0].rpartition("::")[2] for line in found.err.replace("ERROR: ", "").splitlines() if line
    ] == [
        "test_nested",
        "test_huge",
        "test_none",
    ]


def test_a_misspelt_marker_is_an_error_where_markers_are_strict(perf) -> None:
    perf.write("@pytest.mark.olama_load(min_tps=1)\ndef test_it():\n    pass")
    found = perf.run("--strict-markers")
    assert found.status == pytest.ExitCode.INTERRUPTED
    assert "'olama_load' not found in `markers` configuration option" in found.out


@pytest.mark.parametrize("showing", ["--collect-only", "--setup-plan", "--fixtures", "--markers", "--help"])
def test_showing_what_there_is_contacts_nobody_and_writes_nothing(perf, sim, showing: str) -> None:
    perf.write(GOOD)
    sim.reset()
    found = perf.run(showing)
    assert found.status == 0
    assert (sim.requests(), found.section, found.has_report) == ([], [], False)
    assert not [line for line in found.out.splitlines() if line.startswith("ollama 0.")]


def test_a_wrong_word_of_a_load_from_code_fails_that_test_alone(perf) -> None:
    perf.write("""
        def test_it(ollama):
            ollama.load(modl="tiny")

        def test_next():
            pass
    """)
    found = perf.run()
    assert found.counts == {"failed": 1, "passed": 1}
    assert "unknown argument 'modl'; did you mean 'model'?" in found.out
