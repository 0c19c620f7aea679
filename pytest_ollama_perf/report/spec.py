"""``--ollama-report TYPE:PATH``: which report to write, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.words import did_you_mean

if TYPE_CHECKING:
    from pytest_ollama_perf.report.result import TestResult

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


def write_report(spec: ReportSpec, results: Sequence[TestResult], *, aborted: str = "") -> None:
    """Write the report of ``results`` that ``spec`` asks for, whole or not at all.

    ``aborted`` says why the session ended early. Raises ``ConfigError`` where the path cannot be written.
    """
    from pytest_ollama_perf.report import json_report

    json_report.write(spec.path, json_report.document(results, meta=json_report.Meta.of(results, aborted)))
