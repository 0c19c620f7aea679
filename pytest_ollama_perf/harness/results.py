"""What is reported: the verdict of one test and its loads."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from pytest_ollama_perf.analysis.drift import HistoryView
from pytest_ollama_perf.analysis.findings import Finding
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.verdict import Verdict
from pytest_ollama_perf.metrics.summary import Summary


class MeasuredLoad(msgspec.Struct, frozen=True):
    """One load: what happened, and the numbers computed from it."""

    run: Run
    summary: Summary


class TestResult(msgspec.Struct, frozen=True):
    """One test item: its node id, its verdict, every load it fired, in their order, what experiments found, and the
    past it was judged against, where a report is to show it."""

    __test__: ClassVar[bool] = False

    test: str
    verdict: Verdict
    loads: tuple[MeasuredLoad, ...] = ()
    findings: tuple[Finding, ...] = ()
    past: HistoryView | None = None
