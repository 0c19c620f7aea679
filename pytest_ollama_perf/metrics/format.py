"""How a number of a metric reads for a person: milliseconds below a second, three significant digits, then its unit."""

from __future__ import annotations

import math

from pytest_ollama_perf.metrics.definitions import METRICS, Unit

_UNIT_SUFFIXES = {
    Unit.SECONDS: " s",
    Unit.TOKENS_PER_SECOND: " /s",
    Unit.REQUESTS_PER_SECOND: " /s",
    Unit.SHARE: " %",
    Unit.CELSIUS: " °C",
    Unit.JOULES_PER_TOKEN: " J",
}


def format_value(metric: str, value: float | None, digits: int = 3) -> str:
    """Return ``value``, in the metric's own unit, as a person reads it: ``182 ms``, ``1.2 s``, ``84.1 /s``, ``3 %``.

    ``inf`` is how a failed request's time reads; ``-`` stands for a value that does not exist (``None``, NaN).
    """
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "-inf" if value < 0 else "inf"
    unit = METRICS[metric].unit
    if unit is Unit.SECONDS:
        return format_seconds(value, digits)
    if unit is Unit.BYTES:
        return format_bytes(value, digits)
    return format_number(value * 100 if unit is Unit.SHARE else value, digits) + _UNIT_SUFFIXES[unit]


def format_distinct(metric: str, value: float, other: float) -> tuple[str, str]:
    """Return both numbers, with more digits where three would make different numbers read alike."""
    for digits in (3, 4, 5, 6, 9):
        pair = format_value(metric, value, digits), format_value(metric, other, digits)
        if pair[0] != pair[1] or value == other:
            break
    return pair


def format_seconds(value: float, digits: int = 3) -> str:
    """Return a time in seconds as ``182 ms`` or ``1.2 s``; it is rounded before the unit is chosen."""
    rounded = _round_digits(value, digits)
    return (
        f"{format_number(value, digits)} s"
        if rounded == 0 or abs(rounded) >= 1
        else f"{format_number(value * 1e3, digits)} ms"
    )


def format_bytes(value: float, digits: int = 3) -> str:
    """Return bytes as ``18.2 GiB``, or ``512 MiB`` below one of them."""
    gibibytes = abs(_round_digits(value / 2**30, digits)) >= 1
    return f"{format_number(value / 2**30, digits)} GiB" if gibibytes else f"{format_number(value / 2**20, digits)} MiB"


def format_number(value: float, digits: int = 3) -> str:
    """Return ``value`` with ``digits`` significant digits, no trailing zeros and no exponent; whole digits are kept."""
    rounded = _round_digits(value, digits)
    if rounded == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_percent(share: float, *, signed: bool = False) -> str:
    """Return a share or relative change as ``44 %`` or, signed, ``+26.9 %``; infinite changes read ``inf %``."""
    if math.isinf(share):
        return ("+" if signed and share > 0 else "-" if share < 0 else "") + "inf %"
    text = format_number(share * 100)
    return f"{'+' if signed and not text.startswith('-') else ''}{text} %"


def format_label(metric: str, stat: str = "") -> str:
    """Return what a judged number is called: ``ttft p50``, ``tps``."""
    return f"{metric} {stat}".rstrip()


def format_count(number_of: int, noun: str) -> str:
    """Return ``1 request``, ``2 requests``."""
    return f"{number_of} {noun}{'' if number_of == 1 else 's'}"


def _round_digits(value: float, digits: int) -> float:
    return float(f"{value:.{digits - 1}e}")
