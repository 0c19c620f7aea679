"""Text from a server or a file, made safe for display, and the parsing of durations."""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Iterable

from pytest_ollama_perf.core import ConfigError

_LINE_BREAKS = "\n\t\r"

_CI_COMMAND = re.compile(r"(?<!\S):(?=:)|#(?=#(?:\[|vso\[|teamcity\[))", re.IGNORECASE)
"""Matches texts that GitHub Actions, Azure Pipelines or TeamCity would read as a command in their log."""


def break_ci_commands(text: str) -> str:
    """Return ``text`` so that no CI system runs a part of it as a command: ``::set-output`` becomes ``: :set-output``.

    GitHub reads ``::name`` at the beginning of a line, spaces before it included; ``##[name]``, ``##vso[name]`` and
    ``##teamcity[name]`` count anywhere in a line.
    """
    return _CI_COMMAND.sub(lambda found: f"{found[0]} ", text)


def sanitize(text: str, limit: int = 300) -> str:
    """Return ``text`` on one line, at most ``limit`` long, without control, format or unassigned characters.

    Every kind of space becomes a plain space. Escape sequences lose their ESC. A truncated text ends in an ellipsis.
    Commands of CI systems are broken, see ``break_ci_commands``.
    """
    kept = "".join(
        " " if char in _LINE_BREAKS or unicodedata.category(char) == "Zs" else char
        for char in text[: 4 * limit]
        if char in _LINE_BREAKS or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    )
    inert = break_ci_commands(kept)
    return inert if len(inert) <= limit and len(text) <= 4 * limit else inert[: limit - 1] + "…"


def suggest_match(given: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the most similar valid word, or an empty text if none is similar."""
    near = difflib.get_close_matches(given, list(valid), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def safe_repr(value: object, limit: int = 100) -> str:
    """Return ``repr(value)`` on one line of at most ``limit`` characters; the type's name if ``repr`` fails."""
    try:
        return sanitize(repr(value), limit)
    except Exception:  # an integer with thousands of digits, or any error in a user's __repr__
        return f"<{type(value).__name__}>"


SECONDS_PER_UNIT = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_DURATION_PATTERN = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([a-zµ]*)\s*")


def parse_seconds(value: object, what: str) -> float:
    """Return ``value`` in seconds: a number of seconds, or a text with a unit (us, ms, s, m or min, h).

    Raises:
        ConfigError: it is neither, negative or not finite; ``what`` names where it was given.
    """
    number = _to_seconds(value)
    if not 0 <= number < math.inf:
        units = "with a unit such as '300ms', '2.5s' or '10m'"
        raise ConfigError(f"{what}={safe_repr(value)}: expected seconds, as a number or {units}")
    return number


def _to_seconds(value: object) -> float:
    """Return seconds, or NaN for what is neither a number nor a text with a unit."""
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, str) and (match := _DURATION_PATTERN.fullmatch(value)):
            return float(match[1]) * SECONDS_PER_UNIT.get(match[2] or "s", math.nan)
    except OverflowError:
        return math.inf
    return math.nan
