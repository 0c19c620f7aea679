"""Options, output and look-ups that several subcommands share."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.text import sanitize, suggest_match
from pytest_ollama_perf.report.tables import truncate_middle

if TYPE_CHECKING:
    from pytest_ollama_perf.config import Option
    from pytest_ollama_perf.core.run import Run
    from pytest_ollama_perf.core.workload import Workload
    from pytest_ollama_perf.store.base import Store


_MAX_LISTED = 10
_LEADING_FIELDS = ("cold", "concurrency", "rate")
"""Fields that name a load before all others, if they differ."""


def add_store_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--store`` and ``--json``."""
    from pytest_ollama_perf.config import DEFAULT_STORE

    parser.add_argument(
        "--store",
        default=DEFAULT_STORE,
        metavar="STORE",
        help=f"the history: a directory (default: {DEFAULT_STORE}) or a database URL",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def find_test(store: Store, text: str) -> str:
    """Return the node id that ``text`` names: the id itself or the end of one, with or without its parameters.

    Raises:
        ConfigError: no test or several match; the message suggests similar ones.
    """
    tests = store.list_tests()
    for means in (_is_same_test, _has_suffix, _has_suffix_without_parameters):
        found = [test for test in tests if means(test, text)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(
                f"'{sanitize(text)}' matches {len(found)} tests; give one of them: {_format_names(found)}"
            )
    raise ConfigError(_describe_unknown_test(store, tests, text))


def _describe_unknown_test(store: Store, tests: tuple[str, ...], text: str) -> str:
    if not tests:
        return f"no run is stored in {store.name} yet: run pytest with --ollama-save"
    near = suggest_match(text, tests) or suggest_match(text, {_get_test_name(test) for test in tests})
    known = "" if near else f"; it has {_format_names(tests)}"
    return f"no runs of a test '{sanitize(text)}' in {store.name}{near}{known}"


def _is_same_test(test: str, text: str) -> bool:
    return test == text


def _has_suffix(test: str, text: str) -> bool:
    return bool(text) and test.endswith(text) and test[: -len(text)].endswith((":", "/"))


def _has_suffix_without_parameters(test: str, text: str) -> bool:
    bare = re.sub(r"\[.*\]$", "", test, flags=re.DOTALL)
    return _is_same_test(bare, text) or _has_suffix(bare, text)


def _get_test_name(test: str) -> str:
    return test.rpartition("::")[2]


def _format_names(tests: Iterable[str]) -> str:
    names = [sanitize(test) for test in tests]
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def find_run(store: Store, text: str) -> Run:
    """Return the run that ``text`` names: a file, the id of a run, or the beginning of an id.

    Raises:
        ConfigError: no run or several match.
        StoreError: the record is damaged.
    """
    if Path(text).is_file():
        return read_run(Path(text))
    if (run := store.read_run(text)) is not None:
        return run
    found = store.find_run_ids(text) if text else ()
    if len(found) > 1:
        raise ConfigError(f"{len(found)} run ids begin with '{sanitize(text)}': {_format_names(found)}")
    whole = store.read_run(found[0]) if found else None
    if whole is None:
        raise ConfigError(
            f"no run '{sanitize(text)}' in {store.name}: give the id that history shows, or the file of a record"
        )
    return whole


def read_run(path: Path) -> Run:
    """Return the run in a record's file; ``CorruptRecordError`` or ``NewerSchemaError`` if it cannot be read."""
    from pytest_ollama_perf.store.record import read_run

    return read_run(path)


def add_gate_options(parser: argparse.ArgumentParser, *, than: str) -> None:
    """Add ``--metric`` and ``--margin``; ``than`` names the baseline in the help."""
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="judge this metric (tps, ttft, latency, ttft.p95, ...); repeatable; default: tps and ttft",
    )
    parser.add_argument(
        "--margin",
        action="append",
        default=[],
        metavar="METRIC=PERCENT",
        help=f"accepted change for the worse against {than}, for example tps=5%%; repeatable",
    )


_WIDTH = 80
_BARS = "▁▂▃▄▅▆▇█"
_PLAIN_BARS = "_.-=+*%#"


def open_console() -> Console:
    """Return a console for standard output: a terminal as it is, otherwise without colour and 80 columns wide, or
    ``COLUMNS`` if that is set."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    columns = os.environ.get("COLUMNS", "")
    width = None if sys.stdout.isatty() else int(columns) if columns.isdecimal() and int(columns) >= _WIDTH else _WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False)


def print_json(body: object) -> None:
    """Print ``body`` as JSON; NaN becomes null."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(body), indent=2).decode() + "\n")


def warn(texts: Iterable[str]) -> None:
    """Print each of ``texts`` on standard error."""
    for text in texts:
        print(f"pytest-ollama-perf: {text}", file=sys.stderr)


def build_text(text: str, style: str = "") -> Text:
    """Return sanitized text of one style; the console wraps it."""
    return Text(sanitize(text, 2000), style=style)


def shorten_test_id(test: str, width: int) -> Text:
    """Return a node id in ``width`` columns (at least 14); it is cut in the middle."""
    return Text(truncate_middle(sanitize(test, 2000), max(14, width)))


def build_table(*columns: str, header: bool = True, left: int = 1) -> Table:
    """Return a table without lines; the first ``left`` columns are left-aligned, the others right-aligned."""
    found = Table(box=None, show_header=header, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for number, name in enumerate(columns):
        found.add_column(name, justify="left" if number < left else "right", no_wrap=number >= left, overflow="fold")
    return found


def label_loads(workloads: Mapping[str, Workload]) -> dict[str, str]:
    """Return for each identity what distinguishes its load from the others: ``concurrency=4``, ``cold``.

    A single load has an empty label.
    """
    from pytest_ollama_perf.core.workload import collect_identity_fields

    fields = {identity: collect_identity_fields(workload) for identity, workload in workloads.items()}
    names = dict.fromkeys(name for each in fields.values() for name in each)
    differing = [name for name in names if len({repr(each.get(name)) for each in fields.values()}) > 1]
    chosen = _choose_fields(sorted(differing, key=lambda name: name not in _LEADING_FIELDS), fields)
    return {
        identity: ", ".join(_format_field(name, each.get(name)) for name in chosen) for identity, each in fields.items()
    }


def _choose_fields(names: Sequence[str], fields: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return as many of ``names`` as are needed to distinguish all loads."""
    chosen: list[str] = []
    for name in names:
        if len({repr([each.get(one) for one in chosen]) for each in fields.values()}) == len(fields):
            break
        chosen.append(name)
    return chosen


def _format_field(name: str, value: object) -> str:
    if name == "cold":
        return "cold" if value else "warm"
    return sanitize(f"{name}={getattr(value, 'value', value)}", 60)


def draw_sparkline(values: Sequence[float]) -> str:
    """Return one bar per value, scaled from the lowest to the highest; a blank for a missing value."""
    bars = _BARS if "utf" in (sys.stdout.encoding or "").lower() else _PLAIN_BARS
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return " " * len(values)
    low, span = min(known), max(known) - min(known)
    return "".join(_pick_bar(value, low, span, bars) for value in values)


def _pick_bar(value: float, low: float, span: float, bars: str) -> str:
    if not math.isfinite(value):
        return " "
    if not span:
        return bars[len(bars) // 2]
    return bars[min(len(bars) - 1, int((value - low) / span * len(bars)))]


def format_minute(seconds: float) -> str:
    """Return Unix seconds as ``2026-11-20 20:58`` (UTC)."""
    return _to_datetime(seconds).strftime("%Y-%m-%d %H:%M")


def format_day(seconds: float) -> str:
    """Return Unix seconds as ``2026-11-20`` (UTC)."""
    return _to_datetime(seconds).strftime("%Y-%m-%d")


def _to_datetime(seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, OSError, ValueError):
        return datetime.fromtimestamp(0, timezone.utc)


SERVER_SETTINGS = ("url", "header", "ca-file", "insecure", "server-env")


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a server is reached."""
    from pytest_ollama_perf.config import OPTIONS

    group = parser.add_argument_group("the server")
    for option in OPTIONS:
        if option.name in SERVER_SETTINGS:
            shape: dict[str, Any] = {"metavar": option.metavar} if option.metavar else {}
            shape["action"] = {"value": "store", "list": "append", "flag": "store_true"}[option.kind]
            group.add_argument(f"--{option.name}", dest=option.key, default=None, help=option.help, **shape)


class CommandLineSource:
    """A command line as a source of settings."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options

    def read_command_line(self, option: Option) -> object:
        """Return the value of a server option; other options are not on the command line."""
        return getattr(self._options, option.key) if option.name in SERVER_SETTINGS else None

    def read_ini(self, option: Option) -> object:
        """Return None: commands do not read ini files."""
        return None


def add_load_options(group: argparse._ArgumentGroup, names: Iterable[str]) -> None:
    """Add marker arguments as options: ``num_predict`` as ``--num-predict``."""
    from pytest_ollama_perf.config.load_options import LOAD_OPTIONS

    for name in names:
        option = LOAD_OPTIONS[name]
        group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"load_{name}",
            metavar=option.type.metavar,
            help=option.plain_help.replace("%", "%%"),
        )


def read_load_options(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Return the marker arguments that were given on the command line."""
    given = {name: getattr(options, f"load_{name}") for name in names}
    return {name: _parse_load_option(name, text) for name, text in given.items() if text is not None}


def _parse_load_option(name: str, text: str) -> object:
    """Return a value as the marker takes it: parsed as JSON if possible, else the text."""
    if name == "prompt":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
