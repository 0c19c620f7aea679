"""``pytest-ollama-perf judge``: the gate's verdict for run records, recorded or simulated, without a server."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_ollama_perf.cli.rule import add_rule

EPILOG = """\
A record is one JSON object, either a run as this package stores it or the minimal form
  {"test": "chat", "run": 7, "requests": [{"eval_tps": 84.1, "ttft_s": 0.18, "latency_s": 0.9}], "throughput_tps": 300}
where null, or a value that only some requests have, stands for a failed request. A folder holds such files (*.json, one
record or a list of them each). Runs count oldest first: by their time or, where every "run" is a number, by that,
else as they stand; the newest 20 stored runs are the history.

unsure with fewer than three candidate runs means: give me one more.

exit status: 0, 1 where a test regressed (not with --batch), 2 where something could not be read (the rest is judged)
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``judge`` to the command line."""
    parser = subparsers.add_parser(
        "judge",
        help="judge recorded runs against a history, without a server",
        description="Judge run records, recorded or simulated, without a server.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--history", metavar="DIR", type=Path, help="folder (or file) of stored runs")
    parser.add_argument(
        "--candidates", metavar="DIR", type=Path, help="folder (or file) of one to three new runs per test"
    )
    parser.add_argument(
        "--batch",
        metavar="FILE",
        help='judge JSON lines {"id", "history": [records], "candidates": [records]}; - reads standard input',
    )
    add_rule(parser, than="history")
    parser.add_argument(
        "--max-runs",
        type=int,
        metavar="N",
        help="how many candidate runs there can be (default 3); with 1 the first decides",
    )
    parser.add_argument("--json", action="store_true", help="print JSON; --batch always does")
    parser.set_defaults(run=main)


def main(options: argparse.Namespace) -> int:
    """Judge what the options name. What judging needs is imported here: other commands start without scipy."""
    from pytest_ollama_perf.cli import judging

    return judging.run(options)
