"""``pytest-ollama-perf repair``: find unreadable records and move them out of the history."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pytest_ollama_perf.cli.common import add_store_options, build_text, open_console, print_json
from pytest_ollama_perf.metrics.format import format_count
from pytest_ollama_perf.store import open_store
from pytest_ollama_perf.store.entries import Damage

EPILOG = """\
Unreadable runs are moved, not deleted. An unreadable acceptance is replaced by a new one of the same time, so that runs
from before it stay out of the baseline. Records of a newer version are left as they are: upgrade to read them.

exit status: 0, 2 if the history still has unreadable records
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the description and the arguments of ``repair``."""
    parser.description = "Check every record of the history and move unreadable ones out of it."
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--dry-run", action="store_true", help="list unreadable records without changing anything")
    add_store_options(parser)
    parser.set_defaults(run=main)


def main(options: argparse.Namespace) -> int:
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
