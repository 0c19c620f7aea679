import math

import msgspec
import pytest
from run_makers import MS, failure, one_after_another, run_of, sample, transcript

from pytest_ollama_perf.core.sample import Counters, Phase
from pytest_ollama_perf.core.workload import Endpoint
from pytest_ollama_perf.metrics import STATS
from pytest_ollama_perf.metrics.per_request import list_request_values
from pytest_ollama_perf.metrics.summary import Summary, summarise

PER_REQUEST = ("tps", "ttft", "tpot", "itl", "latency", "queue", "prefill_tps", "load_time")


def metrics(*samples, limits=None, **fields):
    return summarise(run_of(*samples, **fields), limits).metrics


def test_every_metric_of_one_request_is_what_its_times_say():
    one = sample(ttft=100, tokens=11, step=10, prompt=30, prefill=90, load=2, queue=7)
    values = {name: list_request_values(name, [one]) for name in PER_REQUEST}
    assert values == {
        "ttft": [0.1],
        "latency": [0.2],
        "tpot": [0.01],
        "itl": [0.01] * 10,
        "tps": [110.0],
        "prefill_tps": [pytest.approx(333.3333333)],
        "queue": [0.007],
        "load_time": [0.002],
    }


@pytest.mark.parametrize("name", [name for name in PER_REQUEST if name != "itl"])
def test_a_failed_request_is_infinitely_slow_and_never_absent(name):
    values = list_request_values(name, [sample(0), failure(1)])
    assert values[-1] == (0.0 if name in {"tps", "prefill_tps"} else math.inf)
    assert values[:-1] == list_request_values(name, [sample(0)])


def test_an_open_loop_counts_from_the_scheduled_time():
    late = sample(0, sent=50, scheduled_ns=20 * MS)
    assert list_request_values("latency", [late]) == [0.23]
    assert list_request_values("ttft", [late]) == [0.13]


def test_one_token_has_no_time_per_token():
    single = sample(0, tokens=1)
    assert (
        list_request_values("tpot", [single])
        == list_request_values("tps", [single])
        == list_request_values("itl", [single])
        == []
    )
    assert list_request_values("tpot", [single, sample(1)]) == [0.01]


def test_ttfa_exists_only_where_a_model_thought_first():
    thought = sample(0, first_answer_ns=150 * MS)
    only_thought = sample(1, first_answer_ns=None)
    assert list_request_values("ttfa", [sample(0)]) == []
    assert list_request_values("ttfa", [thought, only_thought]) == [0.15, math.inf]


def test_an_embedding_has_no_queue_since_no_counter_covers_its_work():
    counters = Counters(total_duration_ns=4 * MS, load_duration_ns=MS, prompt_eval_count=3)
    embedded = sample(0, chunk_ns=(), first_token_ns=None, first_answer_ns=None, counters=counters)
    found = metrics(embedded, workload={"endpoint": Endpoint.EMBED})
    assert "latency" in found
    assert not {"ttft", "queue", "tps", "throughput", "tpot", "itl", "prefill_tps"} & set(found)


def test_cached_prompt_tokens_do_not_count_as_read():
    counters = Counters(prompt_eval_count=100, prompt_eval_cached_count=60, prompt_eval_duration_ns=20 * MS)
    assert list_request_values("prefill_tps", [sample(0, counters=counters)]) == [2000.0]


def test_tps_pools_tokens_over_seconds_and_not_rates():
    fast, slow = sample(0, tokens=11, step=10), sample(1, tokens=101, step=20)
    found = metrics(fast, slow)["tps"]
    assert found.value == pytest.approx(112 / 2.1)
    assert found.stats["mean"] == pytest.approx((110 + 50.5) / 2)


def test_percentiles_interpolate_linearly():
    found = metrics(*(sample(index, ttft=ttft) for index, ttft in enumerate((100, 200, 300, 400))))["ttft"].stats
    assert tuple(found) == ("p50", "p90", "p95", "p99", "mean", "min", "max")
    assert set(found) == set(STATS)
    assert found == pytest.approx(
        {"p50": 0.25, "p90": 0.37, "p95": 0.385, "p99": 0.397, "mean": 0.25, "min": 0.1, "max": 0.4}
    )


def test_a_failure_pulls_the_percentiles_it_touches_to_infinity():
    found = metrics(*(sample(index) for index in range(19)), failure(19))["ttft"]
    assert found.stats["p50"] == found.stats["p90"] == 0.1
    assert found.stats["p95"] == found.stats["p99"] == found.stats["mean"] == found.stats["max"] == math.inf
    assert (found.n, found.failed) == (20, 1)


def test_warm_up_is_counted_and_dropped():
    run = run_of(sample(0), warmup=3)
    slow = sample(9, ttft=9000, stage=Phase.WARMUP)
    summary = summarise(msgspec.structs.replace(run, samples=(slow, *run.samples)))
    assert (summary.warmup, summary.requests, summary.ok) == (4, 1, 1)
    assert summary.metrics["ttft"].stats["max"] == 0.1


def test_a_run_without_requests_has_no_metrics():
    assert summarise(run_of(warmup=2)) == Summary(warmup=2)


