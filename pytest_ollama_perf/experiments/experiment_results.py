"""The results of comparisons, searches and cold starts as tests use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ollama_perf.analysis.ab import ABComparison
from pytest_ollama_perf.analysis.cold_warm import ColdStart, ColdStartRepeat
from pytest_ollama_perf.analysis.sustained import MaxConcurrency, Probe
from pytest_ollama_perf.core.text import suggest_match
from pytest_ollama_perf.core.verdict import Verdict, VerdictRow, VerdictStatus
from pytest_ollama_perf.experiments.results import EvaluationRecorder, LoadResult, Measure, bind_evaluation
from pytest_ollama_perf.harness.evaluation import Evaluation, MeasuredLoad


class ABChange:
    """The change of one metric from baseline to candidate. Changes are relative: 0.05 is 5 % more."""

    def __init__(self, row: VerdictRow) -> None:
        self.row = row
        self.metric, self.stat = row.metric, row.stat
        self.status: VerdictStatus = row.status
        self.reason = row.reason

    @property
    def change(self) -> float:
        """The relative change."""
        return self._get(self.row.change)

    @property
    def low(self) -> float:
        """The lower end of the 95 % interval of the change."""
        return self._get(self.row.low)

    @property
    def high(self) -> float:
        """The upper end of the 95 % interval of the change."""
        return self._get(self.row.high)

    @property
    def margin(self) -> float:
        """The accepted slowdown."""
        return self._get(self.row.margin)

    @property
    def baseline(self) -> float:
        """The value of the baseline, in the unit of the metric."""
        return self._get(self.row.baseline)

    @property
    def value(self) -> float:
        """The value of the candidate, in the unit of the metric."""
        return self.row.value

    def _get(self, value: float | None) -> float:
        if value is None:
            raise AttributeError(f"the change of {self.metric} is not known: {self.reason}")
        return value

    def __repr__(self) -> str:
        return f"<ABChange {self.metric} {self.status.value}: {self.reason}>"


class ABResult:
    """Two sides compared; the change of every compared metric is an attribute, such as ``ab.tps.change``."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure

    @property
    def verdict(self) -> Verdict:
        """The verdict on the candidate."""
        return self._measure().verdict

    @property
    def comparison(self) -> ABComparison | None:
        """The comparison with all its rows; ``None`` if nothing could be compared."""
        return next((one for one in self._measure().findings if isinstance(one, ABComparison)), None)

    @property
    def loads(self) -> tuple[MeasuredLoad, ...]:
        """Every measured load, in order."""
        return self._measure().loads

    @property
    def blocks(self) -> int:
        """How many blocks were measured."""
        return self.comparison.blocks if self.comparison else 0

    def change(self, name: str) -> ABChange:
        """Return the change of one metric, such as ``tps`` or ``ttft.p50``."""
        rows = {f"{row.metric}.{row.stat}".rstrip("."): row for row in self.comparison.rows} if self.comparison else {}
        if name not in rows:
            has = ", ".join(rows) or "nothing"
            raise AttributeError(f"'{name}' was not compared{suggest_match(name, rows)} ({has} was)")
        return ABChange(rows[name])

    @property
    def tps(self) -> ABChange:
        """Change of tokens/s."""
        return self.change("tps")

    @property
    def prefill_tps(self) -> ABChange:
        """Change of prompt tokens/s."""
        return self.change("prefill_tps")

    @property
    def throughput(self) -> ABChange:
        """Change of the tokens/s of all clients."""
        return self.change("throughput")

    @property
    def qps(self) -> ABChange:
        """Change of completed requests/s."""
        return self.change("qps")

    @property
    def ttft(self) -> ABChange:
        """Change of the time to first token."""
        return self.change("ttft")

    @property
    def tpot(self) -> ABChange:
        """Change of the time per output token."""
        return self.change("tpot")

    @property
    def itl(self) -> ABChange:
        """Change of the time between chunks."""
        return self.change("itl")

    @property
    def latency(self) -> ABChange:
        """Change of the latency."""
        return self.change("latency")

    @property
    def load_time(self) -> ABChange:
        """Change of the load time."""
        return self.change("load_time")

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> ABChange:
            """Return the change of any other metric, or suggest the name that was meant."""
            if name.startswith("_"):
                raise AttributeError(name)
            return self.change(name)

    def __repr__(self) -> str:
        return f"<ABResult {self.verdict.status.value}: {self.verdict.reason}>"


