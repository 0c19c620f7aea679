"""Saying things on a terminal or into a file: tables of rich, sparklines, JSON."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_ollama_perf.report.layout import cut_middle
from pytest_ollama_perf.text import inert

_WIDTH = 80
_BARS = "▁▂▃▄▅▆▇█"
_PLAIN_BARS = "_.-=+*%#"


def console() -> Console:
    """Return where to print: 80 columns without colour, or a terminal as it is."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    width = None if sys.stdout.isatty() else _WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False)


def print_json(body: object) -> None:
    """Print ``body``; numbers that do not exist become null."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(body), indent=2).decode() + "\n")


def warn(texts: Iterable[str]) -> None:
    """Print each of ``texts`` on standard error."""
    for text in texts:
        print(f"pytest-ollama-perf: {text}", file=sys.stderr)


def line(text: str, style: str = "") -> Text:
    """Return harmless text of one style, to be wrapped where the line ends."""
    return Text(inert(text, 2000), style=style)


def short(test: str, width: int) -> Text:
    """Return a node id in ``width`` columns (at least 14); both of its ends are what people know it by."""
    return Text(cut_middle(inert(test, 2000), max(14, width)))


def table(*columns: str, header: bool = True, left: int = 1) -> Table:
    """Return a table without lines: the first ``left`` columns to the left, the others to the right."""
    found = Table(box=None, show_header=header, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for number, name in enumerate(columns):
        found.add_column(name, justify="left" if number < left else "right", no_wrap=number >= left, overflow="fold")
    return found


def sparkline(values: Sequence[float]) -> str:
    """Return one bar per value between the lowest and the highest; a blank for a value that does not exist."""
    bars = _BARS if "utf" in (sys.stdout.encoding or "").lower() else _PLAIN_BARS
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return " " * len(values)
    low, span = min(known), max(known) - min(known)
    return "".join(_bar(value, low, span, bars) for value in values)


def _bar(value: float, low: float, span: float, bars: str) -> str:
    if not math.isfinite(value):
        return " "
    if not span:
        return bars[len(bars) // 2]
    return bars[min(len(bars) - 1, int((value - low) / span * len(bars)))]


def minute(seconds: float) -> str:
    """Return Unix seconds as ``2026-11-20 20:58`` (UTC)."""
    return _when(seconds).strftime("%Y-%m-%d %H:%M")


def day(seconds: float) -> str:
    """Return Unix seconds as ``2026-11-20`` (UTC)."""
    return _when(seconds).strftime("%Y-%m-%d")


def _when(seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, OSError, ValueError):
        return datetime.fromtimestamp(0, timezone.utc)
