"""pytest-benchmark: the latencies of load tests as rows of its table, its JSON and its comparisons.

Asked for with ``--ollama-benchmark``, for who uses pytest-benchmark for other things must not find rows of ours. Two
rows a load, ``latency`` and ``ttft`` in seconds, one value per request. A load with failed requests, or one that is not
to be trusted, is marked as an error, which pytest-benchmark shows and does not save: the requests that happened to
succeed would look fast.

pytest-benchmark has no way to hand it numbers, so its own classes are used as its fixture uses them. Where they have
changed the bridge says so in one line and adds nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_ollama_perf.harness.results import MeasuredLoad, TestResult
    from pytest_ollama_perf.session import Session


BENCHMARK_METRICS = ("latency", "ttft")


class BenchmarkParams(dict[str, Any]):
    """The parameters of a row; one that it lacks is ``None``, for ``--benchmark-group-by=param:x`` asks every row."""

    def __missing__(self, name: str) -> None:
        return None


class BenchmarkBridge:
    """Hands over when the session ends, before pytest-benchmark saves and compares."""

    def __init__(self, session: Session, config: pytest.Config) -> None:
        self._session, self._config = session, config
        self._warning = ""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, None, None]:
        disabled = self._config.getoption("benchmark_disable", default=None)
        if disabled is None:
            self._warning = "pytest-benchmark is not there: pip install pytest-benchmark, or leave the option out"
        elif self._is_enabled(bool(disabled)):
            self._add_rows()
        yield

    def _is_enabled(self, disabled: bool) -> bool:
        """Under pytest-xdist pytest-benchmark switches itself off, but our loads take turns and stay true."""
        enabled = self._config.getoption("benchmark_enable", default=False)
        return not self._config.getoption("benchmark_skip", default=False) and (not disabled or bool(enabled))

    def _add_rows(self) -> None:
        try:
            made = [row for result in self._session.build_results() for row in build_benchmark_rows(result)]
            session = self._config._benchmarksession  # type: ignore[attr-defined]
            session.benchmarks.extend(made)
        except Exception as error:
            self._warning = f"pytest-benchmark has changed inside ({type(error).__name__}: {error}); no rows of ours"

    @pytest.hookimpl(tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._warning:
            terminalreporter.write_line(f"--ollama-benchmark: {self._warning}", yellow=True)


def build_benchmark_rows(result: TestResult) -> Iterator[Any]:
    """Yield the rows of one test: for each different load its latencies and times to first token."""
    from pytest_ollama_perf.core.workload import compute_identity

    groups: dict[str, list[MeasuredLoad]] = {}
    for load in result.loads:
        groups.setdefault(compute_identity(load.run.workload), []).append(load)
    for number, runs in enumerate(groups.values(), 1):
        suffix = f" {number}" if len(groups) > 1 else ""
        yield from (row for metric in BENCHMARK_METRICS if (row := _build_row(result, runs, metric, suffix)))


def _build_row(result: TestResult, runs: Sequence[MeasuredLoad], metric: str, suffix: str) -> Any:
    from pytest_ollama_perf.metrics.per_request import list_request_values

    seconds = [value for load in runs for value in list_request_values(metric, [s for s in load.run.measured if s.ok])]
    stats: Any = importlib.import_module("pytest_benchmark.stats")  # untyped where it is old
    row = stats.Metadata(_build_fixture_substitute(result, runs, metric, suffix), iterations=1, options={})
    for value in seconds:
        row.update(value)
    if row:  # what its reports will ask of it, asked while it can still be left out
        row.as_dict(include_data=True)
        row.as_dict(include_data=False, flat=True)
    return row


def _build_fixture_substitute(
    result: TestResult, runs: Sequence[MeasuredLoad], metric: str, suffix: str
) -> SimpleNamespace:
    """Return what stands where pytest-benchmark has its fixture."""
    from pytest_ollama_perf.core.verdict import VerdictStatus

    workload = runs[0].run.workload
    label = f"{suffix} ttft" if metric == "ttft" else suffix
    path, bracket, parameters = result.test.partition("[")
    failed = sum(load.summary.requests - load.summary.ok for load in runs)
    tps = [load.summary.metrics["tps"].value for load in runs if "tps" in load.summary.metrics]
    return SimpleNamespace(
        name=f"{path.rpartition('::')[2]}{bracket}{parameters}{label}",
        fullname=f"{result.test}{label}",
        group=f"ollama {metric}",
        param=parameters.removesuffix("]") or None,
        params=BenchmarkParams(model=workload.model, concurrency=workload.concurrency, rate=workload.rate),
        extra_info={"verdict": result.verdict.word.value, "failed_requests": failed, "tps": tps},
        cprofile_stats=None,
        has_error=failed > 0 or result.verdict.word in {VerdictStatus.INVALID, VerdictStatus.ABORTED},
    )