class MaxConcurrencyResult:
    """The result of a search for the highest sustained concurrency."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure

    @property
    def verdict(self) -> Verdict:
        """The verdict on the search."""
        return self._measure().verdict

    @property
    def finding(self) -> MaxConcurrency:
        """Everything that was found; ``AttributeError`` if nothing could be measured."""
        evaluation = self._measure()
        for found in evaluation.findings:
            if isinstance(found, MaxConcurrency):
                return found
        raise AttributeError(f"nothing was found: {evaluation.verdict.reason}")

    @property
    def concurrency(self) -> int:
        """The highest concurrency that met every limit; 0 if none did."""
        return self.finding.concurrency

    @property
    def maximum(self) -> int:
        """The highest concurrency that would have been tried."""
        return self.finding.maximum

    @property
    def breach(self) -> Probe | None:
        """The lowest concurrency that broke a limit; ``None`` if all up to ``maximum`` met them."""
        return self.finding.breach

    @property
    def conclusive(self) -> bool:
        """Whether ``concurrency`` and ``breach`` are statistically significant."""
        return self.finding.conclusive

    @property
    def probes(self) -> tuple[Probe, ...]:
        """Every probe, in the order in which they ran."""
        return self.finding.probes

    def __repr__(self) -> str:
        return f"<MaxConcurrencyResult {self.concurrency}, {self.verdict.status.value}: {self.verdict.reason}>"


class ColdStartResult:
    """Measured cold starts: medians over the repeats, in seconds."""

    def __init__(self, recorder: EvaluationRecorder, test: str, measure: Measure) -> None:
        self._recorder, self._test, self._measure = recorder, test, measure

    @property
    def verdict(self) -> Verdict:
        """The verdict on the cold starts."""
        return self._measure().verdict

    @property
    def finding(self) -> ColdStart:
        """Everything that was found; ``AttributeError`` if nothing could be measured."""
        evaluation = self._measure()
        for found in evaluation.findings:
            if isinstance(found, ColdStart):
                return found
        raise AttributeError(f"nothing was found: {evaluation.verdict.reason}")

    def _get(self, name: str) -> float:
        value = self.finding.get(name)
        if value is None:
            raise AttributeError(f"{name} is not known: no start succeeded, or the server does not report it")
        return value

    @property
    def starts(self) -> tuple[ColdStartRepeat, ...]:
        """Each repeat."""
        return self.finding.starts

    @property
    def load_time(self) -> float:
        """Time for loading the model."""
        return self._get("load_time")

    @property
    def cold_ttft(self) -> float:
        """TTFT of the request that loads the model."""
        return self._get("cold_ttft")

    @property
    def cold_latency(self) -> float:
        """Latency of the request that loads the model."""
        return self._get("cold_latency")

    @property
    def warm_ttft(self) -> float:
        """TTFT of the warm requests."""
        return self._get("warm_ttft")

    @property
    def warm_latency(self) -> float:
        """Latency of the warm requests."""
        return self._get("warm_latency")

    @property
    def ratio(self) -> float:
        """Cold TTFT divided by warm TTFT."""
        return self._get("ratio")

    @property
    def cold(self) -> tuple[LoadResult, ...]:
        """The loads with the cold request, one per repeat."""
        return tuple(result for result in self._list_loads() if result.run.workload.cold)

    @property
    def warm(self) -> tuple[LoadResult, ...]:
        """The loads with the warm requests, one per repeat."""
        return tuple(result for result in self._list_loads() if not result.run.workload.cold)

    def _list_loads(self) -> list[LoadResult]:
        evaluation = self._measure()
        parts = [Evaluation(evaluation.verdict, (load,)) for load in evaluation.loads]
        return [LoadResult(self._recorder, self._test, bind_evaluation(part)) for part in parts]

    def __repr__(self) -> str:
        return f"<ColdStartResult {self.verdict.status.value}: {self.verdict.reason}>"