def test_the_steady_window_opens_with_the_last_client_and_closes_with_the_first():
    # Client 0 is busy 0..400 ms, client 1 100..500 ms: the window is 100..400 ms.
    first = [sample(0, sent=0, client=0), sample(1, sent=200, client=0)]
    second = [sample(2, sent=100, client=1), sample(3, sent=300, client=1)]
    summary = summarise(run_of(*first, *second, workload={"concurrency": 2}))
    assert summary.steady_s == pytest.approx(0.3)
    assert summary.wall_s == pytest.approx(0.5)
    # In it: 10 chunks of sample 0 (its first, at 100 ms, is the border), all of 1 and 2, the first of sample 3.
    assert summary.metrics["throughput"].value == pytest.approx((10 + 11 + 11 + 1) / 0.3)
    assert summary.metrics["throughput_whole"].value == pytest.approx(44 / 0.5)
    assert summary.metrics["qps"].value == pytest.approx(4 / 0.5)


def test_one_client_is_always_steady():
    found = metrics(*one_after_another(5))
    assert found["throughput"].value == pytest.approx(found["throughput_whole"].value) == pytest.approx(55.0)


def test_a_response_in_one_piece_is_spread_over_its_eval_duration():
    # Both make 11 tokens in their last 100 ms; the window is 50..150 ms, half of what the first one made.
    whole = {"chunk_ns": (), "ttft": 100}
    found = metrics(
        sample(0, sent=0, client=0, **whole | {"done_ns": 150 * MS}),
        sample(1, sent=50, client=1, **whole | {"done_ns": 300 * MS}),
        workload={"concurrency": 1, "stream": False},
    )
    assert found["throughput"].value == pytest.approx(11 / 0.1)


def test_without_a_time_in_which_all_were_busy_throughput_covers_the_whole_run():
    found = metrics(sample(0, sent=0, client=0), sample(1, sent=500, client=1), workload={"concurrency": 2})
    assert found["throughput"].value == found["throughput_whole"].value == pytest.approx(22 / 0.7)


def test_an_open_loop_is_steady_from_the_first_to_the_last_scheduled_time():
    arrivals = [sample(index, sent=index * 100, scheduled_ns=index * 100 * MS) for index in range(5)]
    summary = summarise(run_of(*arrivals, workload={"rate": 10.0, "concurrency": None}))
    assert summary.steady_s == pytest.approx(0.4)
    # Chunks at 100..200 ms after each arrival: whole requests 0, 1 and 2, and the first chunk of request 3.
    assert summary.metrics["throughput"].value == pytest.approx(34 / 0.4)


def test_goodput_counts_requests_that_met_every_limit():
    samples = one_after_another(4)
    samples[1] = sample(1, sent=200, ttft=150, step=5)
    limits = {"ttft": 0.12, "latency": 0.2}
    found = metrics(*samples, failure(4, sent=800, took=200), limits=limits)
    assert found["goodput"].value == pytest.approx(3 / 1.0)
    assert found["qps"].value == pytest.approx(4 / 1.0)
    assert "goodput" not in metrics(*samples)


def test_goodput_holds_the_longest_gap_of_a_request_against_an_itl_limit():
    assert metrics(sample(0), sample(1, sent=200, step=20), limits={"itl": 0.01})["goodput"].value == pytest.approx(2)


def test_when_all_failed_only_what_was_promised_exists_and_is_as_bad_as_can_be():
    found = metrics(failure(0), failure(1, sent=5))
    assert found["error_rate"].value == 1.0
    assert found["tps"].value == found["throughput_whole"].value == found["qps"].value == 0.0
    assert found["ttft"].stats["min"] == found["latency"].stats["p50"] == math.inf
    assert "ttfa" not in found
    embedded = metrics(failure(0), workload={"endpoint": Endpoint.EMBED})
    assert set(embedded) == {"latency", "load_time", "qps", "error_rate"}


def test_outcomes_and_tokens_are_counted():
    summary = summarise(run_of(sample(0), sample(1), failure(2)))
    assert summary.outcomes == {"ok": 2, "http_error": 1}
    assert (summary.prompt_tokens, summary.output_tokens) == (60, 22)


def test_the_queue_on_one_slot_is_what_the_real_server_recorded():
    served = transcript("queue-one-slot")[1:]
    found = summarise(run_of(*served, workload={"concurrency": 4})).metrics
    assert list_request_values("queue", served) == pytest.approx([0.0019, 0.1151, 0.2199, 0.3268], abs=1e-4)
    assert found["tps"].value == pytest.approx(240 / 0.45506, rel=1e-3)
    assert found["ttft"].stats["max"] == pytest.approx(0.6423 - 0.3115, abs=1e-3)


def test_a_failed_request_adds_no_gap_unless_all_failed():
    whole, partial = metrics(*one_after_another(4)), metrics(*one_after_another(4), failure(9, sent=900))
    assert partial["itl"].stats == whole["itl"].stats
    assert partial["itl"].ci.keys() == whole["itl"].ci.keys()
    assert (partial["itl"].n, partial["itl"].failed) == (whole["itl"].n, 0)
    assert metrics(failure(0), failure(1, sent=10))["itl"].p50 == math.inf
