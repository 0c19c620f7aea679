"""``pytest-ollama-perf history``: what is stored, of every test or of one."""

from __future__ import annotations

import argparse

from pytest_ollama_perf.cli.place import add_place


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``history`` to the command line."""
    parser = subparsers.add_parser(
        "history",
        help="the stored runs of every test, or of one",
        description="Show the stored runs: a line for every test or, of one test, a line for every run. Times are UTC.",
    )
    parser.add_argument("test", nargs="?", metavar="TEST", help="a node id, or the end of one, as in test_chat_speed")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="how many runs, the newest (default 20)")
    add_place(parser)
    parser.set_defaults(run=main)


def main(options: argparse.Namespace) -> int:
    """Show what is stored. What that needs is imported here: other commands start without it."""
    from pytest_ollama_perf.cli import listing

    return listing.run(options)
