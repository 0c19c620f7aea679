"""``pytest-ollama-perf init``: a contract file written from measured values."""

from __future__ import annotations

import argparse

from pytest_ollama_perf.cli.server import add_settings

DESCRIPTION = """\
Measure a model at each concurrency, several times on a freshly loaded model, and
write a contract that pytest collects: limits and margins that this server keeps,
never tighter than its noise lets anybody tell.
"""
EPILOG = """\
exit status: 0 written, 1 a run was no valid measurement and nothing was written,
2 an option is wrong, the file exists, or the server or model is missing
"""
DEFAULT_RUNS = 3

WORDS = {
    "endpoint": ("NAME", str, "generate, chat or embed (default: generate)"),
    "requests": ("N", int, "requests a run (default: 20, or 5 for each client)"),
    "num_predict": ("N", int, "tokens of a response (default: 64)"),
    "num_ctx": ("N", int, "context length (default: 4096)"),
    "prompt_words": ("N", int, "words of a synthetic prompt (default: 32)"),
}
"""Words of a load that are options here; they are written into the contract."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``init`` to the command line."""
    parser = subparsers.add_parser(
        "init",
        help="write a contract file from measured values",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", metavar="NAME", help="the model (default: the only one the server has)")
    parser.add_argument(
        "--concurrency",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="requests at once; one load for each",
    )
    parser.add_argument(
        "--runs", type=int, default=DEFAULT_RUNS, metavar="N", help="runs of each load (default: %(default)s)"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write it (default: MODEL.ollama.toml)")
    parser.add_argument("--force", action="store_true", help="overwrite the file where it exists")
    group = parser.add_argument_group("the load")
    for word, (metavar, kind, text) in WORDS.items():
        group.add_argument(f"--{word.replace('_', '-')}", dest=f"word_{word}", type=kind, metavar=metavar, help=text)
    add_settings(parser)
    parser.set_defaults(run=main)


def main(options: argparse.Namespace) -> int:
    """Measure and write. What that needs is imported here: other commands start without it."""
    from pytest_ollama_perf.cli import contracting

    return contracting.run(options)
