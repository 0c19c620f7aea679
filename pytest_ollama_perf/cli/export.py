"""``pytest-ollama-perf export``: the JSON report of a session in the format of another tool."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.report import REPORT_WRITERS
from pytest_ollama_perf.report.document import parse_document, write_report


def configure_export(parser: argparse.ArgumentParser) -> None:
    """Add the description and the arguments of ``export``."""
    from pytest_ollama_perf.config.report_targets import REPORT_TYPES

    kinds = [kind for kind in REPORT_TYPES if kind != "json"]
    parser.description = "Write the JSON report of a session (--ollama-report json:PATH) in the format of another tool."
    parser.add_argument("format", metavar="FORMAT", choices=kinds, help=", ".join(kinds))
    parser.add_argument("result", metavar="RESULT.json", help="the JSON report; - reads it from standard input")
    parser.add_argument("-o", "--output", default="-", metavar="FILE", help="default: standard output")
    parser.set_defaults(run=run_export)


def run_export(options: argparse.Namespace) -> int:
    """Write the file. What that needs is imported here: other commands start without it."""
    return export_report(options.format, options.result, options.output)


STANDARD_STREAM = "-"


def export_report(kind: str, result: str, output: str) -> int:
    """Write the report at ``result`` as ``kind`` to ``output``; ``-`` is standard input and output."""
    made = REPORT_WRITERS[kind](parse_document(_read_input(result), _format_input_name(result)))
    if output == STANDARD_STREAM:
        sys.stdout.buffer.write(made)
        return 0
    write_report(Path(output), made, option="--output")
    print(f"{kind} report: {sanitize(output)}")
    return 0


def _format_input_name(result: str) -> str:
    return "standard input" if result == STANDARD_STREAM else sanitize(result)


def _read_input(result: str) -> bytes:
    if result == STANDARD_STREAM:
        return sys.stdin.buffer.read()
    try:
        return Path(result).read_bytes()
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise ConfigError(f"{_format_input_name(result)}: {why}; give a file of --ollama-report json:PATH") from error


def configure_report(parser: argparse.ArgumentParser) -> None:
    """Add the description and the arguments of ``report``."""
    parser.description = "Make the HTML page of a session from its JSON report (--ollama-report json:PATH)."
    parser.add_argument("result", metavar="RESULT.json", help="the JSON report; - reads it from standard input")
    parser.add_argument("-o", "--output", default="ollama-perf.html", metavar="FILE", help="default: ollama-perf.html")
    parser.set_defaults(run=run_report)


def run_report(options: argparse.Namespace) -> int:
    """Write the page. What that needs is imported here: other commands start without it."""
    pass

    return export_report("html", options.result, options.output)
