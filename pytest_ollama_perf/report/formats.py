"""Every type of report and the function that writes it: one document in, the bytes of one file out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from pytest_ollama_perf.harness.results import TestResult
from pytest_ollama_perf.report.document import Document, ReportMeta, build_document, encode_document, parse_document

Writer = Callable[[Document], bytes]

_WRITER_LOCATIONS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "json": ("document", "encode_document"),
        "html": ("html", "render_html"),
        "markdown": ("markdown", "format_comment"),
        "openmetrics": ("exports", "export_openmetrics"),
        "csv": ("exports", "export_csv"),
        "benchstat": ("exports", "export_benchstat"),
        "bencher": ("exports", "export_bencher"),
        "github-bigger": ("exports", "export_bigger_is_better"),
        "github-smaller": ("exports", "export_smaller_is_better"),
    }
)
"""Module of this folder and function, imported when first asked for: most sessions want one type or none."""


def load_writer(kind: str) -> Writer:
    """Return the function that writes reports of one of ``spec.TYPES``.

    Raises ``MissingExtra`` where it needs a package that is not installed.
    """
    module, function = _WRITER_LOCATIONS[kind]
    found: Writer = getattr(importlib.import_module(f"pytest_ollama_perf.report.{module}"), function)
    return found


class SessionReports:
    """The reports of one session, all made from one document as it reads in the JSON report."""

    def __init__(self, results: Sequence[TestResult], meta: ReportMeta) -> None:
        self._json = encode_document(build_document(results, meta=meta))
        self._document: Document | None = None

    @property
    def document(self) -> Document:
        """The document as a reader of the JSON report gets it."""
        if self._document is None:
            self._document = parse_document(self._json, "the session's report")
        return self._document

    def render(self, kind: str) -> bytes:
        """Return the report of one type."""
        return self._json if kind == "json" else load_writer(kind)(self.document)
