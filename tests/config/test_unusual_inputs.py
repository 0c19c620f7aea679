"""Inputs that nobody writes on purpose: files of other kinds, empty values, huge numbers, nested lists."""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType

import pytest

from pytest_ollama_perf.config import DEFAULT_STORE, Option, Settings, datasets, resolve_settings
from pytest_ollama_perf.config.load_spec import build_load_spec
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.experiments import EXPERIMENT_MODULES, load_reader

HUGE = 10**400


class Given:
    """A source of settings with values of the command line only."""

    def __init__(self, **values: object) -> None:
        self._values = values

    def read_command_line(self, option: Option) -> object:
        return self._values.get(option.name)

    def read_ini(self, option: Option) -> object:
        return None


@pytest.mark.parametrize("place", ["", " "])
def test_an_empty_store_is_refused_and_not_replaced_by_the_default(place: str) -> None:
    with pytest.raises(ConfigError, match=r"--ollama-store is empty.*unset variable"):
        resolve_settings(Given(store=place), {})


def test_without_a_store_the_default_is_used() -> None:
    assert resolve_settings(Given(), MappingProxyType({})).store == DEFAULT_STORE


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no FIFOs")
@pytest.mark.parametrize("name", ["dataset", "images"])
@pytest.mark.timeout(10)
def test_a_fifo_is_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=f"{name}: .*pipe is not a regular file"):
        build_load_spec({name: str(tmp_path / "pipe")})


def test_a_dataset_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "Why?"}\n{"prompt": "How?"}\n')
    assert datasets.read_dataset("dataset", tmp_path / "prompts.jsonl")["prompts"] == ("Why?", "How?")


@pytest.mark.parametrize(
    ("marker", "options"),
    [
        *(("ollama_load", {name: HUGE}) for name in ("rate", "duration", "min_tps", "max_p95_ttft", "temperature")),
        ("ollama_load", {"stages": [{"rate": HUGE, "for": 1}]}),
        ("ollama_load", {"prompts": {"Why?": HUGE}}),
        ("ollama_sweep", {"concurrency": [[1, 2], [4]]}),
        ("ollama_sweep", {"concurrency": [1, 2], "min_knee": HUGE}),
        ("ollama_sweep", {"concurrency": [HUGE]}),
        ("ollama_sweep", {"num_ctx": [{}]}),
        ("ollama_max_concurrency", {"maximum": HUGE}),
        ("ollama_cold_start", {"max_ratio": HUGE}),
        ("ollama_ab", {"candidate": {"model": "b"}, "requests": HUGE}),
    ],
)
def test_values_that_no_computation_can_take_are_refused(marker: str, options: dict[str, object]) -> None:
    read, _ = load_reader(marker)
    with pytest.raises(ConfigError):
        read(options, Settings())


class _Unusual:
    def __len__(self) -> int:
        raise ZeroDivisionError("no length")

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError("no comparison")

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("marker", EXPERIMENT_MODULES)
def test_an_error_in_a_value_of_the_user_is_a_wrong_argument(marker: str) -> None:
    read, known = load_reader(marker)
    for name in known:
        with pytest.raises(ConfigError):
            read({name: _Unusual()}, Settings())


@pytest.mark.parametrize(
    ("option", "value"), [("max_p95_ttft", 300), ("max_p50_latency", 61), ("max_max_itl", 100.5), ("max_p99_queue", 90)]
)
def test_a_bare_number_that_was_meant_as_milliseconds_is_refused(option: str, value: float) -> None:
    with pytest.raises(
        ConfigError, match=rf"a number without a unit is in seconds; write '{value:g}ms' or '{value:g}s'"
    ):
        build_load_spec({option: value})


@pytest.mark.parametrize(
    ("option", "value"), [("max_p95_ttft", "300s"), ("max_p95_ttft", 60), ("max_p50_load_time", 600), ("min_tps", 300)]
)
def test_times_with_a_unit_and_usual_numbers_are_taken(option: str, value: float | str) -> None:
    assert build_load_spec({option: value}).limits[0].bound > 0
