"""Names of models: ``tiny`` and ``tiny:latest`` are one, and Ollama does not tell capitals apart."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def canonical(model: str) -> str:
    """Return ``model`` with its tag; without one Ollama means ``latest``."""
    name = model.strip()
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def same_model(one: str, other: str) -> bool:
    """Return whether both names mean one model."""
    return canonical(one).casefold() == canonical(other).casefold()


def nearest(model: str, installed: Iterable[str], count: int = 3) -> list[str]:
    """Return the ``count`` names most like ``model``, the nearest first; any where none is like it."""
    names = sorted(installed)
    close = sorted((name for name in names if _alike(model, name) >= _CLOSE), key=lambda name: -_alike(model, name))
    return close[:count] or names[:count]


_CLOSE = 0.5


def _alike(one: str, other: str) -> float:
    """Return 0..1; names count without their tags, too, for every second model has the tag ``latest``."""
    whole = one.casefold(), other.casefold()
    bare = one.casefold().partition(":")[0], other.casefold().partition(":")[0]
    return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in (whole, bare))
