"""The command ``pytest-ollama-perf``: each subcommand is a module of this folder with ``add_parser`` and ``main``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

from pytest_ollama_perf.core.errors import OllamaPerfError

COMMANDS = ("simulate", "init", "history", "show", "compare", "trend", "accept", "judge", "report", "export", "doctor")
"""Subcommand modules in the order of ``--help``; each has ``add_parser(subparsers)`` that sets ``run=`` to a
function taking the parsed arguments and returning an exit status."""


def build_parser() -> argparse.ArgumentParser:
    """Build the whole command line."""
    root = argparse.ArgumentParser(
        prog="pytest-ollama-perf", description="Performance tests for models served by Ollama."
    )
    root.add_argument("--version", action="version", version=f"%(prog)s {version('pytest-ollama-perf')}")
    subparsers = root.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"pytest_ollama_perf.cli.{name}").add_parser(subparsers)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; errors made by people are one line on stderr and exit status 2."""
    options = build_parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except OllamaPerfError as error:
        print(f"pytest-ollama-perf: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status
