"""pytest-benchmark: the latencies of load tests as rows of its table, its JSON and its comparisons.

Only with ``--ollama-benchmark``, so that users of pytest-benchmark do not find unexpected rows. Each load adds two
rows, ``latency`` and ``ttft`` in seconds, with one value per request. A load with failed requests, or with an invalid
measurement, is marked as an error, which pytest-benchmark shows and does not save: the requests that succeeded would
look fast.

pytest-benchmark has no interface for values measured elsewhere, so its own classes are used as its fixture uses them.
If they have changed, one line says so and no rows are added.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_ollama_perf.harness.evaluation import MeasuredLoad, TestResult
    from pytest_ollama_perf.session import Session


BENCHMARK_METRICS = ("latency", "ttft")


class BenchmarkParams(dict[str, Any]):
    """The parameters of a row. A missing one is ``None``: ``--benchmark-group-by=param:x`` looks it up in every row."""

    def __missing__(self, name: str) -> None:
        return None


class BenchmarkBridge:
    """Adds the rows when the session ends, before pytest-benchmark saves and compares."""

    def __init__(self, session: Session, config: pytest.Config) -> None:
        self._session, self._config = session, config
        self._warning = ""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, None, None]:
        """Hand the latencies to pytest-benchmark before it ends its session."""
        disabled = self._config.getoption("benchmark_disable", default=None)
        if disabled is None:
            self._warning = "pytest-benchmark is not installed: pip install pytest-benchmark, or remove the option"
        elif self._is_enabled(bool(disabled)):
            self._add_rows()
        yield

    def _is_enabled(self, disabled: bool) -> bool:
        """pytest-benchmark is disabled with pytest-xdist, but loads run one after the other and stay valid."""
        enabled = self._config.getoption("benchmark_enable", default=False)
        return not self._config.getoption("benchmark_skip", default=False) and (not disabled or bool(enabled))

    def _add_rows(self) -> None:
        try:
            made = [row for result in self._session.build_results() for row in build_benchmark_rows(result)]
            session = self._config._benchmarksession  # type: ignore[attr-defined]
            session.benchmarks.extend(made)
        except Exception as error:
            self._warning = (
                f"this version of pytest-benchmark is not supported ({type(error).__name__}: {error}); no rows added"
            )

    @pytest.hookimpl(tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show why no rows were added."""
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
    stats: Any = importlib.import_module("pytest_benchmark.stats")  # old versions have no types
    row = stats.Metadata(_build_fixture_substitute(result, runs, metric, suffix), iterations=1, options={})
    for value in seconds:
        row.update(value)
    if row:  # what its reports use; fails here if it has changed
        row.as_dict(include_data=True)
        row.as_dict(include_data=False, flat=True)
    return row


def _build_fixture_substitute(
    result: TestResult, runs: Sequence[MeasuredLoad], metric: str, suffix: str
) -> SimpleNamespace:
    """Return what pytest-benchmark sees as the fixture of the row."""
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
        extra_info={"verdict": result.verdict.status.value, "failed_requests": failed, "tps": tps},
        cprofile_stats=None,
        has_error=failed > 0 or result.verdict.status in {VerdictStatus.INVALID, VerdictStatus.ABORTED},
    )
