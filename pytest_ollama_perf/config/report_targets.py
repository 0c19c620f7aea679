"""``--ollama-report TYPE:PATH``: which report to write, and where."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.text import suggest_match

_REPORT_TYPES = {
    "json": "every sample and verdict; its schema is published",
    "html": "one page that needs no network (extra `html`)",
    "markdown": "for pull requests, at most 60 kB",
    "openmetrics": "for Prometheus, and GitLab's metrics report",
    "csv": "one row per sample",
    "benchstat": "the text format of Go benchmarks, which benchstat reads",
    "bencher": "Bencher Metric Format",
    "github-bigger": "`customBiggerIsBetter` of github-action-benchmark",
    "github-smaller": "`customSmallerIsBetter` of github-action-benchmark",
}
_added_writers: dict[str, Callable[[Any], bytes]] = {}

REPORT_TYPES: Mapping[str, str] = MappingProxyType(_REPORT_TYPES)
"""Every type of report, with its description. github-action-benchmark takes one direction per file, hence two types."""


_REQUIRED_EXTRAS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {"html": ("html", ("jinja2", "vl_convert"))}
)
"""The extra that a type needs, and the packages by which one sees whether it is installed."""


def add_report_type(name: str, writer: Callable[[Any], bytes]) -> None:
    """Add a type of report; ``writer`` turns the report document into the bytes of a file.

    Raises:
        ConfigError: the name is in use, or cannot be written before the colon of ``TYPE:PATH``.
    """
    if name in _REPORT_TYPES or not re.fullmatch("[a-z][a-z0-9-]*", name):
        reason = "already exists" if name in _REPORT_TYPES else "is no name: expected lower case letters and '-'"
        raise ConfigError(f"cannot add the report format {name!r}: it {reason}")
    _REPORT_TYPES[name] = "added by another plugin"
    _added_writers[name] = writer


def remove_report_type(name: str) -> None:
    """Remove a type of report that was added."""
    if _added_writers.pop(name, None) is not None:
        del _REPORT_TYPES[name]


def get_added_writer(name: str) -> Callable[[Any], bytes] | None:
    """Return the function that writes reports of an added type; ``None`` for the other types."""
    return _added_writers.get(name)


class ReportTarget(NamedTuple):
    """One report to write."""

    type: str
    path: Path


def parse_report_target(text: str) -> ReportTarget:
    """Return what ``TYPE:PATH`` asks for.

    Raises ``ConfigError``, one line, where the type is unknown, needs what is not installed, or either part is missing.
    """
    kind, colon, path = text.partition(":")
    if not colon or not kind or not path.strip():
        raise ConfigError(f"--ollama-report {text!r}: give TYPE:PATH, such as json:report.json; {_list_valid_types()}")
    if kind not in REPORT_TYPES:
        raise ConfigError(
            f"--ollama-report {text!r}: unknown report type {kind!r}{suggest_match(kind.lower(), REPORT_TYPES)}; "
            f"{_list_valid_types()}"
        )
    if not Path(path).name:
        raise ConfigError(f"--ollama-report {text!r}: {path!r} is a folder; give a file, such as {kind}:report.json")
    if lacking := explain_missing_extra(kind):
        raise ConfigError(f"--ollama-report {text!r}: {lacking}")
    return ReportTarget(kind, Path(path))


def explain_missing_extra(kind: str) -> str:
    """Return how to install what reports of this type need; nothing if it is installed. Imports nothing."""
    extra, packages = _REQUIRED_EXTRAS.get(kind, ("", ()))
    lacking = [package for package in packages if find_spec(package) is None]
    return f"the {kind} report needs an extra: pip install 'pytest-ollama-perf[{extra}]'" if lacking else ""


def _list_valid_types() -> str:
    return f"valid types: {', '.join(REPORT_TYPES)}"
