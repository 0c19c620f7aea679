"""What GitHub Actions shows beside a run: an annotation for every failure at the line of its test."""

from __future__ import annotations

from pytest_ollama_perf.report.layout import clean
from pytest_ollama_perf.report.result import TestResult


def annotation(result: TestResult, file: str, line: int | None) -> str:
    """Return the workflow command that shows ``result`` as an error at ``file``, relative to the repository, and
    ``line``, counted from 1."""
    place = f"file={_property(file)}," + (f"line={line}," if line is not None else "")
    word = result.verdict.word.value
    message = "\n".join([result.verdict.reason, *(f"hint: {hint}" for hint in result.verdict.hints)])
    return f"::error {place}title={_property(f'{word}: {clean(result.test, 200)}')}::{_message(message)}"


def _message(text: str) -> str:
    """Return ``text`` as the data of a workflow command, which ends at the end of its line."""
    cleaned = "\n".join(clean(line) for line in text.splitlines())
    return cleaned.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(clean(text, 400)).replace(":", "%3A").replace(",", "%2C")
