"""Text in columns: nothing lost, nothing too wide."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ollama_perf.report.tables import (
    align_table,
    clean,
    count_columns,
    join_phrases,
    truncate,
    truncate_middle,
    wrap,
)

texts = st.text(st.characters(exclude_categories=("C", "Z")) | st.sampled_from(" 漢e\u0301"), max_size=80)


def test_wide_characters_take_two_columns_and_accents_none():
    assert (count_columns("abc"), count_columns("漢字"), count_columns("e\u0301")) == (3, 4, 1)


@pytest.mark.parametrize(("text", "shown"), [("abcdef", "abcdef"), ("abcdefg", "abc..."), ("漢字漢字", "漢...")])
def test_a_cut_text_ends_in_dots(text, shown):
    assert truncate(text, 6) == shown


def test_both_ends_of_a_name_survive():
    assert truncate_middle("tests/test_chat.py::test_speed", 15) == "tests/..._speed"


@given(texts, st.integers(0, 40))
def test_a_cut_text_fits(text, width):
    assert count_columns(truncate(text, width)) <= width
    assert count_columns(truncate_middle(text, width)) <= width


@given(texts, st.integers(8, 40))
def test_wrapping_fits_and_loses_nothing(text, width):
    lines = wrap(text, width, "> ", "  ")
    assert all(count_columns(line) <= width for line in lines)
    assert "".join(line[2:] for line in lines).replace(" ", "") == "".join(text.split())


def test_a_word_longer_than_a_line_is_broken_where_the_line_ends():
    assert wrap("a " + "b" * 9, 6, "- ", "  ") == ["- a", "  bbbb", "  bbbb", "  b"]


def test_phrases_stay_whole():
    assert join_phrases(["one two", "three four", "five"], 14, "  ") == ["  one two,", "  three four,", "  five"]


def test_a_table_aligns_by_columns_of_the_terminal():
    assert align_table([("", "a"), ("漢", "12"), ("x", "3")], gap=1) == ["    a", "漢 12", "x   3"]


def test_cleaned_text_is_ascii_where_the_text_was():
    assert clean("x" * 700).endswith("x...")
    assert clean(" \x1b[1mbold\x1b[0m\n") == "[1mbold[0m"
