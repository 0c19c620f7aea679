"""A sweep from its words to its verdict, in virtual time."""

from __future__ import annotations

import msgspec
import pytest
from virtual import TEST, Control, Listening, Server, VirtualBench, conducted, settings_of

from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.verdict import VerdictStatus
from pytest_ollama_perf.experiments.sweep import parse_options
from pytest_ollama_perf.harness.evaluation import ExperimentContext
from pytest_ollama_perf.harness.history import RunHistory
from pytest_ollama_perf.simulator.faults import parse_fault

QUICK = settings_of(slots=4, tps=100.0, scaling=0.5, prefill_tps=10_000.0)
SHORT = {"num_predict": 16, "requests": 12}


def swept(words=None, sim=QUICK, **more):
    return conducted(parse_options, {**SHORT, **(words or {})}, sim, **more)


def fired(found):
    return [(load.concurrency, load.requests, load.warmup) for load in found.harness.fired]


def test_every_level_is_fired_once_in_rising_order_after_a_single_client():
    found = swept({"concurrency": [8, 2, 4, 2]})
    assert fired(found) == [(1, 5, 1), (2, 12, 2), (4, 12, 4), (8, 12, 8)]
    assert [level.concurrency for level in found.result.levels] == [2, 4, 8]
    assert found.result.single.concurrency == 1
    assert found.listener.messages[0] == "level 1 of 4: concurrency 1"


def test_a_level_of_one_client_needs_no_other_single_one_and_single_false_none_at_all():
    assert fired(swept({"concurrency": [1, 2]})) == [(1, 12, 1), (2, 12, 2)]
    without = swept({"concurrency": [2, 4], "single": False})
    assert fired(without) == [(2, 12, 2), (4, 12, 4)]
    assert without.result.single is None
    with pytest.raises(AttributeError, match="efficiency needs a measured single client"):
        _ = without.result.levels[0].efficiency


def test_without_a_list_the_sweep_is_over_1_2_4_and_8_clients_with_requests_for_each():
    found = swept({"requests": 24})
    assert [load.concurrency for load in found.harness.fired] == [1, 2, 4, 8]
    assert found.trial.verdict.status is VerdictStatus.OK
    assert (
        found.trial.verdict.reason
        == "4 levels, throughput stops growing at concurrency 4 (205 tokens/s), TTFT takes off at 8"
    )


def test_a_level_answers_as_the_result_of_a_load_does():
    found = swept({"concurrency": [1, 4]})
    level = found.result.level(concurrency=4)
    assert level.tps == pytest.approx(level.metric("tps").value)
    assert level.ttft.p95 == level.summary.metrics["ttft"].stats["p95"]
    assert (level.success_rate, len(level.samples), level.slots) == (1.0, 12, None)
    assert level.efficiency == pytest.approx(level.throughput / found.result.level(concurrency=1).throughput / 4)
    with pytest.raises(LookupError, match="no level at concurrency 3; measured: concurrency 1; concurrency 4"):
        found.result.level(concurrency=3)
    with pytest.raises(AttributeError, match="has no 'ttfq'"):
        _ = level.ttfq


def test_a_product_of_axes_gives_a_curve_for_each_choice_and_the_load_rises_in_each():
    found = swept({"concurrency": [1, 2], "num_ctx": [2048, 4096], "model": ["m", "n"]})
    order = [(load.model, load.num_ctx, load.concurrency) for load in found.harness.fired]
    assert order == [(m, c, n) for m in "mn" for c in (2048, 4096) for n in (1, 2)]
    assert [curve.at for curve in found.result.curves] == [
        {"model": model, "num_ctx": context} for model in "mn" for context in (2048, 4096)
    ]
    assert found.result.curves[3].level(concurrency=2, model="n").row.at["num_ctx"] == 4096
    with pytest.raises(AttributeError, match=r"has 4 curves: use sweep.curves\[i\]"):
        _ = found.result.knee


def test_axes_that_are_no_load_give_one_curve_without_a_knee():
    found = swept({"num_predict": [8, 16, 32], "concurrency": 2})
    assert [(load.num_predict, load.concurrency) for load in found.harness.fired] == [(8, 2), (16, 2), (32, 2)]
    assert [level.num_predict for level in found.result.levels] == [8, 16, 32]
    with pytest.raises(AttributeError, match="no knee"):
        _ = found.result.knee


def test_a_sweep_over_rates_compares_with_a_single_client_and_has_its_knee_in_requests():
    found = swept({"rate": [2, 50], "requests": 20, "arrival": "constant"})
    assert [(load.rate, load.concurrency) for load in found.harness.fired] == [(None, 1), (2, None), (50, None)]
    assert found.result.knee.rate == 50


