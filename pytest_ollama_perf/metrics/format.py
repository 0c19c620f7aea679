"""Numbers of metrics as text: milliseconds below a second, three significant digits, then the unit."""

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
    """Return ``value``, in the unit of ``metric``, for display: ``182 ms``, ``1.2 s``, ``84.1 /s``, ``3 %``.

    The time of a failed request is ``inf``; a value that does not exist (``None``, NaN) is ``-``.
    """
    if value is None or not math.isfinite(value):
        return _format_special(math.nan if value is None else value)
    unit = METRICS[metric].unit
    if unit is Unit.SECONDS:
        return format_seconds(value, digits)
    if unit is Unit.BYTES:
        return format_bytes(value, digits)
    return format_number(value * 100 if unit is Unit.SHARE else value, digits) + _UNIT_SUFFIXES[unit]


def format_distinct(metric: str, value: float, other: float) -> tuple[str, str]:
    """Return both values, with more digits if three would make different values look equal."""
    for digits in (3, 4, 5, 6, 9):
        pair = format_value(metric, value, digits), format_value(metric, other, digits)
        if pair[0] != pair[1] or value == other:
            break
    return pair


def format_seconds(value: float, digits: int = 3) -> str:
    """Return a time in seconds as ``182 ms`` or ``1.2 s``, rounded before the unit is chosen; ``inf`` and ``-`` as in
    ``format_value``."""
    if not math.isfinite(value):
        return _format_special(value)
    rounded = _round_digits(value, digits)
    return (
        f"{format_number(value, digits)} s"
        if rounded == 0 or abs(rounded) >= 1
        else f"{format_number(value * 1e3, digits)} ms"
    )


def format_bytes(value: float, digits: int = 3) -> str:
    """Return bytes as ``18.2 GiB``, or ``512 MiB`` below 1 GiB; ``inf`` and ``-`` as in ``format_value``."""
    if not math.isfinite(value):
        return _format_special(value)
    gibibytes = abs(_round_digits(value / 2**30, digits)) >= 1
    return f"{format_number(value / 2**30, digits)} GiB" if gibibytes else f"{format_number(value / 2**20, digits)} MiB"


def format_number(value: float, digits: int = 3) -> str:
    """Return ``value`` with ``digits`` significant digits, without trailing zeros or an exponent; integer digits are
    kept. ``inf`` and ``-`` as in ``format_value``."""
    if not math.isfinite(value):
        return _format_special(value)
    rounded = _round_digits(value, digits)
    if rounded == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _format_special(value: float) -> str:
    """Return the text of a value that is not finite; a missing one has no digits and no unit."""
    return "-" if math.isnan(value) else "inf" if value > 0 else "-inf"


def format_percent(share: float, *, signed: bool = False) -> str:
    """Return a share or relative change as ``44 %`` or, signed, ``+26.9 %``; ``inf %`` if it is infinite, ``-`` for
    NaN."""
    if math.isnan(share):
        return _format_special(share)
    text = format_number(share * 100)
    return f"{'+' if signed and not text.startswith('-') else ''}{text} %"


def format_label(metric: str, stat: str = "") -> str:
    """Return the name of a judged value: ``ttft p50``, ``tps``."""
    return f"{metric} {stat}".rstrip()


def format_count(number_of: int, noun: str) -> str:
    """Return ``1 request``, ``2 requests``."""
    return f"{number_of} {noun}{'' if number_of == 1 else 's'}"


def _round_digits(value: float, digits: int) -> float:
    return float(f"{value:.{digits - 1}e}")
