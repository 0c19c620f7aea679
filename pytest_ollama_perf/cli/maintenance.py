"""``pytest-ollama-perf accept``: what a test does now is the new normal."""

from __future__ import annotations

import argparse
import getpass
import math
import time
from collections.abc import Sequence

from pytest_ollama_perf.cli.common import add_store_options, build_text, find_test, open_console, print_json
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.metrics import format_count
from pytest_ollama_perf.store import open_store
from pytest_ollama_perf.store.entries import Damage


def configure_accept(parser: argparse.ArgumentParser) -> None:
    """Add the description and the arguments of ``accept``."""
    parser.description = (
        "Start a new epoch of a test: its newest regressed runs become the baseline; older runs no longer "
        "count. They stay in the history, as does the reason."
    )
    parser.add_argument("test", metavar="TEST", help="a node id, or the end of one, as in test_chat_speed")
    parser.add_argument("--why", required=True, metavar="REASON", help="kept in the history")
    parser.add_argument("--who", default=None, metavar="NAME", help="kept in the history (default: the user's name)")
    add_store_options(parser)
    parser.set_defaults(run=run_accept)


def run_accept(options: argparse.Namespace) -> int:
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


PRUNE_EPILOG = """\
A baseline has the newest 20 comparable runs, and trend compares them with the first 20 of the epoch. Keep at least 20
builds unless the first runs of an epoch may be forgotten.
"""


def configure_prune(parser: argparse.ArgumentParser) -> None:
    """Add the description and the arguments of ``prune``."""
    parser.description = "Delete the old runs of all tests or of one, saved and regressed ones alike."
    parser.epilog = PRUNE_EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("test", nargs="?", metavar="TEST", help="a node id, or the end of one; default: every test")
    limits = parser.add_mutually_exclusive_group(required=True)
    limits.add_argument("--keep", type=int, metavar="N", help="keep the newest N builds of every load")
    limits.add_argument("--days", type=float, metavar="N", help="keep the runs of the last N days")
    parser.add_argument("--dry-run", action="store_true", help="count the runs without deleting them")
    add_store_options(parser)
    parser.set_defaults(run=run_prune)


def run_prune(options: argparse.Namespace) -> int:
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


REPAIR_EPILOG = """\
Unreadable runs are moved, not deleted. An unreadable acceptance is replaced by a new one of the same time, so that runs
from before it stay out of the baseline. Records of a newer version are left as they are: upgrade to read them.

exit status: 0, 2 if the history still has unreadable records
"""


def configure_repair(parser: argparse.ArgumentParser) -> None:
    """Add the description and the arguments of ``repair``."""
    parser.description = "Check every record of the history and move unreadable ones out of it."
    parser.epilog = REPAIR_EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--dry-run", action="store_true", help="list unreadable records without changing anything")
    add_store_options(parser)
    parser.set_defaults(run=run_repair)


def run_repair(options: argparse.Namespace) -> int:
    """Check the store; return 2 if something unreadable is left."""
    store = open_store(options.store)
    found = store.find_damage(repair=not options.dry_run)
    store.close()
    if options.json:
        print_json([damage._asdict() for damage in found])
    else:
        _print_damage(found, dry_run=options.dry_run)
    return 2 if any(not damage.is_repaired for damage in found) else 0


def _print_damage(found: Sequence[Damage], *, dry_run: bool) -> None:
    out = open_console()
    for damage in found:
        out.print(build_text(damage.test, "bold"))
        out.print(build_text(f"  {damage.text}"))
        if not dry_run:
            out.print(build_text(f"  {damage.action}"))
    repaired = sum(damage.is_repaired for damage in found)
    left = len(found) - repaired
    texts = [format_count(left, "unreadable record")] if left or not found else []
    texts += [f"{repaired} repaired"] if repaired else []
    out.print(build_text(", ".join(texts)))
