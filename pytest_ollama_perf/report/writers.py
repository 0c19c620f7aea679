"""Every type of report and the function that writes it: one document in, the bytes of one file out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from pytest_ollama_perf.report.json_report import Document, Meta, encode, gathered, read
from pytest_ollama_perf.report.result import TestResult

Writer = Callable[[Document], bytes]

_PLACES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "json": ("json_report", "encode"),
        "html": ("page", "html"),
        "markdown": ("markdown", "comment"),
        "openmetrics": ("export.openmetrics", "text"),
        "csv": ("export.csv", "table"),
        "benchstat": ("export.benchstat", "text"),
        "bencher": ("export.bencher", "metrics"),
        "github-bigger": ("export.github_benchmark", "bigger"),
        "github-smaller": ("export.github_benchmark", "smaller"),
    }
)
"""Module of this folder and function, imported when first asked for: most sessions want one type or none."""


def writer(kind: str) -> Writer:
    """Return the function that writes reports of one of ``spec.TYPES``.

    Raises ``MissingExtra`` where it needs a package that is not installed.
    """
    module, function = _PLACES[kind]
    found: Writer = getattr(importlib.import_module(f"pytest_ollama_perf.report.{module}"), function)
    return found


class Reports:
    """The reports of one session, all made from one document as it reads in the JSON report."""

    def __init__(self, results: Sequence[TestResult], meta: Meta) -> None:
        self._json = encode(gathered(results, meta=meta))
        self._document: Document | None = None

    @property
    def document(self) -> Document:
        """The document as a reader of the JSON report gets it."""
        if self._document is None:
            self._document = read(self._json, "the session's report")
        return self._document

    def written(self, kind: str) -> bytes:
        """Return the report of one type."""
        return self._json if kind == "json" else writer(kind)(self.document)
