"""Loads are grouped by what was asked for, never by the name under which they are shown."""

import json

import msgspec
import pytest
from document_makers import document_of
from report_makers import WORKLOAD, load, result, sample

from pytest_ollama_perf.report import exports, series

LONG = "m" * 100


def load_of(model="m", **options):
    workload = msgspec.structs.replace(WORKLOAD, model=model, **options)
    return load([sample(index) for index in range(3)], workload=workload)


def test_loads_whose_names_are_cut_alike_stay_apart():
    document = document_of(result(loads=[load_of(f"{LONG}-a"), load_of(f"{LONG}-b"), load_of(f"{LONG}-a")]))
    loads = document.tests[0].loads
    names = series.distinguish_loads(loads)
    assert series.group_loads(loads) == [0, 1, 0]
    assert names[0] == names[2] != names[1]


@pytest.mark.parametrize("reserved", sorted(series.RESERVED_NAMES))
def test_a_model_that_is_called_as_a_series_gets_another_name(reserved):
    loads = document_of(result(loads=[load_of(reserved), load_of("b")])).tests[0].loads
    assert series.name_loads(loads) == [f"{reserved} (2)", "b"]


def test_tests_whose_names_are_cut_alike_stay_apart():
    name = "t" * 700
    document = document_of(result(test=f"{name}[1]", loads=[load_of()]), result(test=f"{name}[2]", loads=[load_of()]))
    latencies = [point for point in series.select_medians(document) if (point.metric, point.stat) == ("latency", "p50")]
    assert [point.place for point in latencies] == [(0, 0), (1, 0)]
    assert exports.export_openmetrics(document).decode().count("token_usage_count{") == 4


def test_the_median_of_loads_that_are_alike_is_that_of_their_group():
    loads = [load_of(concurrency=1), load_of(concurrency=2), load_of(concurrency=1)]
    found = json.loads(exports.export_bencher(document_of(result(loads=loads, test="t"))))
    assert list(found) == ["t (concurrency 1)", "t (concurrency 2)"]
