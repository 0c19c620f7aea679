"""``--ollama-report TYPE:PATH``: which report to write, and where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.words import did_you_mean

TYPES = ("json",)
"""Report types that can be written."""


@dataclass(frozen=True)
class ReportSpec:
    """One report to write."""

    type: str
    path: Path


def parse(text: str) -> ReportSpec:
    """Return what ``TYPE:PATH`` asks for.

    Raises ``ConfigError``, one line, where the type is unknown or either part is missing.
    """
    kind, colon, path = text.partition(":")
    if not colon or not kind or not path.strip():
        raise ConfigError(f"--ollama-report {text!r}: give TYPE:PATH, such as {TYPES[0]}:report.json; {_valid()}")
    if kind not in TYPES:
        raise ConfigError(
            f"--ollama-report {text!r}: unknown report type {kind!r}{did_you_mean(kind.lower(), TYPES)}; {_valid()}"
        )
    if not Path(path).name:
        raise ConfigError(f"--ollama-report {text!r}: {path!r} is a folder; give a file, such as {kind}:report.json")
    return ReportSpec(kind, Path(path))


def _valid() -> str:
    return f"valid types: {', '.join(TYPES)}"
