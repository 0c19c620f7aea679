"""Cold starts in virtual time: what is unloaded and fired, what counts as cold and as warm, what is kept."""

from __future__ import annotations

import math

import msgspec
import pytest
from run_makers import failure, one_after_another, run_of
from virtual import TEST, URL, Server, conducted, settings_of

from pytest_ollama_perf.analysis.cold_warm import build_cold_start, build_repeat
from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.run import ModelState
from pytest_ollama_perf.core.verdict import VerdictStatus
from pytest_ollama_perf.experiments.cold_start import parse_options
from pytest_ollama_perf.harness.history import RunHistory
from pytest_ollama_perf.simulator.faults import parse_fault
from pytest_ollama_perf.simulator.settings import SimulatedModel

SLOW = settings_of(models=(SimulatedModel(name="m", tps=100.0, prefill_tps=1000.0, load_time_s=4.0),))


def started(words=None, sim=SLOW, **more):
    return conducted(parse_options, {"num_predict": 11, "repeats": 2, **(words or {})}, sim, **more)


def test_each_repeat_is_one_cold_request_and_then_warm_ones():
    found = started({"requests": 6})
    asked = [(load.cold, load.requests, load.warmup, load.concurrency) for load in found.harness.fired]
    assert asked == [(True, 1, 0, 1), (False, 6, 1, 1)] * 2
    assert found.listener.messages[:1] == ["cold start 1 of 2"]


def test_the_load_and_both_first_tokens_are_told_apart():
    found = started()
    result = found.result
    assert result.load_time == pytest.approx(4.0, abs=0.01)
    assert result.warm_ttft == pytest.approx(0.033, abs=0.02)
    assert result.cold_ttft == pytest.approx(result.warm_ttft + 4.0, abs=0.01)
    assert result.cold_latency == pytest.approx(result.warm_latency + 4.0, abs=0.01)
    assert result.ratio == pytest.approx(result.cold_ttft / result.warm_ttft)
    assert len(result.starts) == len(result.cold) == len(result.warm) == 2
    assert found.trial.verdict.status is VerdictStatus.OK
    assert found.trial.verdict.reason.startswith("load 4 s, TTFT 4.0")


def test_a_cold_sample_is_in_no_warm_run():
    found = started()
    assert all(len(cold.samples) == 1 and cold.ttft.max > 4 for cold in found.result.cold)
    assert all(len(warm.samples) == 10 and warm.latency.max < 1 for warm in found.result.warm)


def test_of_several_servers_each_starts_cold_by_a_request_of_its_own_at_the_same_time():
    found = started(servers=(Server(), Server(), Server()))
    assert {(load.requests, load.concurrency) for load in found.harness.fired if load.cold} == {(3, 3)}
    assert found.trial.verdict.status is VerdictStatus.OK


def test_a_load_of_minutes_has_a_timeout_of_its_own():
    asked = parse_options({"load_timeout": "20m", "timeout": {"first_token": 5, "total": 30}}, Settings(model="m"))
    assert (asked.cold.workload.timeouts.first_token_s, asked.cold.workload.timeouts.total_s) == (1200, 1230)
    assert (asked.warm.workload.timeouts.first_token_s, asked.warm.workload.timeouts.total_s) == (5, 30)
    usual = parse_options({}, Settings(model="m"))
    assert usual.cold.workload.timeouts.first_token_s == 1800


@pytest.mark.parametrize(
    ("words", "word", "reason"),
    [
        (
            {"max_load_time": 5, "max_cold_ttft": 5, "max_warm_ttft": "1s", "max_ratio": 1000},
            VerdictStatus.OK,
            "load 4 s",
        ),
        ({"max_load_time": 3}, VerdictStatus.BROKEN, "load time 4 s, limit <= 3 s"),
        ({"max_cold_ttft": 3}, VerdictStatus.BROKEN, "cold TTFT 4.0"),
        ({"max_cold_latency": 3}, VerdictStatus.BROKEN, "cold latency 4.1"),
        ({"max_warm_ttft": "1ms"}, VerdictStatus.BROKEN, "warm TTFT 3"),
        ({"max_warm_latency": "1ms"}, VerdictStatus.BROKEN, "warm latency 13"),
        ({"max_ratio": 10}, VerdictStatus.BROKEN, "ratio 1"),
        ({"min_tps": 1000}, VerdictStatus.BROKEN, "warm: tps "),
    ],
)
def test_every_number_can_be_limited(words, word, reason):
    found = started(words)
    assert found.trial.verdict.status is word
    assert found.trial.verdict.reason.startswith(reason)


def test_a_median_that_not_every_start_meets_is_unsure():
    loads = iter([4.0, 4.0, 9.0])

    def at(workload, number):
        model = msgspec.structs.replace(SLOW.models[0], load_time_s=next(loads) if workload.cold else 0.0)
        return msgspec.structs.replace(SLOW, models=(model,))

    found = started({"repeats": 3, "max_load_time": 5}, at=at)
    assert found.trial.verdict.status is VerdictStatus.UNSURE
    assert found.trial.verdict.reason == ("load time 4 s, limit <= 5 s: the median meets it, 1 of 3 starts did not")


