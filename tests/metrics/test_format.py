import math

import pytest

from pytest_ollama_perf.metrics import (
    METRICS,
    format_count,
    format_distinct,
    format_label,
    format_percent,
    format_value,
)


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("ttft", 0.1824, "182 ms"),
        ("ttft", 1.2, "1.2 s"),
        ("latency", 3.1049, "3.1 s"),
        ("latency", 0.9997, "1 s"),
        ("latency", 0.9994, "999 ms"),
        ("latency", 1234.5, "1234 s"),
        ("itl", 0.0000412, "0.0412 ms"),
        ("queue", 0.0, "0 s"),
        ("tps", 84.12, "84.1 /s"),
        ("tps", 1390.4, "1390 /s"),
        ("tps", 0.0, "0 /s"),
        ("qps", 2.0, "2 /s"),
        ("error_rate", 0.03, "3 %"),
        ("error_rate", 1.0, "100 %"),
        ("error_rate", 0.00125, "0.125 %"),
        ("latency", math.inf, "inf"),
        ("latency", math.nan, "-"),
        ("ttfa", None, "-"),
    ],
)
def test_a_number_reads_with_three_digits_and_its_unit(metric, value, text):
    assert format_value(metric, value) == text


def test_every_metric_can_be_shown():
    assert all(format_value(name, 1.0) for name in METRICS)


def test_different_numbers_never_read_alike():
    assert format_distinct("latency", 2.5001, 2.5) == ("2.5001 s", "2.5 s")
    assert format_distinct("latency", 3.1, 2.5) == ("3.1 s", "2.5 s")
    assert format_distinct("latency", 2.5, 2.5) == ("2.5 s", "2.5 s")


def test_a_change_shows_its_sign_when_asked():
    assert format_percent(0.44) == "44 %"
    assert format_percent(0.269, signed=True) == "+26.9 %"
    assert format_percent(-0.005, signed=True) == "-0.5 %"
    assert format_percent(math.inf, signed=True) == "+inf %"


def test_labels_and_counts_read_as_words():
    assert format_label("ttft", "p50") == "ttft p50"
    assert format_label("tps") == "tps"
    assert format_count(1, "request") == "1 request"
    assert format_count(0, "request") == "0 requests"
