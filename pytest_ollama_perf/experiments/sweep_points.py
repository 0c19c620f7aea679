"""The result of a sweep, as a test holds it in its hands."""

from __future__ import annotations

from typing import Any

from pytest_ollama_perf.analysis.scaling import (
    Curve,
    Knee,
    Saturation,
    Sweep,
    SweepPoint,
    format_position,
)
from pytest_ollama_perf.core.verdict import Verdict
from pytest_ollama_perf.experiments.load import EvaluationRecorder, LoadResult
from pytest_ollama_perf.harness.evaluation import Evaluation
from pytest_ollama_perf.harness.results import MeasuredLoad


class SweepPointResult(LoadResult):
    """One level: everything a load's result has, its place on the axes (``at``, ``concurrency``, ``num_ctx``, ...), and
    its row of the table, whose ``efficiency``, ``slots`` and ``success_rate`` a load alone does not have."""

    def __init__(self, recorder: EvaluationRecorder, test: str, load: MeasuredLoad, row: SweepPoint) -> None:
        super().__init__(recorder, test, Evaluation(Verdict(word=row.word, reason=row.reason), (load,)))
        self.row = row
        self.at = row.at
        self.efficiency = row.efficiency
        self.slots = row.slots
        self.success_rate = row.success_rate

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self.at:
            return self.at[name]
        return super().__getattr__(name)

    def __repr__(self) -> str:
        return f"<LevelResult {format_position(self.at)}, {self.verdict.word.value}: {self.verdict.reason}>"


class CurveResult:
    """The levels along the swept axis for one choice ``at`` of the other axes, in rising order of the load."""

    def __init__(self, curve: Curve, recorder: EvaluationRecorder, test: str, loads: dict[str, MeasuredLoad]) -> None:
        def result(row: SweepPoint) -> SweepPointResult:
            return SweepPointResult(recorder, test, loads[row.run_id], row)

        self.at = curve.at
        self.levels: tuple[SweepPointResult, ...] = tuple(map(result, curve.levels))
        self.single: SweepPointResult | None = result(curve.single) if curve.single else None
        self.saturation: Saturation | None = curve.saturation
        self.slots: int | None = curve.slots
        self.speedup: float | None = curve.speedup
        self.stopped: str = curve.stopped
        self._curve = curve

    @property
    def knee(self) -> Knee:
        """Where throughput stops growing; ``AttributeError`` where the axis is no load or nothing succeeded."""
        if self._curve.knee is None:
            raise AttributeError("this sweep has no knee: it needs levels of concurrency or rate with successes")
        return self._curve.knee

    @property
    def best(self) -> SweepPointResult:
        """The level that made the most tokens (or requests) a second."""
        best = self._curve.best
        return next(level for level in self.levels if level.row is best)

    def level(self, **at: Any) -> SweepPointResult:
        """Return the level at the given place: ``level(concurrency=4)``; ``LookupError`` names those there are."""
        for level in self.levels:
            if all(level.at.get(axis) == value for axis, value in at.items()):
                return level
        raise LookupError(
            f"no level at {format_position(at)}; measured: "
            f"{'; '.join(format_position(level.at) for level in self.levels)}"
        )


class SweepResult:
    """A measured sweep.

    ``curves`` has one curve for each choice of the axes that are not the load; where there is one, it answers directly:
    ``sweep.levels``, ``sweep.single``, ``sweep.best``, ``sweep.level(concurrency=4).ttft.p95``,
    ``sweep.knee.concurrency``, ``sweep.saturation``, ``sweep.slots``, ``sweep.speedup``.
    """

    def __init__(self, recorder: EvaluationRecorder, test: str, evaluation: Evaluation) -> None:
        self.verdict: Verdict = evaluation.verdict
        found = next((found for found in evaluation.findings if isinstance(found, Sweep)), None)
        loads = {load.run.id: load for load in evaluation.loads}
        self.curves: tuple[CurveResult, ...] = tuple(
            CurveResult(curve, recorder, test, loads) for curve in (found.curves if found else ())
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if len(self.curves) != 1:
            raise AttributeError(f"this sweep has {len(self.curves)} curves: use sweep.curves[i].{name}")
        return getattr(self.curves[0], name)

    def __repr__(self) -> str:
        return f"<SweepResult {self.verdict.word.value}: {self.verdict.reason}>"
