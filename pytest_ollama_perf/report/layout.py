"""Text in terminal columns: how wide it is, how it is cut, wrapped and set in a table."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from pytest_ollama_perf.text import inert

WIDTH = 80
"""Columns that every text of this package fits."""


def clean(text: str, limit: int = 600) -> str:
    """Return ``text`` on one line, inert and cut to ``limit`` characters, with dots for the ellipsis."""
    return inert(text, limit).replace("…", "...").strip()


def cells(text: str) -> int:
    """Return how many columns a terminal gives ``text`` (Unicode UAX #11: wide and full-width take two)."""
    return len(text) if text.isascii() else sum(map(_cell, text))


def _cell(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def head(text: str, width: int) -> str:
    """Return the longest beginning of ``text`` that fits ``width`` columns."""
    used = 0
    for index, char in enumerate(text):
        used += _cell(char)
        if used > width:
            return text[:index]
    return text


def cut(text: str, width: int) -> str:
    """Return ``text`` in at most ``width`` columns; a cut one ends in dots."""
    return text if cells(text) <= width else (head(text, width - 3) + "..." if width > 3 else head(text, max(width, 0)))


def cut_middle(text: str, width: int) -> str:
    """Return ``text`` in at most ``width`` columns, dots in its middle: both ends of a test's name tell it apart."""
    if cells(text) <= width:
        return text
    if width < 5:
        return head(text, max(width, 0))
    front = head(text, (width - 3) // 2)
    back = head(text[::-1], width - 3 - cells(front))[::-1]
    return f"{front}...{back}"


def wrap(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    """Return ``text`` broken at spaces into lines of at most ``width`` columns, each behind ``first`` or ``rest``.

    A word longer than a line is broken where the line ends.
    """
    lines, line = [], first
    empty = True
    for word in text.split():
        for piece in _pieces(word, width - max(cells(first), cells(rest))):
            if not empty and cells(line) + 1 + cells(piece) > width:
                lines.append(line)
                line, empty = rest, True
            line += piece if empty else f" {piece}"
            empty = False
    return [*lines, line.rstrip()]


def _pieces(word: str, width: int) -> Iterable[str]:
    while cells(word) > width:
        piece = head(word, width) or word[:1]
        yield piece
        word = word[len(piece) :]
    if word:
        yield word


def join_phrases(phrases: Iterable[str], width: int, indent: str) -> list[str]:
    """Return ``phrases`` behind commas, broken only between phrases where each fits a line."""
    lines: list[str] = []
    line = ""
    for phrase in phrases:
        longer = f"{line}, {phrase}" if line else phrase
        if line and cells(indent) + cells(longer) + 1 > width:
            lines.append(f"{indent}{line},")
            longer = phrase
        line = longer
    whole = [*lines, f"{indent}{line}"] if line else lines
    return [cut(each, width) for each in whole]


def table(rows: Sequence[Sequence[str]], gap: int = 4) -> list[str]:
    """Return ``rows`` as aligned lines: the first column to the left, the others to the right, no trailing spaces."""
    if not rows:
        return []
    widths = [max(cells(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [_row(row, widths, gap).rstrip() for row in rows]


def _row(row: Sequence[str], widths: Sequence[int], gap: int) -> str:
    first = row[0] + " " * (widths[0] - cells(row[0]))
    others = (" " * (gap + width - cells(cell)) + cell for cell, width in zip(row[1:], widths[1:], strict=True))
    return first + "".join(others)
