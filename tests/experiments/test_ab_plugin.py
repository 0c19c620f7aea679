"""A comparison from the command line to its text, against simulators and the real server."""

from __future__ import annotations

import pytest

from pytest_ollama_perf.simulator.process import start_simulator
from pytest_ollama_perf.simulator.url import read_settings

QUICK = {"load_time": 0, "overhead": 0, "prefill_tps": 100_000, "run_jitter": 0, "token_jitter": 0, "models": "tiny"}


@pytest.fixture(scope="module")
def urls():
    """A server and one of half its speed."""
    fast, slow = (read_settings({**QUICK, "tps": tps}) for tps in (2000, 1000))
    with start_simulator(fast) as one, start_simulator(slow) as other:
        yield one.url, other.url


MARKED = """
    @pytest.mark.ollama_ab(num_predict=16, max_regression={"tps": "10%"})
    def test_upgrade(ollama_ab):
        assert ollama_ab.tps.change < 0
"""


def test_a_slower_server_fails_the_test_with_both_numbers(run_source, urls):
    fast, slow = urls
    result = run_source(MARKED, f"--ollama-url={slow}", f"--ollama-baseline-url={fast}")
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines(
        [
            r"tps -\d.* % \([\d.]+ /s -> [\d.]+ /s\), margin 10 %: decode grew.*",
            rf"  baseline: at {fast}$",
            rf"  candidate: at {slow}$",
            r" +baseline +candidate +change +95% CI +margin$",
            r"  x tps +[\d.]+ /s +[\d.]+ /s +-\d.*% +-.* \.\. +-.*% +-10%$",
            r"    ttft .*",
            r"    latency .*",
            r"  4 blocks ABBA of 8 requests per side, the model reloaded for every turn$",
        ]
    )
    given_paths = ("rootdir", "    --basetemp=")
    assert max(len(line) for line in result.outlines if not line.startswith(given_paths)) <= 80


def test_the_comparison_stands_in_the_report(run_source, urls):
    fast, slow = urls
    result = run_source(MARKED, f"--ollama-url={slow}", f"--ollama-baseline-url={fast}")
    result.assert_outcomes(failed=1)
    (test,) = result.tests
    (found,) = test["findings"]
    assert (test["verdict"], found["kind"], found["blocks"]) == ("regressed", "ab_comparison", 4)
    assert (found["rows"][0]["metric"], found["rows"][0]["status"]) == ("tps", "regressed")
    assert [load["model"] for load in test["loads"]] == ["tiny:latest"] * 16
    assert {sample["url"] for load in test["loads"][:8] for sample in load["samples"]} == {fast}


def test_code_compares_too_and_goes_on_where_nothing_is_checked(run_source, urls):
    fast, slow = urls
    source = f"""
        def test_it(ollama):
            ab = ollama.compare(max_regression={{"tps": "10%"}},
                baseline={{"url": "{slow}"}}, candidate={{"url": "{fast}"}}, num_predict=8, check=False
            )
            assert ab.comparison.status == "faster"
            assert ab.tps.value > ab.tps.baseline
    """
    result = run_source(source, f"--ollama-url={fast}")
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines([r"test_it.py::test_it +ok$", rf"  baseline: at {slow}$"])


def test_async_code_compares_too(run_source, urls):
    fast, slow = urls
    source = f"""
        import asyncio

        async def compare(ollama):
            words = {{"candidate": {{"url": "{slow}"}}, "num_predict": 8, "max_regression": {{"tps": "10%"}}}}
            comparing = asyncio.ensure_future(ollama.acompare(**words, check=False))
            turns = 0
            while not comparing.done():
                await asyncio.sleep(0.02)
                turns += 1
            return await comparing, turns

        def test_it(ollama):
            ab, turns = asyncio.run(compare(ollama))
            assert turns > 5
            assert ab.tps.change < -0.2
    """
    run_source(source, f"--ollama-url={fast}").assert_outcomes(passed=1)


def test_wrong_words_end_the_session_before_the_first_test(run_source, urls):
    result = run_source("@pytest.mark.ollama_ab(baselin={})\ndef test_it(): pass\n", f"--ollama-url={urls[0]}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unknown argument 'baselin'; did you mean 'baseline'?*"])


@pytest.mark.real_server
def test_the_real_server_does_not_differ_from_itself(run_source, real_server):
    source = """
        @pytest.mark.ollama_ab(baseline={}, candidate={}, model="tiny", num_predict=8, max_regression="80%")
        def test_same(ollama_ab):
            assert {problem.name for problem in ollama_ab.verdict.problems} >= {"nothing to compare"}
    """
    result = run_source(source, f"--ollama-url={real_server}")
    result.assert_outcomes(passed=1)
    (test,) = result.tests
    assert test["verdict"] in {"ok", "unsure", "faster"}


@pytest.mark.real_server
def test_the_real_server_is_slower_with_a_bigger_model(run_source, real_server):
    source = """
        @pytest.mark.ollama_ab(baseline={"model": "tiny"}, candidate={"model": "mid"}, num_predict=8)
        def test_bigger():
            pass
    """
    result = run_source(source, f"--ollama-url={real_server}")
    result.assert_outcomes(failed=1)
    (test,) = result.tests
    assert test["verdict"] == "regressed"
    assert test["findings"][0]["rows"][0]["change"] < -0.5
    assert "parameters 918K -> 25.70M" in test["changed"]
