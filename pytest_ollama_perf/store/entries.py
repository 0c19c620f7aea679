"""What a store lists without opening records, and how it names them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import NamedTuple

from pytest_ollama_perf.analysis.epochs import RunKind
from pytest_ollama_perf.core import StoreError
from pytest_ollama_perf.store.files import escape_surrogates

_MAX_TIMESTAMP_S = 253402300799.0


class RunEntry(NamedTuple):
    """A stored run as an index lists it: no record was opened for it.

    ``stamp`` is its start time as ``20261120T205836.123456Z``; a file with a foreign name has an empty stamp, identity
    and run. ``location`` is what the store finds the record by.
    """

    stamp: str
    identity: str
    run: str
    kind: RunKind
    location: str


class AcceptanceEntry(NamedTuple):
    """A stored acceptance: its place, when it was made (Unix seconds, if the store knows), and its record."""

    location: str
    at: float | None
    data: bytes | StoreError


class Damage(NamedTuple):
    """An unreadable record: which test it is of, what is wrong, and what ``repair`` did."""

    test: str
    text: str
    action: str
    is_repaired: bool


def sort_entries(entries: Iterable[RunEntry]) -> list[RunEntry]:
    """Return ``entries`` oldest first; foreign names come last, so that they are always read."""
    ordered = sorted(entries)
    foreign = [entry for entry in ordered if not entry.stamp]
    return ordered[len(foreign) :] + foreign


def to_slug(run_id: str) -> str:
    """Return ``run_id`` as part of a file name or key: unchanged if possible, otherwise its hash."""
    safe = re.fullmatch(r"[A-Za-z0-9_-]{1,64}", run_id)
    return run_id if safe else hashlib.sha256(escape_surrogates(run_id).encode()).hexdigest()[:32]


def format_stamp(seconds: float) -> str:
    """Return Unix seconds as ``20261120T205836.123456Z``; times outside the years 1970 to 9999 are clamped."""
    when = datetime.fromtimestamp(min(max(seconds, 0.0), _MAX_TIMESTAMP_S), timezone.utc)
    return f"{when.year:04}{when.strftime('%m%dT%H%M%S.%fZ')}"


def parse_stamp(stamp: str) -> float | None:
    """Return the Unix seconds of a stamp; ``None`` for other text."""
    try:
        return datetime.strptime(stamp, "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None
