"""Reading a JSON report and writing it as another type."""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.report.json_report import read, write
from pytest_ollama_perf.report.writers import writer
from pytest_ollama_perf.text import inert

STANDARD = "-"


def run(kind: str, result: str, output: str) -> int:
    """Write the report at ``result`` as ``kind`` to ``output``; ``-`` stands for standard input and output."""
    made = writer(kind)(read(_content(result), _name(result)))
    if output == STANDARD:
        sys.stdout.buffer.write(made)
        return 0
    write(Path(output), made, option="--output")
    print(f"{kind} report: {inert(output)}")
    return 0


def _name(result: str) -> str:
    return "standard input" if result == STANDARD else inert(result)


def _content(result: str) -> bytes:
    if result == STANDARD:
        return sys.stdin.buffer.read()
    try:
        return Path(result).read_bytes()
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise ConfigError(f"{_name(result)}: {why}; give a file of --ollama-report json:PATH") from error
