"""A broken limit fails the test itself: what is said, and that pytest's own ways of failing still work."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

LOAD = "model='tiny', requests=20, warmup=1, num_predict=4"


def masked(lines: list[str]) -> str:
    """The lines with every measured number as N and every gap as one space."""
    text = "\n".join(re.sub(r" +", " ", line).rstrip() for line in lines)
    return re.sub(r"(?<![\w.])[+-]?\d[\d.]*(e[+-]?\d+)?", "N", text).strip()


def test_the_failure_stands_alone_and_then_explains_itself(perf) -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD}, min_tps=1e6, max_p95_latency=60)
        def test_speed():
            pass
    """)
    found = perf.run()
    assert found.status == 1
    assert masked(found.failure("test_speed")) == (
        "tps N /s, limit >= N /s: N % below\n"
        "\n"
        " limit now N% CI\n"
        " x tps >= N /s N /s N .. N /s\n"
        " ? latency p95 <= N s N ms -\n"
        " error_rate <= N % N % N .. N %\n"
        " N requests, concurrency N, N warm-up dropped, N errors\n"
        " ollama N, tiny:latest F16, num_ctx N, CPU"
    )


def test_the_section_after_the_run_has_a_block_for_each_test(perf) -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD}, min_tps=1)
        def test_good():
            pass

        @pytest.mark.ollama_load({LOAD}, min_tps=1e6)
        def test_bad():
            pass
    """)
    found = perf.run()
    assert masked(found.section).partition("\n rerun with all metrics:")[0] == (
        "test_it.py::test_good ok\n"
        " tps N /s, throughput N /s, qps N /s, ttft p50 N ms / p95 N ms,\n"
        " latency p95 N ms, queue p50 N ms\n"
        " N requests, concurrency N, N warm-up dropped, N errors\n"
        " ollama N, tiny:latest F16, num_ctx N, CPU\n"
        "\n"
        "test_it.py::test_bad broken\n"
        "\n"
        "N ok, N broken"
    )
    assert found.section[-1] == "json report: report.json"


def test_everything_fits_eighty_columns(perf) -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD}, min_tps=1e6, max_p99_itl="1us", max_mean_ttft="1us")
        def test_with_a_name_that_is_far_longer_than_any_terminal_that_people_still_use_for_tests():
            pass
    """)
    for verbosity in ("-q", "-v", "-vv"):
        found = perf.run(verbosity)
        ours = found.section + [line for line in found.out.splitlines() if line.startswith(("ollama", "tps"))]
        assert ours
        assert [line for line in ours if len(line) > 80] == []


def test_quiet_is_one_line(perf) -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD}, min_tps=1e6)
        def test_bad():
            pass

        @pytest.mark.ollama_load({LOAD})
        def test_good():
            pass
    """)
    found = perf.run("-q", "-rN")
    ours = [line for line in found.out.splitlines() if "ollama" in line and "ollama 0" not in line]
    assert [masked([line])[:59] for line in ours] == [
        "ollama: N ok, N broken; test_bad: tps N /s, limit >= N /s: "[:59]
    ]


def test_verbose_has_every_number_of_every_metric(perf) -> None:
    perf.write(f"@pytest.mark.ollama_load({LOAD})\ndef test_it():\n    pass")
    section = perf.run("-v").section
    first = [line.split()[0] for line in section if line.strip()]
    wanted = ["tps", "throughput", "throughput_whole", "qps", "ttft", "tpot", "itl", "latency", "queue", "prefill_tps"]
    assert set(wanted) | {"load_time", "error_rate"} <= set(first)
    assert any(line.split() == ["value", "mean", "p50", "p90", "p95", "p99", "min", "max"] for line in section)


def test_no_colour_when_asked_and_colour_when_asked(perf) -> None:
    perf.write(f"@pytest.mark.ollama_load({LOAD}, min_tps=1e6)\ndef test_it():\n    pass")
    assert "\x1b" not in perf.run("--color=no").out
    assert re.search(r"\x1b\[31m\x1b\[1mtest_it.py::test_it +broken\x1b\[0m", perf.run("--color=yes").out)


def test_an_expected_failure_is_xfailed(perf) -> None:
    perf.write(f"""
        @pytest.mark.xfail(reason="known to be slow", strict=True)
        @pytest.mark.ollama_load({LOAD}, min_tps=1e6)
        def test_slow():
            pass

        @pytest.mark.xfail(strict=True)
        @pytest.mark.ollama_load({LOAD}, min_tps=1)
        def test_fast():
            pass
    """)
    found = perf.run()
    assert found.counts == {"xfailed": 1, "failed": 1}
    assert found.failure("test_fast") == ["[XPASS(strict)] "]


def test_the_first_failure_stops_the_session_and_the_rest_fires_nothing(perf, sim) -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD}, min_tps=1e6)
        def test_first():
            pass

        @pytest.mark.ollama_load({LOAD})
        def test_second():
            pass
    """)
    sim.reset()
    found = perf.run("-x")
    assert found.counts == {"failed": 1}
    assert [test["test"] for test in found.report["tests"]] == ["test_it.py::test_first"]
    assert len([one for one in sim.requests() if one.eval_count]) == 21


