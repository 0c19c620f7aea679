"""What experiments find: plain values computed from the summaries of several loads. Pure, as verdicts are."""

from __future__ import annotations

from typing import ClassVar

import msgspec


class Finding(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag=str.lower):
    """Base of what an experiment found; ``kind`` in files is the class's name in lower case.

    A finding is part of a test's result: ``report.findings.lines`` knows how to show each kind, the JSON report holds
    every field of it. ``beside_numbers`` says that it adds to a load's own numbers, where others stand for them.
    """

    beside_numbers: ClassVar[bool] = False
