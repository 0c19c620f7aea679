"""The command ``pytest-ollama-perf``: subcommands, each imported when it is named."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import NamedTuple

from pytest_ollama_perf.core import OllamaPerfError

Configure = Callable[[argparse.ArgumentParser], None]
"""Adds the description and arguments of a subcommand, and sets ``run`` to a function that returns an exit status."""


def _load_simulate() -> Configure:
    from pytest_ollama_perf.cli.simulate import configure

    return configure


def _load_init() -> Configure:
    from pytest_ollama_perf.cli.init import configure

    return configure


def _load_history() -> Configure:
    from pytest_ollama_perf.cli.history import configure_history

    return configure_history


def _load_show() -> Configure:
    from pytest_ollama_perf.cli.history import configure_show

    return configure_show


def _load_compare() -> Configure:
    from pytest_ollama_perf.cli.compare import configure

    return configure


def _load_trend() -> Configure:
    from pytest_ollama_perf.cli.trend import configure

    return configure


def _load_accept() -> Configure:
    from pytest_ollama_perf.cli.maintenance import configure_accept

    return configure_accept


def _load_prune() -> Configure:
    from pytest_ollama_perf.cli.maintenance import configure_prune

    return configure_prune


def _load_repair() -> Configure:
    from pytest_ollama_perf.cli.maintenance import configure_repair

    return configure_repair


def _load_judge() -> Configure:
    from pytest_ollama_perf.cli.judge import configure

    return configure


def _load_report() -> Configure:
    from pytest_ollama_perf.cli.export import configure_report

    return configure_report


def _load_export() -> Configure:
    from pytest_ollama_perf.cli.export import configure_export

    return configure_export


def _load_doctor() -> Configure:
    from pytest_ollama_perf.cli.doctor import configure

    return configure


class Command(NamedTuple):
    """A subcommand: its line in ``--help``, and the function that imports its module."""

    help: str
    load: Callable[[], Configure]


COMMANDS = {
    "simulate": Command("serve a simulated Ollama", _load_simulate),
    "init": Command("write a contract file from measured values", _load_init),
    "history": Command("list the stored runs of all tests or of one", _load_history),
    "show": Command("show all details of a stored run", _load_show),
    "compare": Command("compare two runs or two stores", _load_compare),
    "trend": Command("detect slow drift", _load_trend),
    "accept": Command("accept a regression as the new baseline", _load_accept),
    "prune": Command("delete old runs", _load_prune),
    "repair": Command("find unreadable records and move them out of the history", _load_repair),
    "judge": Command("judge recorded runs against a history, without a server", _load_judge),
    "report": Command("create an HTML page from a JSON report", _load_report),
    "export": Command("convert a JSON report to the format of another tool", _load_export),
    "doctor": Command("measure what this machine can measure, and its noise", _load_doctor),
}
"""Every subcommand in the order of ``--help``."""


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """Build the command line with all subcommands, or with the arguments of ``only`` one of them.

    A subcommand imports what it needs, so ``--help`` and the other subcommands do not wait for it.
    """
    root = argparse.ArgumentParser(
        prog="pytest-ollama-perf", description="Performance tests for models served by Ollama."
    )
    root.add_argument("--version", action="version", version=f"%(prog)s {version('pytest-ollama-perf')}")
    subparsers = root.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        parser = subparsers.add_parser(name, help=command.help)
        if only in {None, name}:
            command.load()(parser)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand. A usage error is one line on stderr and exit status 2."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    named = next((text for text in given if not text.startswith("-")), "")
    try:
        options = build_parser(only=named).parse_args(given)
        status: int = options.run(options)
        sys.stdout.flush()
    except OllamaPerfError as error:
        print(f"pytest-ollama-perf: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        return _report_output_error(error)
    return status


def _report_output_error(error: OSError) -> int:
    """Say that standard output could not be written, and keep Python from trying again when it exits."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(error, BrokenPipeError):
        return 141
    where = f"{error.filename}: " if error.filename else "output: "
    print(f"pytest-ollama-perf: {where}{error.strerror or error}", file=sys.stderr)
    return 2
