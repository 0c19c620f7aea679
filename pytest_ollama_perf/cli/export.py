"""``pytest-ollama-perf export``: the JSON report of a session in the format of another tool."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``export`` to the command line."""
    from pytest_ollama_perf.report.spec import TYPES

    kinds = [kind for kind in TYPES if kind != "json"]
    parser = subparsers.add_parser(
        "export",
        help="a JSON report in the format of another tool",
        description="Write the JSON report of a session (--ollama-report json:PATH) in the format of another tool.",
    )
    parser.add_argument("format", metavar="FORMAT", choices=kinds, help=", ".join(kinds))
    parser.add_argument("result", metavar="RESULT.json", help="the JSON report; - reads it from standard input")
    parser.add_argument("-o", "--output", default="-", metavar="FILE", help="default: standard output")
    parser.set_defaults(run=main)


def main(options: argparse.Namespace) -> int:
    """Write the file. What that needs is imported here: other commands start without it."""
    from pytest_ollama_perf.cli import exporting

    return exporting.run(options.format, options.result, options.output)
