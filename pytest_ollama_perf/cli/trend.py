"""``pytest-ollama-perf trend``: slow drift that no single comparison sees."""

from __future__ import annotations

import argparse

from pytest_ollama_perf.cli.place import add_place


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``trend`` to the command line."""
    parser = subparsers.add_parser(
        "trend",
        help="slow drift that no single comparison sees",
        description="Hold the runs of the current epoch against its first 20 and warn where they have drifted away. "
        "A warning is no failure: the exit status stays 0.",
    )
    parser.add_argument("test", nargs="?", metavar="TEST", help="a node id, or the end of one; default: every test")
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="follow this metric (tps, ttft, latency, ttft.p95, ...); may be repeated; default: those that gate",
    )
    add_place(parser)
    parser.set_defaults(run=main)


def main(options: argparse.Namespace) -> int:
    """Follow the runs. What that needs is imported here: other commands start without scipy."""
    from pytest_ollama_perf.cli import drifting

    return drifting.run(options)
