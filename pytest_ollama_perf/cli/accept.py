"""``pytest-ollama-perf accept``: what a test does now is the new normal."""

from __future__ import annotations

import argparse
import getpass
import time

from pytest_ollama_perf.cli.common import add_store_options, find_test
from pytest_ollama_perf.core.errors import ConfigError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the description and the arguments of ``accept``."""
    parser.description = (
        "Start a new epoch of a test: its newest regressed runs become the baseline; older runs no longer "
        "count. They stay in the history, as does the reason."
    )
    parser.add_argument("test", metavar="TEST", help="a node id, or the end of one, as in test_chat_speed")
    parser.add_argument("--why", required=True, metavar="REASON", help="kept in the history")
    parser.add_argument("--who", default=None, metavar="NAME", help="kept in the history (default: the user's name)")
    add_store_options(parser)
    parser.set_defaults(run=main)


def main(options: argparse.Namespace) -> int:
    """Accept, and say what that means for the next build."""
    from pytest_ollama_perf.cli.common import build_text, open_console, print_json, warn
    from pytest_ollama_perf.store import open_store

    if not options.why.strip():
        raise ConfigError("--why is empty: say why this is the new normal, for whoever reads the history")
    store = open_store(options.store)
    test = find_test(store, options.test)
    warn(store.read_pending(test).damaged)
    who = _get_user_name() if options.who is None else options.who
    accepted = store.accept(test, why=options.why, who=who, at=time.time())
    if options.json:
        print_json(accepted)
    else:
        open_console().print(build_text(f"{test}: {_describe_new_epoch(len(accepted.runs))}"))
    store.close()
    return 0


def _describe_new_epoch(runs: int) -> str:
    if not runs:
        return "a new epoch; no regressed run was waiting, so the next saved run is its first"
    return f"a new epoch, which starts with the {runs} run{'' if runs == 1 else 's'} of the newest regressed build"


def _get_user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        return ""
