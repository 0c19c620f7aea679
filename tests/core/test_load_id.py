"""The identity of a load in node ids and history keys comes from its arguments, never from a display text."""

import pytest

from pytest_ollama_perf.core.workload import Arrival, Stage, Workload, build_load_id
from pytest_ollama_perf.report import facts

PINNED = [
    ({}, "concurrency=1"),
    ({"concurrency": 4}, "concurrency=4"),
    ({"concurrency": 4, "requests": 90}, "concurrency=4"),
    ({"concurrency": None, "rate": 2.5}, "rate=2.5"),
    ({"concurrency": None, "rate": 2.0}, "rate=2"),
    ({"concurrency": None, "rate": 0.123456789}, "rate=0.123456789"),
    ({"concurrency": None, "rate": 5, "arrival": Arrival.CONSTANT}, "rate=5,arrival=constant"),
    ({"requests": None, "duration_s": 60.0}, "concurrency=1,duration=60"),
    ({"requests": None, "duration_s": 0.5}, "concurrency=1,duration=0.5"),
    ({"concurrency": 8, "turns": 3, "cold": True}, "concurrency=8,turns=3,cold=true"),
    ({"concurrency": 8, "stages": (Stage(level=2, seconds=5), Stage(level=8, seconds=5))}, "concurrency=8,stages=2"),
]


@pytest.mark.parametrize(("options", "load_id"), PINNED, ids=[load_id for _, load_id in PINNED])
def test_the_id_of_a_load_is_pinned(options, load_id):
    assert build_load_id(Workload(model="m", **options)) == load_id


def test_the_id_does_not_follow_the_display_text(monkeypatch):
    before = build_load_id(Workload(model="m", concurrency=4))
    monkeypatch.setattr(facts, "format_load_label", lambda workload: iter(["another text"]))
    assert build_load_id(Workload(model="m", concurrency=4)) == before
