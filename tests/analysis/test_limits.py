import math

import pytest

from pytest_ollama_perf.analysis.limits import (
    Limit,
    collect_latency_limits,
    list_limit_options,
    parse_limit,
    parse_limit_option,
)
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.metrics import METRICS


@pytest.mark.parametrize(
    ("key", "text", "read"),
    [
        ("ttft.p95", "<= 300ms", ("ttft", "p95", "<=", 0.3)),
        ("ttft", "p95 <= 300ms", ("ttft", "p95", "<=", 0.3)),
        ("ttft.p95", "<=350us", ("ttft", "p95", "<=", 0.00035)),
        ("latency.max", "<= 1.5 min", ("latency", "max", "<=", 90.0)),
        ("latency.mean", "<= 2.5s", ("latency", "mean", "<=", 2.5)),
        ("tps", ">= 150", ("tps", "", ">=", 150.0)),
        ("tps.p50", ">= 150 tokens/s", ("tps", "p50", ">=", 150.0)),
        ("qps", ">= 2.5 /s", ("qps", "", ">=", 2.5)),
        ("error_rate", "<= 1%", ("error_rate", "", "<=", 0.01)),
        ("error_rate", "<= 0.01", ("error_rate", "", "<=", 0.01)),
    ],
)
def test_a_limit_is_read_in_the_metrics_own_unit(key, text, read):
    limit = parse_limit(key, text)
    assert (limit.metric, limit.stat, limit.op, limit.bound) == read
    assert limit.text == text


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("tpss", ">= 5", "limit 'tpss': '>= 5': unknown metric 'tpss'; did you mean 'tps'?"),
        (
            "ttft",
            "<= 1s",
            "limit 'ttft': '<= 1s': ttft has one value per request, say which statistic: 'ttft.p95' "
            "(on the marker max_p95_ttft); valid: mean, p50, p90, p95, p99, min, max",
        ),
        ("ttft.p80", "<= 1s", "unknown statistic 'p80'; did you mean 'p90'?; valid: mean, p50"),
        ("ttft.p95", "p50 <= 1s", "duplicate statistic: 'p95' and 'p50'"),
        ("ttft.p95", ">= 1s", "lower is better for ttft, so its limit is written '<='"),
        ("tps", "<= 5", "higher is better for tps, so its limit is written '>='"),
        ("tps", "> 5", "its limit is written '>='"),
        ("ttft.p95", "<= 300", "ttft needs a unit; valid: 's', 'ms', 'us', 'µs', 'min', as in '<= 300ms'"),
        ("tps", ">= 300ms", "'ms' is no unit of tps; valid: 'tokens/s', '/s', as in '>= 150'"),
        ("error_rate", "<= 5", "5 is more than every request; expected a share from 0 to 1 such as 0.01"),
        ("tps", ">= nan", "a limit is a number from 0 up, not nan"),
        ("tps", ">= inf", "a limit is a number from 0 up, not inf"),
        ("tps", ">= 1e999", "a limit is a number from 0 up, not inf"),
        ("tps", ">= -5", "a limit is a number from 0 up, not -5"),
        ("tps", "150", "expected a text such as '>= 150'"),
        ("tps", "", "expected a text such as '>= 150'"),
        ("tps", True, "limit 'tps': True: expected a text such as '>= 150'"),
        ("tps", 150, "expected a text such as '>= 150'"),
        ("throughput.p95", ">= 5", "throughput is one number per run; write 'throughput' without 'p95'"),
    ],
)
def test_a_wrong_limit_says_in_one_line_what_would_be_right(key, text, message):
    with pytest.raises(ConfigError) as error:
        parse_limit(key, text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("word", "value", "read"),
    [
        ("min_tps", 150, ("tps", "", ">=", 150.0)),
        ("min_p50_tps", "150 tokens/s", ("tps", "p50", ">=", 150.0)),
        ("min_throughput", 2.5, ("throughput", "", ">=", 2.5)),
        ("max_p95_latency", 2.5, ("latency", "p95", "<=", 2.5)),
        ("max_p50_load_time", "2min", ("load_time", "p50", "<=", 120.0)),
        ("max_error_rate", "1%", ("error_rate", "", "<=", 0.01)),
        ("max_max_itl", "80ms", ("itl", "max", "<=", 0.08)),
    ],
)
def test_a_marker_word_is_a_limit(word, value, read):
    limit = parse_limit_option(word, value)
    assert (limit.metric, limit.stat, limit.op, limit.bound) == read


@pytest.mark.parametrize(
    ("word", "value", "message"),
    [
        ("min_tsp", 5, "min_tsp=5: unknown limit 'min_tsp'; did you mean 'min_tps'?"),
        ("max_tps", 5, "max_tps=5: higher is better for tps; write min_tps"),
        ("min_p95_latency", 5, "lower is better for latency; write max_p95_latency"),
        ("min_latency", 5, "lower is better for latency; write max_p50_latency or max_p95_latency"),
        ("max_ttft", 5, "ttft has one value per request, say which statistic: max_p50_ttft, max_p95_ttft"),
        ("max_p80_ttft", 5, "unknown statistic 'p80'; did you mean 'p90'?"),
        ("min_p95_throughput", 5, "throughput is one number per run; write min_throughput"),
        ("min_error_rate", 0.1, "lower is better for error_rate; write max_error_rate"),
        ("min_tps", True, "limit min_tps=True: expected tokens per second, such as 150"),
        ("min_tps", None, "expected tokens per second, such as 150"),
        ("min_tps", math.nan, "a limit is a number from 0 up, not nan"),
        ("min_tps", "5ms", "'ms' is no unit of tps"),
        ("min_tps", 10**400, "a limit is a number from 0 up, not inf"),
        ("max_p95_latency", -1, "a limit is a number from 0 up, not -1"),
        ("max_p95_latency", "fast", "expected seconds such as 2.5, or a text with a unit such as '300ms'"),
        ("max_error_rate", 5, "5 is more than every request"),
    ],
)
def test_a_wrong_word_says_in_one_line_what_would_be_right(word, value, message):
    with pytest.raises(ConfigError) as error:
        parse_limit_option(word, value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_word_is_read_and_goes_the_way_its_metric_goes():
    read = [parse_limit_option(word, "1GiB" if word == "max_gpu_memory" else 0.5) for word in list_limit_options()]
    assert {limit.metric for limit in read} == set(METRICS)
    assert all((limit.op == ">=") == METRICS[limit.metric].is_higher_better for limit in read)
    assert len(set(list_limit_options())) == len(list_limit_options())
    assert {"min_tps", "min_throughput", "min_qps", "max_error_rate", "max_p95_latency"} <= set(list_limit_options())


def test_goodput_asks_of_one_request_what_limits_say_of_percentiles_and_the_maximum():
    limits = [
        parse_limit_option("max_p95_ttft", 0.3),
        parse_limit_option("max_max_ttft", 0.5),
        parse_limit_option("max_mean_latency", 1),
        parse_limit_option("min_tps", 50),
    ]
    assert collect_latency_limits(limits) == {"ttft": 0.3}


def test_a_limit_is_a_plain_value():
    assert parse_limit("tps", ">= 5") == Limit(metric="tps", stat="", op=">=", bound=5.0, text=">= 5")
