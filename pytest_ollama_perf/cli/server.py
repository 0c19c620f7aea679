"""Options that say which server a command talks to: settings of the plugin, here without ``--ollama-``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_ollama_perf.settings import Option

SETTINGS = ("url", "header", "ca-file", "insecure", "server-env")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add them to a command."""
    from pytest_ollama_perf.settings import OPTIONS

    group = parser.add_argument_group("the server")
    for option in OPTIONS:
        if option.name in SETTINGS:
            shape: dict[str, Any] = {"metavar": option.metavar} if option.metavar else {}
            shape["action"] = {"value": "store", "list": "append", "flag": "store_true"}[option.kind]
            group.add_argument(f"--{option.name}", dest=option.key, default=None, help=option.help, **shape)


class Given:
    """A command line as a source of settings."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options

    def command_line(self, option: Option) -> object:
        return getattr(self._options, option.key) if option.name in SETTINGS else None

    def ini(self, option: Option) -> object:
        return None
