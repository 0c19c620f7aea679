"""Models that were loaded before the session are restored after it."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from pytest_ollama_perf.client.models import RunningModel
from pytest_ollama_perf.core import ServerUnreachableError
from pytest_ollama_perf.harness.servers import ResidencyKeeper, parse_expiry


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:01:00Z", 60.0),
        ("1970-01-01T00:01:00.250000000Z", 60.25),
        ("1970-01-01T02:01:00.5+02:00", 60.5),
        ("2319-03-03T15:04:11.018308069Z", float("inf")),
        ("0001-01-01T00:00:00Z", -62135596800.0),
        ("2026-13-01T00:00:00Z", None),
        ("soon", None),
        ("", None),
    ],
)
def test_the_expiry_of_a_model_is_read_as_go_writes_it(text, seconds) -> None:
    assert parse_expiry(text) == seconds


class Control:
    """A server whose loaded models are set by hand; it notes what it is asked to do."""

    def __init__(self, *running: RunningModel) -> None:
        self.running, self.asked = list(running), []
        self.address = SimpleNamespace(url="http://box:11434")
        self.is_down = False

    def list_running(self):
        if self.is_down:
            raise ServerUnreachableError("nothing answers")
        return tuple(self.running)

    def load(self, model, *, keep_alive, num_ctx, timeout_s):
        self.asked.append(("load", model, keep_alive, num_ctx))

    def unload(self, model):
        self.asked.append(("unload", model))


def make_model(name="m", minutes=5.0, context_length=4096) -> RunningModel:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW + 60 * minutes))
    return RunningModel(name=name, context_length=context_length, expires_at=at)


NOW = 1_800_000_000.0


def restore(before, after, *, later_s=0.0) -> list[tuple[object, ...]]:
    now = [NOW]
    control = Control(*before)
    keeper = ResidencyKeeper(clock=lambda: now[0])
    keeper.remember([control])
    control.running = list(after)
    now[0] += later_s
    keeper.restore()
    return control.asked


def test_what_is_as_before_is_left_alone() -> None:
    assert restore([make_model()], [make_model()]) == []


def test_a_model_that_is_gone_or_has_another_context_is_loaded_for_the_time_it_had_left() -> None:
    assert restore([make_model()], [], later_s=60) == [("load", "m", 240.0, 4096)]
    assert restore([make_model(minutes=60)], [make_model(context_length=1024)]) == [("load", "m", 3600.0, 4096)]


def test_a_model_that_would_have_expired_by_now_stays_as_it_is() -> None:
    assert restore([make_model()], [], later_s=301) == []


def test_only_models_that_would_stay_long_are_unloaded() -> None:
    assert restore([], [make_model("short", 4), make_model("long", 60)]) == [("unload", "long")]


def test_a_server_that_is_gone_is_skipped() -> None:
    control = Control(make_model())
    keeper = ResidencyKeeper()
    keeper.remember([control])
    control.is_down = True
    keeper.restore()
    assert control.asked == []
    keeper.remember([control])
