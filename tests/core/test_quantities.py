"""Numbers with units: what is read, and what is refused."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.text import SECONDS_PER_UNIT, parse_seconds


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (2, 2.0),
        (2.5, 2.5),
        (0, 0.0),
        ("2.5", 2.5),
        ("300ms", 0.3),
        (" 300 ms ", 0.3),
        ("15us", 1.5e-05),
        ("15µs", 1.5e-05),
        ("2.5s", 2.5),
        ("10m", 600.0),
        ("10min", 600.0),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("1e-3s", 0.001),
    ],
)
def test_a_duration_is_read_in_seconds(value: object, read: float) -> None:
    assert parse_seconds(value, "duration") == pytest.approx(read, rel=1e-15)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("5 sec", "'5 sec'"),
        ("ten", "'ten'"),
        ("", "''"),
        ("-1s", "'-1s'"),
        ("1h30m", "'1h30m'"),
        ("٣s", "'٣s'"),
        ("1e999s", "'1e999s'"),
        (-1, "-1"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (True, "True"),
        (None, "None"),
        ([1], "[1]"),
        pytest.param(10**5000, "<int>", id="huge"),
        ("1s\n\x1b[31m", r"'1s\n\x1b[31m'"),
    ],
)
def test_what_is_no_duration_is_refused_on_one_line(value: object, shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_seconds(value, "duration")
    assert str(caught.value) == (
        f"duration={shown}: expected seconds, as a number or with a unit such as '300ms', '2.5s' or '10m'"
    )


@given(number=st.floats(0, 1e12), unit=st.sampled_from(sorted(SECONDS_PER_UNIT)))
def test_every_number_with_every_unit_is_that_number_of_units(number: float, unit: str) -> None:
    assert parse_seconds(f"{number!r}{unit}", "x") == pytest.approx(number * SECONDS_PER_UNIT[unit], rel=1e-12)


@given(st.one_of(st.text(), st.integers(), st.floats(), st.binary(), st.none(), st.booleans(), st.complex_numbers()))
def test_any_object_is_read_or_refused(value: object) -> None:
    with contextlib.suppress(ConfigError):
        assert 0 <= parse_seconds(value, "x") < math.inf
