"""Servers that others measured and published: set up like them, the simulator gives the experiments their shapes.

The published 5-user row (89 tokens/s, TTFT 4.4 s) and the 2-user row of the small model (115 tokens/s) are those of
servers that loaded the model in their first level: a load of 8.8 s explains the one, of 10 s the other.
"""

from __future__ import annotations

import msgspec
import pytest
from virtual import conducted, samples_of, settings_of

from pytest_ollama_perf.analysis.scaling import build_curve, build_sweep_point
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.verdict import VerdictStatus
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.experiments import capacity, cold_start, sweep
from pytest_ollama_perf.metrics.summary import summarise
from pytest_ollama_perf.simulator.settings import SimulatedModel

pytestmark = pytest.mark.exhaustive

ONE_GPU = {"aggregate": ((1, 40.0), (4, 105.5), (16, 207.0)), "prefill_tps": 3000.0}
"""Tokens/s by streams of one GPU; 242 tokens a request follow from the published throughput and TTFT (Little's law)."""


def users_on(slots, *levels):
    return conducted(
        sweep.parse_options,
        {"concurrency": list(levels), "num_predict": 242},
        settings_of(slots=slots, **ONE_GPU),
    )


@pytest.fixture(scope="module")
def four_slots():
    return users_on(4, 5, 10, 20)


@pytest.fixture(scope="module")
def sixteen_slots():
    return users_on(16, 5, 10, 20)


def test_four_slots_give_no_more_than_four_streams_and_let_the_rest_wait(four_slots):
    ten, twenty = (four_slots.result.level(concurrency=users) for users in (10, 20))
    assert (ten.throughput, twenty.throughput) == (pytest.approx(106, rel=0.01), pytest.approx(105, rel=0.01))
    assert ten.ttft.mean == pytest.approx(13.5, rel=0.01)
    assert twenty.ttft.mean == pytest.approx(36.7, rel=0.01)
    assert four_slots.result.slots == 4
    assert "OLLAMA_NUM_PARALLEL is probably 4" in four_slots.trial.verdict.hints[0].text


def test_five_users_already_fill_four_warm_slots(four_slots):
    assert four_slots.result.knee.concurrency == 5
    assert four_slots.result.saturation.concurrency == 10
    assert four_slots.result.single.throughput == pytest.approx(40, rel=0.01)
    assert four_slots.result.level(concurrency=5).efficiency == pytest.approx(106 / 40 / 5, rel=0.01)


def published_level(users, **words):
    settings = settings_of(slots=4, **ONE_GPU, **words.pop("server", {}))
    workload = Workload(model="m", concurrency=users, num_predict=242, **words)
    run = Run(id=f"{users}", workload=workload, samples=samples_of(workload, settings))
    return build_sweep_point({"concurrency": users}, run, summarise(run), VerdictStatus.OK, "")


def test_the_published_table_has_its_knee_between_5_and_10_and_the_saturation_at_20():
    """As published: the model being loaded while the first users wait, and no count of finished requests."""
    five = published_level(5, requests=20, warmup=0, server={"load_time_s": 8.8})
    levels = [five, published_level(10, requests=30, warmup=10), published_level(20, requests=40, warmup=20)]
    assert five.output_tokens / five.wall_s == pytest.approx(89, rel=0.02)
    assert five.ttft_mean_s == pytest.approx(4.4, rel=0.08)
    levels[0] = msgspec.structs.replace(five, throughput=five.output_tokens / five.wall_s)
    found = build_curve("concurrency", {}, [msgspec.structs.replace(level, qps=None) for level in levels])
    assert (found.knee.after, found.knee.concurrency, found.knee.reached) == (5, 10, True)
    assert (found.saturation.after, found.saturation.concurrency) == (10, 20)
    assert found.saturation.ttft_growth == pytest.approx(36.7 / 13.5, rel=0.02)
    assert found.slots == 4


def test_sixteen_slots_bring_95_percent_more_and_87_percent_less_waiting(four_slots, sixteen_slots):
    twenty = sixteen_slots.result.level(concurrency=20)
    assert twenty.throughput == pytest.approx(205, rel=0.01)
    assert twenty.ttft.mean == pytest.approx(4.8, rel=0.03)
    before = four_slots.result.level(concurrency=20)
    throughput, ttft = twenty.throughput / before.throughput - 1, twenty.ttft.mean / before.ttft.mean - 1
    assert f"{throughput:+.0%} {ttft:+.0%}" == "+95% -87%"
    assert sixteen_slots.result.slots == 16
    assert not sixteen_slots.result.knee.reached


SMALL = {"aggregate": ((1, 123.0), (2, 184.0), (3, 211.0), (4, 220.0), (5, 265.0)), "prefill_tps": 220.0}
"""Ten requests end with fewer streams than there are clients, so that the totals lie below clients times tokens/s."""


def test_the_table_of_the_small_model():
    words = {"concurrency": [2, 3, 4, 5], "requests": 10, "num_predict": 300}
    found = conducted(sweep.parse_options, words, settings_of(slots=5, **SMALL))
    levels = found.result.levels
    assert [round(level.tps) for level in levels] == [92, 74, 60, 53]
    assert round(found.result.single.tps) == 123
    assert [level.success_rate for level in levels] == [1.0] * 4
    assert [level.row.output_tokens for level in levels] == [3000] * 4
    system = [level.row.output_tokens / level.row.wall_s for level in levels]
    assert system == sorted(system)
    assert system[1:] == [pytest.approx(published, rel=0.15) for published in (182, 188, 206)]
    assert found.trial.verdict.status is VerdictStatus.OK
    assert found.result.knee.concurrency == 5
    assert not found.result.knee.reached


def test_the_largest_bearable_concurrency_of_the_small_model():
    """300 tokens at 74 tokens/s take 4.1 s, at 60 tokens/s 5.0 s; the prompts of all come on top."""
    words = {"max_latency": 5, "success_rate": 0.95, "requests": 20, "num_predict": 300, "start": 2, "maximum": 5}
    found = conducted(capacity.parse_options, words, settings_of(slots=5, **SMALL))
    assert found.result.concurrency == 3
    assert found.result.conclusive
    breach = found.result.breach
    assert (breach.concurrency, breach.metric, breach.stat, breach.bound) == (4, "latency", "p95", 5.0)
    assert breach.value > 5.0


BIG = SimulatedModel(name="m", tps=30.0, prefill_tps=100.0, load_time_s=180.0)


def test_the_cold_call_of_a_large_model_stays_out_of_its_warm_numbers():
    words = {"repeats": 2, "num_predict": 296, "max_load_time": 240, "max_warm_latency": 12, "max_cold_latency": "4m"}
    found = conducted(cold_start.parse_options, words, settings_of(models=(BIG,)))
    starts = found.result
    assert starts.load_time == pytest.approx(180, abs=0.3)
    assert starts.cold_latency == pytest.approx(190, rel=0.01)
    assert starts.warm_latency == pytest.approx(10, rel=0.05)
    assert starts.cold_ttft - starts.warm_ttft == pytest.approx(180, abs=0.5)
    assert max(sample.done_ns - sample.sent_ns for warm in starts.warm for sample in warm.samples) < 11e9
    assert found.trial.verdict.status is VerdictStatus.OK
