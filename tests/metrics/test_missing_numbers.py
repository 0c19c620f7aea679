"""Infinite and missing numbers have a text in every formatter: none of them ever raises."""

import math

import pytest

from pytest_ollama_perf.metrics import (
    METRICS,
    format_bytes,
    format_distinct,
    format_number,
    format_percent,
    format_seconds,
    format_value,
)


@pytest.mark.parametrize("form", [format_bytes, format_number, format_seconds])
def test_a_number_that_is_not_finite_has_a_text(form):
    assert [form(value) for value in (math.nan, math.inf, -math.inf)] == ["-", "inf", "-inf"]


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_that_is_not_finite_has_a_text(metric):
    assert [format_value(metric, value) for value in (None, math.nan, math.inf, -math.inf)] == ["-", "-", "inf", "-inf"]
    assert format_distinct(metric, math.nan, math.inf) == ("-", "inf")


def test_a_change_that_is_not_known_is_a_dash():
    assert format_percent(math.nan) == format_percent(math.nan, signed=True) == "-"
    assert [format_percent(value, signed=True) for value in (math.inf, -math.inf)] == ["+inf %", "-inf %"]