def test_last_failed_runs_the_broken_test_again(perf) -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD}, min_tps=1e6)
        def test_bad():
            pass

        @pytest.mark.ollama_load({LOAD})
        def test_good():
            pass
    """)
    cached = ("-p", "cacheprovider")
    perf.run(*cached)
    found = perf.run(*cached, "--last-failed")
    assert [test["test"] for test in found.report["tests"]] == ["test_it.py::test_bad"]


def test_junit_has_one_failure_whose_first_line_is_the_reason(perf) -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD}, min_tps=1e6)
        def test_bad():
            pass

        @pytest.mark.ollama_load({LOAD})
        def test_good():
            pass
    """)
    found = perf.run("--junitxml=junit.xml")
    suite = ET.parse(perf.path / "junit.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    (failure,) = suite.iter("failure")
    reason = found.report["tests"][0]["reason"]
    assert (failure.text or "").splitlines()[0] == reason
    assert failure.get("message", "").splitlines()[0] == f"VerdictError: {reason}"


def test_a_broken_contract_speaks_before_the_assertion_that_stumbled_over_it(perf) -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD}, min_tps=1e6)
        def test_it(ollama_load):
            assert ollama_load.tps > 1e6, "too slow"
    """)
    found = perf.run()
    failure = found.failure("test_it")
    assert masked(failure[:1]) == "tps N /s, limit >= N /s: N % below"
    assert any("too slow" in line for line in failure)


def test_an_assertion_of_the_test_fails_it_though_every_limit_is_met(perf) -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD})
        def test_it(ollama_load):
            assert ollama_load.tps > 1e6, "too slow"
    """)
    found = perf.run()
    assert found.counts == {"failed": 1}
    assert "too slow" in found.out
    assert [test["verdict"] for test in found.report["tests"]] == ["ok"]


def test_a_test_that_fails_in_its_setup_fires_nothing(perf, sim) -> None:
    perf.write(f"""
        @pytest.fixture
        def broken():
            raise RuntimeError("no setup")

        @pytest.mark.ollama_load({LOAD})
        def test_it(broken, ollama_load):
            pass
    """)
    sim.reset()
    found = perf.run()
    assert (found.counts, sim.requests(), found.report["tests"]) == ({"errors": 1}, [], [])


def test_a_fixture_may_ask_for_the_load_before_the_test(perf) -> None:
    perf.write(f"""
        @pytest.fixture
        def speed(ollama_load):
            return ollama_load.tps

        @pytest.mark.ollama_load({LOAD})
        def test_it(speed, ollama_load):
            assert speed == ollama_load.tps
    """)
    found = perf.run()
    assert found.counts == {"passed": 1}
    assert [len(test["loads"]) for test in found.report["tests"]] == [1]


def test_a_check_holds_the_load_against_more_limits(perf) -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD})
        def test_good(ollama_load):
            assert ollama_load.check(min_tps=1).status.value == "ok"

        @pytest.mark.ollama_load({LOAD})
        def test_bad(ollama_load):
            ollama_load.check(limits={{"tps": ">= 1000000"}})
    """)
    found = perf.run()
    assert found.counts == {"passed": 1, "failed": 1}
    assert masked(found.failure("test_bad")[:1]) == "tps N /s, limit >= N /s: N % below"
    good, bad = found.report["tests"]
    assert (good["verdict"], bad["verdict"]) == ("ok", "broken")
    assert (len(good["loads"]), len(bad["loads"])) == (1, 1)
    assert [row["metric"] for row in bad["rows"]] == ["error_rate", "tps"]


def test_a_load_from_code_is_judged_unless_asked_otherwise(perf) -> None:
    perf.write(f"""
        def test_judged(ollama):
            ollama.load({LOAD}, min_tps=1e6)

        def test_measured(ollama):
            result = ollama.load({LOAD}, min_tps=1e6, check=False)
            assert result.verdict.status.value == "broken"
            assert result.tps > 0

        def test_several(ollama):
            tps = [ollama.load({LOAD}, concurrency=n).throughput for n in (1, 2)]
            assert len(tps) == 2
    """)
    found = perf.run()
    assert found.counts == {"failed": 1, "passed": 2}
    assert [(test["verdict"], len(test["loads"])) for test in found.report["tests"]] == [
        ("broken", 1),
        ("ok", 1),
        ("ok", 2),
    ]


@pytest.mark.parametrize(
    "how",
    [
        "max_error_rate=1, min_tps=1",
        pytest.param("min_tps=1", marks=pytest.mark.exhaustive),
        pytest.param("max_error_rate=1", marks=pytest.mark.exhaustive),
    ],
)
def test_without_a_single_success_nothing_is_green(perf, how: str) -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD}, {how})
        def test_marked():
            pass

        def test_coded(ollama):
            ollama.load({LOAD}, {how})
    """)
    found = perf.run(url="sim:?fault=drop&load_time=0&models=tiny")
    assert found.counts == {"failed": 2}
    assert not {"ok", "faster"} & {test["verdict"] for test in found.report["tests"]}
