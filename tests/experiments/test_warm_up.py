"""Models that are loaded before anything is measured, and the patience that takes."""

from __future__ import annotations

import threading

import pytest
from virtual import Listening

from pytest_ollama_perf.client.waiting import call_with_ticks
from pytest_ollama_perf.core import ServerError
from pytest_ollama_perf.experiments.load import warm_up


class Control:
    """A server that keeps ``places`` models, each with what it was loaded with."""

    def __init__(self, places=9, seconds=1.0) -> None:
        self.places, self.seconds = places, seconds
        self.held: dict[str, dict] = {}

    def get_installed(self, model):
        if model == "absent":
            raise ServerError("model 'absent' is not there; type: ollama pull absent")

    def load(self, model, **words):
        self.held.pop(model, None)
        self.held[model] = words
        while len(self.held) > self.places:
            self.held.pop(next(iter(self.held)))
        return self.seconds

    def find_running(self, model):
        return self.held.get(model)


class Server:
    def __init__(self, control) -> None:
        self.control, self.name = control, "http://box:11434"


class Bench:
    def __init__(self, *controls) -> None:
        self.servers = tuple(map(Server, controls))

    def remember_models(self): ...

    def resolve_workload(self, workload):
        return type("Completed", (), {"model": workload.model or "only"})


def test_every_model_is_loaded_on_every_server_and_the_slowest_counts():
    quick, slow = Control(seconds=1.0), Control(seconds=3.0)
    listener = Listening()
    assert warm_up(Bench(quick, slow), ("a", "b"), listener, keep_alive="2h") == {"a": 3.0, "b": 3.0}
    assert list(quick.held) == list(slow.held) == ["a", "b"]
    assert quick.held["a"] == {"keep_alive": "2h", "num_ctx": None, "timeout_s": 1800.0}
    assert listener.messages[0] == "warming up a"


def test_without_a_name_the_only_model_is_meant_and_words_go_through():
    control = Control()
    warm_up(Bench(control), (), Listening(), num_ctx=1024, timeout_s=5)
    assert control.held == {"only": {"keep_alive": "1h", "num_ctx": 1024, "timeout_s": 5}}


def test_a_model_that_another_one_pushed_out_is_named():
    with pytest.raises(ServerError) as error:
        warm_up(Bench(Control(places=1)), ("a", "b"), Listening())
    assert "a is no longer loaded on http://box:11434 once b is; the server keeps fewer loaded" in str(error.value)


def test_a_missing_model_is_told_as_the_server_tells_it():
    with pytest.raises(ServerError, match="ollama pull absent"):
        warm_up(Bench(Control()), ("absent",), Listening())


def test_a_long_call_is_told_about_until_it_ends():
    ticks, release = [], threading.Event()
    clock = iter(range(100))

    def tick(seconds):
        ticks.append(seconds)
        if len(ticks) == 3:
            release.set()

    def call():
        release.wait(10)
        return "done"

    assert call_with_ticks(call, tick, every_s=0.001, clock=lambda: next(clock)) == "done"
    assert ticks[:3] == [1, 2, 3]


def test_a_call_that_fails_fails_where_it_was_waited_for():
    def call():
        raise ServerError("no")

    with pytest.raises(ServerError, match="no"):
        call_with_ticks(call, lambda seconds: None)


def test_whoever_stops_waiting_goes_on_at_once():
    release = threading.Event()

    def tick(seconds):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_with_ticks(lambda: release.wait(10), tick, every_s=0.001)
    release.set()
