"""A table of every number, one a line, for spreadsheets and data frames (RFC 4180, UTF-8, header line, ``\\r\\n``)."""

from __future__ import annotations

import csv
import io
from datetime import datetime, timezone

from pytest_ollama_perf.report.json_report import Document
from pytest_ollama_perf.report.numbers import Number, numbers

COLUMNS = (
    *("test", "verdict", "load", "run_id", "started_at", "model", "metric", "stat", "unit", "better"),
    *("value", "low", "high", "n", "failed"),
)


def table(document: Document) -> bytes:
    """Return the table. A failed request's time reads ``inf``; what does not exist is empty."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for number in numbers(document):
        writer.writerow([_cell(number, column) for column in COLUMNS])
    return file.getvalue().encode("utf-8", "replace")


def _cell(number: Number, column: str) -> object:
    value = getattr(number, column)
    if column == "started_at":
        return datetime.fromtimestamp(number.started_at, timezone.utc).isoformat(timespec="seconds")
    return _harmless(value) if isinstance(value, str) else value


def _harmless(text: str) -> str:
    """Return ``text`` so that no spreadsheet takes it for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
