"""Saying what was found, to people and to programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import msgspec

from pytest_ollama_perf.config.report_targets import get_added_writer
from pytest_ollama_perf.core import OllamaPerfError
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.verdict import ProblemCode
from pytest_ollama_perf.harness.evaluation import TestResult
from pytest_ollama_perf.report.document import (
    Document,
    ProblemEntry,
    ReportMeta,
    TestEntry,
    build_document,
    encode_document,
    parse_document,
)

Writer = Callable[[Document], bytes]


def _write_html(document: Document) -> bytes:
    from pytest_ollama_perf.report.html import render_html

    return render_html(document)


def _write_markdown(document: Document) -> bytes:
    from pytest_ollama_perf.report.markdown import format_comment

    return format_comment(document)


def _write_openmetrics(document: Document) -> bytes:
    from pytest_ollama_perf.report.exports import export_openmetrics

    return export_openmetrics(document)


def _write_csv(document: Document) -> bytes:
    from pytest_ollama_perf.report.exports import export_csv

    return export_csv(document)


def _write_benchstat(document: Document) -> bytes:
    from pytest_ollama_perf.report.exports import export_benchstat

    return export_benchstat(document)


def _write_bencher(document: Document) -> bytes:
    from pytest_ollama_perf.report.exports import export_bencher

    return export_bencher(document)


def _write_bigger_is_better(document: Document) -> bytes:
    from pytest_ollama_perf.report.exports import export_bigger_is_better

    return export_bigger_is_better(document)


def _write_smaller_is_better(document: Document) -> bytes:
    from pytest_ollama_perf.report.exports import export_smaller_is_better

    return export_smaller_is_better(document)


REPORT_WRITERS: Mapping[str, Writer] = MappingProxyType(
    {
        "json": encode_document,
        "html": _write_html,
        "markdown": _write_markdown,
        "openmetrics": _write_openmetrics,
        "csv": _write_csv,
        "benchstat": _write_benchstat,
        "bencher": _write_bencher,
        "github-bigger": _write_bigger_is_better,
        "github-smaller": _write_smaller_is_better,
    }
)
"""The function for each report type. Each imports its module when it is called: most sessions want one type or none."""


class SessionReports:
    """The reports of one session, all made from one document as it reads in the JSON report."""

    def __init__(self, results: Sequence[TestResult], meta: ReportMeta) -> None:
        self._json = render_guarded(encode_document, build_document(results, meta=meta))
        self._document: Document | None = None

    @property
    def document(self) -> Document:
        """The document as a reader of the JSON report gets it."""
        if self._document is None:
            self._document = parse_document(self._json, "the session's report")
        return self._document

    def render(self, kind: str) -> bytes:
        """Return the report of one type; ``OllamaPerfError`` if it cannot be built."""
        return self._json if kind == "json" else self.render_with(get_added_writer(kind) or REPORT_WRITERS[kind])

    def render_with(self, writer: Writer) -> bytes:
        """Return what ``writer`` makes of the document; ``OllamaPerfError`` if it cannot be built."""
        return render_guarded(writer, self.document)


def render_guarded(writer: Writer, document: Document) -> bytes:
    """Return what ``writer`` makes of ``document``. A test that it cannot render is reduced to its verdict.

    Raises:
        OllamaPerfError: not even the verdicts can be written.
    """
    try:
        return writer(document)
    except OllamaPerfError:
        raise
    except Exception:  # a fault in the text of one test must not take the reports of the others
        tests = tuple(_reduce_if_faulty(writer, document, test) for test in document.tests)
    try:
        return writer(msgspec.structs.replace(document, tests=tests))
    except Exception as error:
        raise OllamaPerfError(f"the report cannot be built: {_describe_error(error)}") from error


def _reduce_if_faulty(writer: Writer, document: Document, test: TestEntry) -> TestEntry:
    try:
        writer(msgspec.structs.replace(document, tests=(test,)))
    except Exception as error:
        return reduce_entry(test, error)
    return test


def reduce_entry(test: TestEntry, error: Exception) -> TestEntry:
    """Return the entry of ``test`` with its verdict only, and a problem that says why."""
    code = ProblemCode.REPORT_FAILED
    problem = ProblemEntry(code=code.value, name=code.label, text=_describe_error(error), invalidates=False)
    return TestEntry(
        test=test.test,
        verdict=test.verdict,
        reason=test.reason,
        rows=(),
        problems=(problem,),
        hints=(),
        changed=(),
        accept="",
        stored=None,
        loads=(),
    )


def _describe_error(error: Exception) -> str:
    return sanitize(f"{type(error).__name__}: {error}", 200)
