"""Numbers with units as people write them: ``2.5``, ``"300ms"``, ``"2.5s"``, ``"10m"``."""

from __future__ import annotations

import math
import re

from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.words import shown

SECONDS_PER = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([a-zµ]*)\s*")


def seconds(value: object, what: str) -> float:
    """Return ``value`` in seconds: a number of seconds, or a text with a unit (us, ms, s, m or min, h).

    Raises:
        ConfigError: it is neither, negative or not finite; ``what`` names where it was given.
    """
    number = _seconds(value)
    if not 0 <= number < math.inf:
        units = "with a unit such as '300ms', '2.5s' or '10m'"
        raise ConfigError(f"{what}={shown(value)}: expected seconds, as a number or {units}")
    return number


def _seconds(value: object) -> float:
    """Return seconds, or NaN for what is neither a number nor a text with a unit."""
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
            return float(match[1]) * SECONDS_PER.get(match[2] or "s", math.nan)
    except OverflowError:
        return math.inf
    return math.nan
