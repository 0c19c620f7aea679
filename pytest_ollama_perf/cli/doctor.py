"""``pytest-ollama-perf doctor``: what this machine can measure, and its noise with nothing changed."""

from __future__ import annotations

import argparse

from pytest_ollama_perf.cli.server import add_settings

LEAST_SESSIONS = 3
DESCRIPTION = """\
Say what this machine can measure and how much its numbers differ with nothing
changed: an A/A campaign, what the gate can tell there, and margins worth setting.
"""
EPILOG = """\
First the client: how many chunks of text a second it can follow on one core, against a generator on this machine, and
how far off its clock is. Then the server: the same load again and again, each session on a freshly loaded model; what
differs between the sessions is noise, and no gate can tell less than that.

Ctrl-C ends it early and prints what is known by then.

exit status: 0 healthy, 1 something is wrong (the client cannot keep up, the model is partly on the CPU, a session
failed, too noisy to gate), 2 an option is wrong or the model is missing
"""

WORDS = {
    "concurrency": ("N", "requests at once (default: 1)"),
    "requests": ("N", "requests a session (default: 20, or 5 for each of --concurrency)"),
    "rate": ("R", "requests a second instead of --concurrency"),
    "duration": ("TIME", "how long a session is, instead of --requests"),
    "warmup": ("N", "requests before the clock starts (default: as many as at once)"),
    "endpoint": ("NAME", "generate, chat or embed (default: generate)"),
    "prompt": ("TEXT", "the prompt of every request (default: synthetic ones)"),
    "prompt_words": ("N", "words of a synthetic prompt (default: 32)"),
    "num_predict": ("N", "tokens of a response (default: 64)"),
    "num_ctx": ("N", "context length (default: 4096)"),
    "think": ("WORD", "true, false, low, medium, high or max (default: false)"),
    "options": ("JSON", "more options of Ollama, for example '{\"num_thread\": 4}'"),
    "timeout": ("SECONDS", "how long a request may take"),
}
"""Words of the marker that are options here."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``doctor`` to the command line."""
    parser = subparsers.add_parser(
        "doctor",
        help="what this machine can measure, and its own noise",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", metavar="NAME", help="the model (default: the only one the server has)")
    parser.add_argument(
        "--sessions",
        type=int,
        default=6,
        metavar="N",
        help=f"sessions, {LEAST_SESSIONS} or more (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    _add_words(parser)
    add_settings(parser)
    parser.set_defaults(run=main)


def _add_words(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the load of a session", "words of the marker")
    for word, (metavar, text) in WORDS.items():
        group.add_argument(f"--{word.replace('_', '-')}", dest=f"word_{word}", metavar=metavar, help=text)


def main(options: argparse.Namespace) -> int:
    """Examine. What that needs is imported here: other commands start without it."""
    from pytest_ollama_perf.cli import doctoring

    return doctoring.run(options)
