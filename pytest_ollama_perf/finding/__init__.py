"""What experiments find: plain values computed from the summaries of several loads. Pure, as verdicts are."""

from __future__ import annotations

import msgspec


class Finding(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag=str.lower):
    """Base of what an experiment found; ``kind`` in files is the class's name in lower case.

    A finding is part of a test's result: ``report.findings.lines`` knows how to show each kind, the JSON report holds
    every field of it.
    """
