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
    by_fold = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(canonical(model).casefold(), by_fold, n=count, cutoff=0.4)
    return [by_fold[name] for name in close] or names[:count]