def test_a_limit_holds_at_every_level_and_the_reason_names_the_first_that_breaks_it():
    found = swept({"concurrency": [1, 2, 8], "max_p50_ttft": 0.05, "requests": 30})
    verdict = found.trial.verdict
    assert verdict.status is VerdictStatus.BROKEN
    assert verdict.reason.startswith("concurrency 8: ttft p50 ")
    assert {row.where: row.status for row in verdict.rows} == {
        "concurrency 1": VerdictStatus.OK,
        "concurrency 2": VerdictStatus.OK,
        "concurrency 8": VerdictStatus.BROKEN,
    }


def test_a_limit_on_what_the_system_makes_holds_for_the_best_level_alone():
    words = {"concurrency": [1, 2, 4], "requests": 20}
    assert swept({**words, "min_throughput": 150}).trial.verdict.status is VerdictStatus.OK
    broken = swept({**words, "min_throughput": 300}).trial.verdict
    assert broken.status is VerdictStatus.BROKEN
    assert broken.reason.startswith("best level, concurrency 4: throughput 205 /s, limit >= 300 /s")
    assert [row.where for row in broken.rows] == ["best level, concurrency 4"]


@pytest.mark.parametrize(
    ("words", "word", "reason"),
    [
        ({"min_knee": 4}, VerdictStatus.OK, "3 levels, throughput stops growing at concurrency 4 (205 tokens/s)"),
        (
            {"min_knee": 5},
            VerdictStatus.BROKEN,
            "throughput stops growing at concurrency 4 (205 tokens/s), limit min_knee=5",
        ),
        ({"min_speedup": 1.9}, VerdictStatus.OK, "3 levels, throughput stops growing at concurrency 4 (205 tokens/s)"),
        ({"min_speedup": 3}, VerdictStatus.BROKEN, "speedup 1.9"),
    ],
)
def test_limits_on_the_whole_are_held_against_the_knee_and_the_speedup(words, word, reason):
    found = swept({"concurrency": [1, 4, 8], "requests": 30, **words})
    assert found.trial.verdict.status is word
    assert found.trial.verdict.reason.startswith(reason)
    assert found.finding.checks[0].status is word


def failing(kind, **words):
    return swept(words, sim=msgspec.structs.replace(QUICK, faults=(parse_fault(kind),)))


def test_a_server_past_its_limits_is_not_driven_further():
    """The fault strikes from request 15 on, which only loads of more than two clients reach."""
    found = failing("http_500@15-", concurrency=[1, 2, 4, 8, 12])
    assert [load.concurrency for load in found.harness.fired] == [1, 2, 4]
    assert found.result.stopped == (
        "stopped after concurrency 4: 2 of 12 requests failed (stop_success_rate=0.9); "
        "concurrency 8, concurrency 12 not measured"
    )
    assert found.trial.verdict.status is VerdictStatus.BROKEN
    assert (
        found.trial.verdict.reason
        == "concurrency 4: error_rate 16.7 %, limit <= 0 %: 2 of 12 requests failed (2 http_error)"
    )


def test_failures_that_were_asked_to_be_borne_still_stop_the_sweep_but_break_nothing():
    found = failing("http_500@15-", concurrency=[1, 2, 4, 8], max_error_rate=1)
    assert found.trial.verdict.status is VerdictStatus.OK
    assert found.trial.verdict.reason.endswith("stopped early")
    assert found.result.stopped.startswith("stopped after concurrency 4")
    allowed = failing("http_500@15-", concurrency=[1, 2, 4, 8], max_error_rate=1, stop_success_rate=0)
    assert [level.concurrency for level in allowed.result.levels] == [1, 2, 4, 8]


def test_a_latency_past_all_patience_stops_the_sweep_too():
    found = swept({"concurrency": [1, 8, 12], "stop_latency": "300ms"})
    assert [load.concurrency for load in found.harness.fired] == [1, 8]
    assert "latency p50" in found.result.stopped
    assert "(stop_latency=0.3); concurrency 12 not measured" in found.result.stopped
    assert found.trial.verdict.status is VerdictStatus.OK


def test_a_level_that_was_not_measured_has_not_met_its_limits():
    found = swept({"concurrency": [1, 8, 12], "stop_latency": "300ms", "min_tps": 1})
    assert found.trial.verdict.status is VerdictStatus.BROKEN
    assert found.trial.verdict.reason.startswith(
        "concurrency 12: not measured: stopped after concurrency 8: latency p50"
    )


def test_a_stop_ends_its_curve_and_not_the_others():
    found = swept({"concurrency": [1, 8, 12], "num_ctx": [2048, 4096], "stop_latency": "300ms"})
    fired = [(load.num_ctx, load.concurrency) for load in found.harness.fired]
    assert fired == [(context, clients) for context in (2048, 4096) for clients in (1, 8)]


def test_an_invalid_level_makes_the_whole_sweep_invalid_and_says_where():
    found = swept({"concurrency": [1, 2]}, sim=msgspec.structs.replace(QUICK, eos_after=4))
    assert found.trial.verdict.status is VerdictStatus.INVALID
    assert found.trial.verdict.reason.startswith(
        "concurrency 1: not a valid measurement: 12 of 12 responses ended before"
    )
    (problem,) = found.trial.verdict.problems
    assert problem.text.startswith("concurrency 1: 12 of 12 responses ended before")
    assert problem.text.endswith("(and concurrency 2)")


