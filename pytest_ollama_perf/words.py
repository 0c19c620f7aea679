"""What a person may have meant: suggestions for misspelt words, shared by every parser of this package."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(given: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest valid word, or nothing when none is near."""
    near = difflib.get_close_matches(given, list(valid), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
