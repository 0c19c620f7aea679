"""Documents for the tests of reports: sessions of many tests, and hostile ones."""

from __future__ import annotations

import msgspec
from report_makers import START, load, result, row, sample

from pytest_ollama_perf.analysis.drift import HistoryRun, HistoryView, MetricDrift
from pytest_ollama_perf.core.verdict import Hint, HintCode, Problem, ProblemCode, VerdictStatus
from pytest_ollama_perf.harness.evaluation import TestResult
from pytest_ollama_perf.report.document import Document, ReportMeta, build_report, parse_document

META = ReportMeta(plugin_version="1.2.3", started_at=1_790_000_000.0)
HOUR = 3600.0
MS = 1_000_000


def document_of(*results: TestResult, meta: ReportMeta = META) -> Document:
    """The document as every reader gets it: through its JSON."""
    return parse_document(build_report(results, meta=meta), "a test")


def past(runs: int = 12) -> HistoryView:
    """A history in two epochs, the newest run being the one just measured."""
    stored = tuple(
        HistoryRun(
            id=f"run-{number}",
            started_at=1_789_000_000.0 + number * HOUR,
            epoch=1 if number < 4 else 2,
            values={"tps": 84.0 + number % 3, "ttft": 0.18 + 0.001 * (number % 4), "latency": 1.2},
            compared=number >= 4,
            outlier=("ttft",) if number == 6 else (),
            border="accepted: a new driver" if number == 4 else "",
        )
        for number in range(runs)
    )
    now = msgspec.structs.replace(
        stored[-1], id="run-now", now=True, compared=False, values={"tps": 80.0, "ttft": 0.24}
    )
    return HistoryView(
        runs=(*stored, now),
        baseline={"ttft": (0.15, 0.18, 0.2, None), "tps": (80.0, 84.0, 86.0)},
        drift={
            "tps": MetricDrift(missing=12),
            "ttft": MetricDrift(reference=0.18, warns=True, slowdown=0.03, since=1_789_000_000.0),
        },
    )


def judged(number: int = 0, runs: int = 1, requests: int = 20) -> TestResult:
    """A regressed test: rows of both kinds, a history, several runs."""
    loads = [busy(requests) for _ in range(runs)]
    made = result(
        VerdictStatus.REGRESSED,
        "ttft +26.9 % (182 ms -> 231 ms), margin 20 %",
        loads=loads,
        test=f"tests/test_chat.py::test_chat_speed[{number}]",
        rows=(
            row(
                "ttft",
                status=VerdictStatus.REGRESSED,
                value=0.231,
                baseline=0.182,
                change=0.269,
                low=0.21,
                high=0.33,
                margin=0.2,
            ),
            row("tps", value=84.1, bound=80.0, op=">=", low=82.0, high=86.0),
        ),
        problems=(Problem(code=ProblemCode.SHORT_OUTPUTS, text="2 answers ended early", invalidates=False),),
        hints=(Hint(code=HintCode.SLOTS, text="requests ran one at a time; OLLAMA_NUM_PARALLEL is probably 1"),),
        changed=("ollama 0.32.10 -> 0.32.15",),
        accept='pytest-ollama-perf accept test_chat_speed --why "..."',
        stored=12,
    )
    return TestResult(made.test, made.verdict, made.loads, made.findings, past())


def busy(requests: int):
    """A load of four clients with times that differ a little, so that nothing in it compresses by chance."""
    samples = []
    for index in range(requests):
        shift = (index * 7919 % 997) * MS // 20
        one = sample(index)
        moved = {name: getattr(one, name) + shift for name in ("first_token_ns", "done_ns")}
        samples.append(msgspec.structs.replace(one, **moved, chunk_ns=tuple(at + shift for at in one.chunk_ns)))
    assert samples[0].sent_ns == START
    return load(samples)


def many(number_of: int, runs: int = 1, requests: int = 20) -> Document:
    """A session of so many tests that differ in their names alone."""
    one = document_of(judged(0, runs, requests))
    names = (f"tests/test_chat.py::test_chat_speed[{number}]" for number in range(number_of))
    tests = tuple(msgspec.structs.replace(one.tests[0], test=name) for name in names)
    return msgspec.structs.replace(one, tests=tests)
