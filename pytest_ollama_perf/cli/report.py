"""``pytest-ollama-perf report``: the HTML page of a session, made from its JSON report."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the description and the arguments of ``report``."""
    parser.description = "Make the HTML page of a session from its JSON report (--ollama-report json:PATH)."
    parser.add_argument("result", metavar="RESULT.json", help="the JSON report; - reads it from standard input")
    parser.add_argument("-o", "--output", default="ollama-perf.html", metavar="FILE", help="default: ollama-perf.html")
    parser.set_defaults(run=main)


def main(options: argparse.Namespace) -> int:
    """Write the page. What that needs is imported here: other commands start without it."""
    from pytest_ollama_perf.cli import export

    return export.export_report("html", options.result, options.output)
