"""``pytest-ollama-perf prune``: delete old runs."""

from __future__ import annotations

import argparse
import math
import time

from pytest_ollama_perf.cli.common import add_store_options, build_text, find_test, open_console, print_json
from pytest_ollama_perf.core.errors import ConfigError
from pytest_ollama_perf.metrics.format import format_count
from pytest_ollama_perf.store import open_store

EPILOG = """\
A baseline has the newest 20 comparable runs, and trend compares them with the first 20 of the epoch. Keep at least 20
builds unless the first runs of an epoch may be forgotten.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the description and the arguments of ``prune``."""
    parser.description = "Delete the old runs of all tests or of one, saved and regressed ones alike."
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("test", nargs="?", metavar="TEST", help="a node id, or the end of one; default: every test")
    limits = parser.add_mutually_exclusive_group(required=True)
    limits.add_argument("--keep", type=int, metavar="N", help="keep the newest N builds of every load")
    limits.add_argument("--days", type=float, metavar="N", help="keep the runs of the last N days")
    parser.add_argument("--dry-run", action="store_true", help="count the runs without deleting them")
    add_store_options(parser)
    parser.set_defaults(run=main)


def main(options: argparse.Namespace) -> int:
    """Delete runs and print how many of each test."""
    if options.keep is not None and options.keep < 1:
        raise ConfigError(f"--keep {options.keep}: expected 1 or more")
    if options.days is not None and not 0 < options.days < math.inf:
        raise ConfigError(f"--days {options.days}: expected a number of days above 0")
    before = None if options.days is None else time.time() - 86_400 * options.days
    store = open_store(options.store)
    tests = store.list_tests() if options.test is None else (find_test(store, options.test),)
    counts = {test: store.prune(test, builds=options.keep, before=before, dry_run=options.dry_run) for test in tests}
    store.close()
    if options.json:
        print_json(counts)
        return 0
    out = open_console()
    verb = "would be deleted" if options.dry_run else "deleted"
    for test, count in counts.items():
        if count:
            out.print(build_text(f"{test}: {format_count(count, 'run')} {verb}"))
    out.print(build_text(f"{format_count(sum(counts.values()), 'run')} {verb}"))
    return 0
