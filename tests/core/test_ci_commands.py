"""Texts from a server never become commands of a CI system, whatever their place in a line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.report.tables import clean, wrap


@pytest.mark.parametrize(
    ("text", "inert"),
    [
        ("::set-output name=x::1", ": :set-output name=x::1"),
        ("  ::add-mask::secret", "  : :add-mask::secret"),
        ("error\n::warning::x", "error : :warning::x"),
        ("x ##[add-mask]abc", "x # #[add-mask]abc"),
        ("x##vso[task.complete result=Succeeded;]", "x# #vso[task.complete result=Succeeded;]"),
        ("##VSO[task.complete]", "# #VSO[task.complete]"),
        ("##teamcity[buildStop]", "# #teamcity[buildStop]"),
        ("###[group]x", "## #[group]x"),
        ("tests/test_it.py::test_speed", "tests/test_it.py::test_speed"),
        ("[::1]:11434 is down", "[::1]:11434 is down"),
    ],
)
def test_a_command_is_broken(text: str, inert: str) -> None:
    assert sanitize(text) == inert


def is_command(line: str) -> bool:
    return line.strip().startswith("::") or "##[" in line or "##vso[" in line


@given(st.text("ab:#[vso ]\n\x1b", max_size=60), st.integers(8, 20), st.sampled_from(["", "  "]))
def test_no_line_of_a_wrapped_text_is_a_command(text: str, width: int, indent: str) -> None:
    assert not [line for line in wrap(clean(text), width, indent, indent) if is_command(line)]
