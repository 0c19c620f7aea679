"""The command ``pytest-ollama-perf``: one module per subcommand, with ``configure(parser)`` and ``main(options)``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import NamedTuple, Protocol

from pytest_ollama_perf.core.errors import OllamaPerfError


class CommandModule(Protocol):
    """The module of a subcommand."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add description and arguments, and set ``run`` to a function that returns an exit status."""


def _load_simulate() -> CommandModule:
    from pytest_ollama_perf.cli import simulate

    return simulate


def _load_init() -> CommandModule:
    from pytest_ollama_perf.cli import init

    return init


def _load_history() -> CommandModule:
    from pytest_ollama_perf.cli import history

    return history


def _load_show() -> CommandModule:
    from pytest_ollama_perf.cli import show

    return show


def _load_compare() -> CommandModule:
    from pytest_ollama_perf.cli import compare

    return compare


def _load_trend() -> CommandModule:
    from pytest_ollama_perf.cli import trend

    return trend


def _load_accept() -> CommandModule:
    from pytest_ollama_perf.cli import accept

    return accept


def _load_prune() -> CommandModule:
    from pytest_ollama_perf.cli import prune

    return prune


def _load_repair() -> CommandModule:
    from pytest_ollama_perf.cli import repair

    return repair


def _load_judge() -> CommandModule:
    from pytest_ollama_perf.cli import judge

    return judge


def _load_report() -> CommandModule:
    from pytest_ollama_perf.cli import report

    return report


def _load_export() -> CommandModule:
    from pytest_ollama_perf.cli import export

    return export


def _load_doctor() -> CommandModule:
    from pytest_ollama_perf.cli import doctor

    return doctor


class Command(NamedTuple):
    """A subcommand: its line in ``--help``, and the function that imports its module."""

    help: str
    load: Callable[[], CommandModule]


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
            command.load().configure(parser)
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