def test_a_model_that_was_loaded_again_before_the_request_makes_no_cold_start():
    def reloaded(run):
        loaded = ModelState(loaded=True, size=1, size_vram=1)
        return msgspec.structs.replace(run, before={URL: loaded})

    found = started(spoil=reloaded)
    assert found.trial.verdict.status is VerdictStatus.INVALID
    assert (
        "loaded again before the cold request was sent; something else is using the server"
        in found.trial.verdict.reason
    )
    assert len(found.harness.fired) == 1


def test_a_first_request_that_fails_is_broken_and_ends_the_series():
    found = started(sim=msgspec.structs.replace(SLOW, faults=(parse_fault("http_500@1"),)))
    assert found.trial.verdict.status is VerdictStatus.BROKEN
    assert found.trial.verdict.reason.startswith("cold: ")
    assert len(found.harness.fired) == 1
    assert found.result.starts == ()


def test_limits_on_starts_that_never_succeeded_are_broken():
    words = {"max_load_time": 5}
    found = started(words, sim=msgspec.structs.replace(SLOW, faults=(parse_fault("http_500@1"),)))
    assert found.finding.checks[0].reason.startswith("load time was not found: no start succeeded")
    assert found.trial.verdict.status is VerdictStatus.BROKEN


def test_cold_and_warm_have_histories_of_their_own(tmp_path):
    settings = Settings(store=str(tmp_path / "history"), model="m", save=True)
    first = started(settings=settings)
    assert first.trial.verdict.status is VerdictStatus.NEW
    second = started(settings=settings).trial.verdict
    assert second.status is VerdictStatus.OK
    judged = {(row.where, row.metric) for row in second.rows if row.baseline is not None and row.gating}
    assert judged == {("cold", "load_time"), ("cold", "ttft"), ("cold", "tps"), ("warm", "ttft"), ("warm", "tps")}
    past = RunHistory(settings, 1)
    kept = {load.cold: len(past.load_runs(TEST, load).runs) for load in first.harness.fired}
    assert kept == {True: 4, False: 4}
    slower = settings_of(models=(msgspec.structs.replace(SLOW.models[0], load_time_s=8.0),))
    worse = started(settings=settings, sim=slower)
    assert worse.trial.verdict.status is VerdictStatus.REGRESSED
    assert worse.trial.verdict.reason.startswith("cold: ")
    assert len(worse.result.starts) == 3
    assert worse.listener.messages[-1] == "cold start 3: inconclusive so far"


def test_a_start_takes_the_slowest_server_and_the_median_warm_request():
    cold = run_of(*one_after_another(2, ttft=1000, load=900), warmup=0, workload={"cold": True})
    warm = run_of(*one_after_another(3, ttft=100), one_after_another(1, ttft=5000)[0])
    found = build_repeat(cold, warm)
    assert (found.load_time_s, found.cold_ttft_s, found.warm_ttft_s, found.warm_requests) == (0.9, 1.0, 0.1, 4)
    assert found.ratio == pytest.approx(10)


def test_a_failed_cold_request_is_infinitely_slow_and_has_no_ratio_that_hides_it():
    cold = run_of(failure(0), warmup=0, workload={"cold": True})
    found = build_repeat(cold, run_of(*one_after_another(3)))
    assert math.isinf(found.cold_ttft_s)
    assert math.isinf(found.ratio)


def test_medians_are_over_the_starts_that_have_the_number():
    warm = run_of(*one_after_another(3, ttft=100))
    starts = [build_repeat(run_of(*one_after_another(1, ttft=ttft), warmup=0), warm) for ttft in (1000, 3000, 2000)]
    found = build_cold_start("m", starts)
    assert (found.cold_ttft_s, found.ratio) == (2.0, pytest.approx(20))
    assert build_cold_start("m", []).load_time_s is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"concurrency": 2}, "concurrency=2: a cold start is one request at a time; valid: repeats, requests"),
        ({"cold": True}, "cold=True: a cold start is one request at a time"),
        ({"repeats": 0}, "repeats=0: expected a whole number from 1"),
        ({"load_timeout": 0}, "load_timeout=0: a timeout must be above 0"),
        ({"max_load_time": "fast"}, "max_load_time='fast': expected seconds"),
        ({"max_ratio": 0}, "max_ratio=0: expected a number above 0"),
        ({"max_loadtime": 3}, "unknown argument 'max_loadtime'"),
    ],
)
def test_wrong_words_are_refused(words, told):
    with pytest.raises(ConfigError) as error:
        parse_options(words, Settings(model="m"))
    assert told in str(error.value)


def test_the_margin_of_load_time_for_all_tests_applies_to_cold_starts():
    def margin_of(options, **settings):
        return parse_options(options, Settings(model="m", **settings)).cold.margins["load_time"]

    assert margin_of({}) == 0.25
    assert margin_of({}, margins={"load_time": 9.0}) == 9.0
    assert margin_of({"max_regression": {"load_time": "50%"}}, margins={"load_time": 9.0}) == 0.5
