"""``pytest-ollama-perf compare``: two runs, or two stores, without pytest."""

from __future__ import annotations

import argparse

from pytest_ollama_perf.cli.place import add_place
from pytest_ollama_perf.cli.rule import add_rule

EPILOG = """\
A and B are two runs (ids, beginnings of ids, or files) or two stores (folders or database URLs). Of stores, the newest
session of every test in B (up to three runs) is judged against the current epoch of that test in A.
Model, GPU and settings may differ: what changed is named. Another load, or counters that mean something else, may not.

exit status: 0, 1 where a test regressed (with --strict also where one is unsure), 2 where something could not be
read or compared
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``compare`` to the command line."""
    parser = subparsers.add_parser(
        "compare",
        help="is B slower than A? two runs, or two stores",
        description="Judge B against A: two runs, or two stores.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", metavar="A", help="the baseline")
    parser.add_argument("after", metavar="B", help="what is judged")
    add_rule(parser, than="A")
    parser.add_argument("--strict", action="store_true", help="exit with 1 also where nothing can be told (unsure)")
    add_place(parser)
    parser.set_defaults(run=main)


def main(options: argparse.Namespace) -> int:
    """Compare. What that needs is imported here: other commands start without scipy."""
    from pytest_ollama_perf.cli import comparing

    return comparing.run(options)
