"""Numbers with units as people write them: ``2.5``, ``"300ms"``, ``"2.5s"``, ``"10m"``."""

from __future__ import annotations

import math
import re

from pytest_ollama_perf.errors import ConfigError

SECONDS_PER = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([a-zµ]*)\s*")


def seconds(value: object, what: str) -> float:
    """Return ``value`` in seconds: a number of seconds, or a text with a unit (us, ms, s, m or min, h).

    Raises:
        ConfigError: it is neither, negative or not finite; ``what`` names where it was given.
    """
    number = _seconds(value)
    if number is None or not math.isfinite(number) or number < 0:
        raise ConfigError(f"{what}={value!r}: expected seconds, as a number or with a unit such as '300ms', '2.5s' or '10m'")
    return number


def _seconds(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        scale = SECONDS_PER.get(match[2] or "s")
        return None if scale is None else float(match[1]) * scale
    return None