def test_a_model_that_is_missing_is_missed_before_anything_is_measured():
    found = {}
    with pytest.raises(LookupError, match="n"):
        conducted(parse_options, {"model": ["m", "n"]}, QUICK, servers=(Server(["n"]),), spoil=found.setdefault)
    assert found == {}
    assert Control().get_installed("n") is None


def test_each_level_has_a_history_of_its_own(tmp_path):
    settings = Settings(store=str(tmp_path / "history"), model="m", save=True)
    words = {"concurrency": [1, 2], "requests": 20}
    verdicts = [swept(words, settings=settings).trial.verdict for _ in range(4)]
    assert verdicts[0].status is VerdictStatus.NEW
    assert verdicts[-1].status is VerdictStatus.OK
    judged = {(row.where, row.metric) for row in verdicts[-1].rows if row.baseline is not None and row.gating}
    assert judged == {(f"concurrency {level}", metric) for level in (1, 2) for metric in ("tps", "ttft")}
    worse = swept(words, settings=settings, sim=msgspec.structs.replace(QUICK, scaling=0.1))
    assert worse.trial.verdict.status is VerdictStatus.REGRESSED
    assert worse.trial.verdict.reason.startswith("concurrency 2: tps")
    assert worse.harness.fresh == [True] * len(worse.harness.fired)
    assert [level.concurrency for level in worse.result.levels] == [1, 2]


def test_levels_are_measured_on_a_loaded_model_unless_history_asks_for_a_fresh_one(tmp_path):
    assert swept({"concurrency": [1, 2]}).harness.fresh == [False, False]
    settings = Settings(store=str(tmp_path / "history"), model="m", save=True)
    assert swept({"concurrency": [1, 2]}, settings=settings).harness.fresh == [True, True]


def test_how_several_servers_shared_the_greatest_load_is_told_beside_the_sweep():
    def shared(run):
        samples = tuple(msgspec.structs.replace(one, server=f"gpu-{one.index % 2}") for one in run.samples)
        return msgspec.structs.replace(run, samples=samples)

    found = swept({"concurrency": [1, 4]}, spoil=shared)
    servers = found.trial.findings[1].servers
    assert [(one.name, one.requests) for one in servers] == [("gpu-0", 6), ("gpu-1", 6)]
    assert found.result.knee.concurrency == 4


def test_what_was_measured_when_something_stopped_the_sweep_is_not_lost():
    def stop(run):
        if run.workload.concurrency == 4:
            raise KeyboardInterrupt
        return run

    settings = Settings(model="m", store="/nonexistent/history")
    lab = ExperimentContext(VirtualBench(QUICK, settings, spoil=stop), RunHistory(settings, 1), Listening())
    with pytest.raises(KeyboardInterrupt):
        parse_options({**SHORT, "concurrency": [1, 2, 4]}, settings).run(lab, TEST)
    kept = lab.build_partial_evaluation()
    assert kept.verdict.status is VerdictStatus.ABORTED
    assert [level.at for level in kept.findings[0].curves[0].levels] == [{"concurrency": 1}, {"concurrency": 2}]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"concurrency": 4}, "a sweep needs a list: concurrency=[1, 2, 4, 8], or one of model, num_ctx"),
        ({"concurrency": []}, "concurrency=[]: expected a list with at least one value"),
        ({"concurrency": [1, "2"]}, "concurrency='2': expected a whole number from 1"),
        ({"concurrency": [0, 1]}, "concurrency=0: expected a whole number from 1"),
        ({"concurrency": [1, 2], "rate": 2}, "concurrency and rate contradict each other: sweep over one of them"),
        ({"rate": [1, 2], "concurrency": 2}, "concurrency and rate contradict each other: sweep over one of them"),
        ({"temperature": [0.0, 1.0]}, "temperature=[0.0, 1.0]: expected a number of at least 0"),
        ({"min_knee": 16}, "min_knee=16: no level is that high; add it to concurrency=[1, 2, 4, 8]"),
        (
            {"num_ctx": [1024, 2048], "min_knee": 2},
            "min_knee=2: a sweep over num_ctx has no knee; sweep over",
        ),
        ({"concurrency": [1, 16], "requests": 10}, "requests=10: fewer than the 16 clients of a level"),
        ({"min_knee": 0}, "min_knee=0: expected a number above 0"),
        ({"single": 1}, "single=1: expected True or False"),
        ({"stop_latency": "soon"}, "stop_latency='soon': expected seconds"),
        ({"stop_success_rate": 90}, "stop_success_rate=90: expected a percentage above 0%"),
        ({"concurency": [1, 2]}, "unknown argument 'concurency'; did you mean 'concurrency'?"),
        ({"max_tps": 3}, "higher is better for tps; write min_tps"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_fired(words, told):
    with pytest.raises(ConfigError) as error:
        parse_options(words, Settings(model="m"))
    assert told in str(error.value)
