"""Options that say where the history is, and finding in it what a person means."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.text import inert
from pytest_ollama_perf.words import did_you_mean

if TYPE_CHECKING:
    from pytest_ollama_perf.run import Run
    from pytest_ollama_perf.store import Store

_MOST_LISTED = 10


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add ``--store`` and ``--json``."""
    from pytest_ollama_perf.settings import DEFAULT_STORE

    parser.add_argument(
        "--store",
        default=DEFAULT_STORE,
        metavar="PLACE",
        help=f"where the history is kept: a folder (default: {DEFAULT_STORE}) or a database URL",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def find_test(store: Store, text: str) -> str:
    """Return the node id that ``text`` means: itself, or the only one that ends with it, parameters left out or not.

    Raises:
        ConfigError: none or several; the message names what is near.
    """
    tests = store.tests()
    for means in (_is, _ends_with, _ends_without_parameters):
        found = [test for test in tests if means(test, text)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(f"'{inert(text)}' means {len(found)} tests, name one of them: {_listed(found)}")
    raise ConfigError(_unknown(store, tests, text))


def _unknown(store: Store, tests: tuple[str, ...], text: str) -> str:
    if not tests:
        return f"no run is stored in {store.name} yet: run pytest with --ollama-save"
    near = did_you_mean(text, tests) or did_you_mean(text, {_short(test) for test in tests})
    known = "" if near else f"; it has {_listed(tests)}"
    return f"no runs of a test '{inert(text)}' in {store.name}{near}{known}"


def _is(test: str, text: str) -> bool:
    return test == text


def _ends_with(test: str, text: str) -> bool:
    return bool(text) and test.endswith(text) and test[: -len(text)].endswith((":", "/"))


def _ends_without_parameters(test: str, text: str) -> bool:
    bare = re.sub(r"\[.*\]$", "", test, flags=re.DOTALL)
    return _is(bare, text) or _ends_with(bare, text)


def _short(test: str) -> str:
    return test.rpartition("::")[2]


def _listed(tests: Iterable[str]) -> str:
    names = [inert(test) for test in tests]
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more


def find_run(store: Store, text: str) -> Run:
    """Return the run that ``text`` means: a file, the id of a run, or the beginning of one.

    Raises:
        ConfigError: none or several.
        StoreError: it is damaged.
    """
    if Path(text).is_file():
        return read_run(Path(text))
    if (run := store.get(text)) is not None:
        return run
    found = store.runs_like(text) if text else ()
    if len(found) > 1:
        raise ConfigError(f"'{inert(text)}' begins {len(found)} runs: {_listed(found)}")
    whole = store.get(found[0]) if found else None
    if whole is None:
        raise ConfigError(
            f"no run '{inert(text)}' in {store.name}: give the id that history shows, or the file of a record"
        )
    return whole


def read_run(path: Path) -> Run:
    """Return the run in a record's file; ``CorruptRecord`` or ``NewerSchema`` where it is none."""
    from pytest_ollama_perf.store.record import read

    return read(path)
