"""``pytest-ollama-perf show``: one stored run, whole."""

from __future__ import annotations

import argparse

from pytest_ollama_perf.cli.place import add_place


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``show`` to the command line."""
    parser = subparsers.add_parser(
        "show", help="everything about one stored run", description="Show one run: its load, its server, its numbers."
    )
    parser.add_argument("wanted", metavar="RUN", help="the id of a run (or its beginning) or the file of a record")
    add_place(parser)
    parser.set_defaults(run=main)


def main(options: argparse.Namespace) -> int:
    """Show the run. What that needs is imported here: other commands start without it."""
    from pytest_ollama_perf.cli import showing

    return showing.run(options)
