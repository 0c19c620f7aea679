"""What a person wrote and may have meant: for the errors of every parser of this package."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pytest_ollama_perf.text import inert


def did_you_mean(given: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest valid word, or nothing when none is near."""
    near = difflib.get_close_matches(given, list(valid), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def shown(value: object, limit: int = 100) -> str:
    """Return ``repr(value)`` on one line of at most ``limit`` characters; the type's name where ``repr`` fails."""
    try:
        return inert(repr(value), limit)
    except Exception:  # a whole number of thousands of digits, or anything at all in a __repr__ of the user's
        return f"<{type(value).__name__}>"
