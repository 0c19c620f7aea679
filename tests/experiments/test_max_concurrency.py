"""The largest bearable concurrency: the search, the judging of a probe, and the whole in virtual time."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_makers import failure, one_after_another, run_of, sample
from virtual import conducted, settings_of

from pytest_ollama_perf.analysis.limits import parse_limit_option
from pytest_ollama_perf.analysis.sustained import build_probe, is_settled, judge_probe, pool_runs, search_concurrency
from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.verdict import VerdictStatus
from pytest_ollama_perf.experiments.capacity import parse_options
from pytest_ollama_perf.simulator.faults import parse_fault

MS = 1_000_000


@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 100))
def test_the_search_finds_the_border_asking_each_concurrency_once(start, maximum, border):
    asked = []

    def bearable(concurrency):
        asked.append(concurrency)
        return concurrency <= border

    assert search_concurrency(start, maximum, bearable) == min(border, maximum)
    assert len(asked) == len(set(asked))
    assert all(1 <= each <= maximum for each in asked)
    assert len(asked) <= 2 * math.log2(maximum) + 3


def test_the_search_doubles_and_then_bisects():
    asked = []
    assert search_concurrency(1, 64, lambda each: asked.append(each) or each <= 11) == 11
    assert asked == [1, 2, 4, 8, 16, 12, 10, 11]


def runs(count, *, slow=0, ttft=100, slow_ms=2000, failed=0, spread=0):
    """``count`` requests of 200 ms and a ttft, ``slow`` of them slower, ``failed`` more that failed."""
    quick = one_after_another(count - slow, ttft=ttft)
    late = [sample(index, ttft=slow_ms, sent=100_000 + 10_000 * index) for index in range(slow)]
    ends = [one.done_ns + (number % 5) * spread * MS for number, one in enumerate(quick)]
    made = [msgspec.structs.replace(one, done_ns=end) for one, end in zip(quick, ends, strict=True)]
    return run_of(*made, *late, *(failure(index, sent=200_000 + 10 * index) for index in range(failed)))


def judged(run, **words):
    return judge_probe([parse_limit_option(word, value) for word, value in words.items()], *pool_runs([run]))


def one(run, **words):
    (found,) = judged(run, **words)
    return found.met, found.conclusive


def test_few_requests_far_from_a_bound_on_a_percentile_are_sure_and_near_it_are_not():
    assert one(runs(10, spread=5), max_p95_latency=1.0) == (True, True)
    assert one(runs(10, spread=5), max_p95_latency=0.222) == (True, False)
    assert one(runs(7, spread=5), max_p95_latency=1.0) == (True, False)


def test_sixty_clean_requests_are_sure_however_near_the_bound_is():
    assert one(runs(60, spread=5), max_p95_latency=0.221) == (True, True)


def test_violations_are_counted():
    assert one(runs(20, slow=1), max_p95_latency=1.0) == (True, False)
    assert one(runs(20, slow=2), max_p95_latency=1.0) == (False, False)
    assert one(runs(20, slow=4), max_p95_latency=1.0) == (False, True)


def test_failures_are_counted_against_the_success_rate():
    assert one(runs(20), max_error_rate=0.05) == (True, True)
    assert one(runs(19, failed=1), max_error_rate=0.05) == (True, False)
    assert one(runs(18, failed=2), max_error_rate=0.05) == (False, False)
    assert one(runs(15, failed=5), max_error_rate=0.05) == (False, True)
    assert one(runs(19, failed=1), max_error_rate=0) == (False, True)


def test_a_rate_is_judged_by_its_interval():
    assert one(runs(20), min_tps=50) == (True, True)
    assert one(runs(20), min_tps=200) == (False, True)
    mixed = [*one_after_another(10, step=5), *one_after_another(10, step=20)]
    assert one(run_of(*mixed), min_tps=85) == (True, False)


def test_a_probe_is_settled_by_one_sure_breach_or_by_all_sure_passes():
    near = {"max_p95_latency": 0.222}
    assert not is_settled(judged(runs(10, spread=5), **near))
    assert is_settled(judged(runs(60, spread=5), **near))
    assert is_settled(judged(runs(10, spread=5, failed=5), **near, max_error_rate=0.05))


def test_a_probe_names_the_limit_that_decided():
    run = runs(15, failed=5)
    whole = pool_runs([run])
    limits = [parse_limit_option("max_p95_latency", 1.0), parse_limit_option("max_error_rate", 0.05)]
    probe = build_probe(4, [run], whole, judge_probe(limits, *whole))
    assert (probe.sustained, probe.conclusive, probe.success_rate) == (False, True, 0.75)
    assert probe.reason.startswith(("latency p95 inf", "error_rate 25 %"))


def test_runs_of_one_probe_count_together():
    first, second = runs(30, spread=5), runs(30, spread=5)
    assert not is_settled(judge_probe([parse_limit_option("max_p95_latency", 0.2201)], *pool_runs([first])))
    assert is_settled(judge_probe([parse_limit_option("max_p95_latency", 0.2201)], *pool_runs([first, second])))


QUICK = settings_of(slots=4, tps=100.0, scaling=0.5, prefill_tps=10_000.0)
"""16 tokens take 0.16 s alone, 0.32 s by four; who waits for a slot takes twice as long."""


ONE_SLOW = msgspec.structs.replace(QUICK, faults=(parse_fault("slow:1.5@5"),))
"""One request of every load takes 0.25 s: of 20 as many as a limit on P95 allows, so that nothing can be sure."""


def searched(words=None, sim=QUICK, **more):
    return conducted(parse_options, {"num_predict": 16, **(words or {})}, sim, **more)


def tried(found):
    return [load.concurrency for load in found.harness.fired]


def test_the_border_is_found_and_the_first_breach_named():
    found = searched({"max_ttft": 0.2})
    assert found.result.concurrency == 4
    assert sorted(set(tried(found))) == [1, 2, 4, 5, 6, 8]
    breach = found.result.breach
    assert (breach.concurrency, breach.metric, breach.stat, breach.op, breach.bound) == (5, "ttft", "p95", "<=", 0.2)
    assert breach.value > 0.2
    assert found.trial.verdict.status is VerdictStatus.OK
    assert found.trial.verdict.reason.startswith("sustained concurrency 4; concurrency 5: ttft p95 ")
    assert found.listener.messages[0] == "trying concurrency 1"
    assert "OLLAMA_NUM_PARALLEL is probably 4" in found.trial.verdict.hints[0].text


def test_a_server_that_bears_the_maximum_has_no_breach():
    found = searched({"max_latency": 60, "maximum": 6})
    assert (found.result.concurrency, found.result.breach, found.result.maximum) == (6, None, 6)
    assert found.trial.verdict.reason == "sustained concurrency 6 (highest level tested, maximum=6)"


def test_a_server_that_bears_not_even_one_client_breaks_the_test():
    found = searched({"max_latency": 0.01})
    assert found.result.concurrency == 0
    assert found.trial.verdict.status is VerdictStatus.BROKEN
    assert found.trial.verdict.reason.startswith("no concurrency is sustained; concurrency 1: latency p95 ")


def test_a_start_that_is_not_borne_is_bisected_downwards():
    found = searched({"max_ttft": 0.2, "start": 16})
    assert found.result.concurrency == 4
    assert list(dict.fromkeys(tried(found)))[:3] == [16, 8, 4]


@pytest.mark.parametrize(
    ("least", "word", "reason"),
    [
        (4, VerdictStatus.OK, "sustained concurrency 4"),
        (5, VerdictStatus.BROKEN, "maximum concurrency 4, limit >= 5; concurrency 5: ttft p95 "),
    ],
)
def test_the_gate_holds_the_border_against_min_concurrency(least, word, reason):
    found = searched({"max_ttft": 0.2, "min_concurrency": least})
    assert found.trial.verdict.status is word
    assert found.trial.verdict.reason.startswith(reason)


def test_a_probe_too_short_to_tell_is_fired_again_and_no_more_than_repeats():
    near = searched({"max_latency": 0.2, "requests": 20, "maximum": 1, "repeats": 4}, sim=ONE_SLOW)
    assert tried(near) == [1, 1, 1, 1]
    (probe,) = near.result.probes
    assert (probe.runs, probe.requests, probe.sustained, probe.conclusive) == (4, 80, True, False)
    assert "trying concurrency 1, run 4 of at most 4: too few requests so far" in near.listener.messages
    assert not near.result.conclusive
    far = searched({"max_latency": 2.0, "requests": 20, "maximum": 1}, sim=ONE_SLOW)
    assert tried(far) == [1]


def test_a_gate_that_only_chance_decided_is_unsure():
    words = {"max_latency": 0.2, "requests": 20, "maximum": 1, "min_concurrency": 1}
    verdict = searched(words, sim=ONE_SLOW).trial.verdict
    assert verdict.status is VerdictStatus.UNSURE
    assert verdict.reason == (
        "maximum concurrency 1, limit >= 1, but there were too few requests to be conclusive; raise requests or repeats"
    )


def test_failures_break_a_probe_and_not_the_test():
    """From request 15 on the server fails, which only probes of more than two clients reach."""
    broken = msgspec.structs.replace(QUICK, faults=(parse_fault("http_500@15-"),))
    found = searched({"max_latency": 60, "requests": 12, "maximum": 8}, sim=broken)
    assert found.result.concurrency == 2
    assert (found.result.breach.concurrency, found.result.breach.metric) == (3, "error_rate")
    assert found.trial.verdict.status is VerdictStatus.OK


def test_a_probe_has_at_least_two_requests_a_client():
    found = searched({"max_latency": 60, "requests": 6, "maximum": 8})
    assert {load.concurrency: load.requests for load in found.harness.fired} == {1: 6, 2: 6, 4: 8, 8: 16}


def test_an_invalid_probe_ends_the_search():
    found = searched({"max_latency": 60}, sim=msgspec.structs.replace(QUICK, eos_after=4))
    assert tried(found) == [1]
    assert found.trial.verdict.status is VerdictStatus.INVALID
    assert found.trial.verdict.reason.startswith(
        "concurrency 1: not a valid measurement: 20 of 20 responses ended before"
    )
    assert found.result.concurrency == 0


def test_every_run_of_every_probe_is_kept(tmp_path):
    found = searched({"max_ttft": 0.2})
    assert [load.run.workload.concurrency for load in found.trial.loads] == tried(found)
    saved = searched({"max_ttft": 0.2}, settings=Settings(store=str(tmp_path / "history"), model="m", save=True))
    assert tried(saved)[-1] == 4
    assert saved.harness.fresh == [False] * (len(saved.harness.fresh) - 1) + [True]
    assert saved.trial.verdict.status is VerdictStatus.NEW
    assert saved.trial.verdict.reason.startswith("concurrency 4: no baseline yet")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"concurrency": 4}, "concurrency=4: the search sets the load; pass start and maximum"),
        ({"rate": 4}, "rate=4: the search sets the load"),
        ({"start": 8, "maximum": 4}, "start=8: it is above maximum=4"),
        ({"min_concurrency": 80}, "min_concurrency=80: it is above maximum=64; raise maximum"),
        ({"maximum": 0}, "maximum=0: expected a whole number from 1"),
        ({"repeats": True}, "repeats=True: expected a whole number from 1"),
        ({"success_rate": 95}, "success_rate=95: expected a percentage above 0%"),
        ({"success_rate": "120%"}, "success_rate='120%': expected a share up to 1"),
        ({"success_rate": 0.9, "max_error_rate": 0.1}, "success_rate and max_error_rate are the same limit"),
        ({"max_latency": 1, "max_p95_latency": 2}, "max_latency and max_p95_latency are the same limit"),
        ({"min_throughput": 100}, "throughput is a number of the whole server, not of one client"),
        ({"max_latncy": 1}, "unknown argument 'max_latncy'"),
    ],
)
def test_wrong_words_are_refused(words, told):
    with pytest.raises(ConfigError) as error:
        parse_options(words, Settings(model="m"))
    assert told in str(error.value)
