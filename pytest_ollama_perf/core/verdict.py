"""The words a verdict can say, and the value that carries one with its reason."""

from __future__ import annotations

import enum

import msgspec


class VerdictStatus(str, enum.Enum):
    OK = "ok"
    FASTER = "faster"
    NEW = "new"  # no baseline yet
    UNSURE = "unsure"
    INCOMPARABLE = "incomparable"
    REGRESSED = "regressed"
    BROKEN = "broken"  # an absolute limit
    INVALID = "invalid"  # the measurement cannot be trusted
    ABORTED = "aborted"


FAILING_STATUSES = frozenset(
    {VerdictStatus.REGRESSED, VerdictStatus.BROKEN, VerdictStatus.INVALID, VerdictStatus.ABORTED}
)
"""Words that fail a test; strict mode adds ``UNSURE`` and ``INCOMPARABLE``."""

_SEVERITY = tuple(VerdictStatus)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that makes a measurement less than it seems: ``spoils`` says that the numbers cannot be trusted."""

    name: str
    text: str
    spoils: bool


class VerdictRow(msgspec.Struct, frozen=True, kw_only=True):
    """One judged number: against a limit (``bound`` set) or against history (``baseline`` set).

    ``value``, ``bound``, ``baseline``, ``low`` and ``high`` are in the metric's own unit; an infinite value stands for
    failed requests. ``low``..``high`` is the 95 % interval of ``value`` (limit) or of the relative change (history).
    """

    metric: str
    stat: str  # "" for a pooled or per-run value
    word: VerdictStatus
    value: float
    reason: str
    op: str = ""
    bound: float | None = None
    baseline: float | None = None
    change: float | None = None  # relative: +0.10 is 10 % more
    low: float | None = None
    high: float | None = None
    margin: float | None = None
    gating: bool = True
    where: str = ""  # which of several loads of a test, such as "4 at once"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """``reason`` stands alone in one line; rows, problems, hints and what changed explain it."""

    word: VerdictStatus
    reason: str
    rows: tuple[VerdictRow, ...] = ()
    problems: tuple[Problem, ...] = ()
    hints: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    accept: str = ""  # the command that accepts a regression
    stored: int | None = None  # how many stored runs the history held; None where it was not asked


def get_worst_status(words: tuple[VerdictStatus, ...]) -> VerdictStatus:
    """Return the gravest of ``words``; ``OK`` when there are none."""
    return max(words, key=_SEVERITY.index, default=VerdictStatus.OK)
