"""The result of a sweep as tests use it."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_ollama_perf.analysis.scaling import AxisValues, Curve, Knee, Saturation, Sweep, SweepPoint, format_position
from pytest_ollama_perf.core.verdict import Verdict
from pytest_ollama_perf.experiments.results import EvaluationRecorder, LoadResult, Measure, bind_evaluation
from pytest_ollama_perf.harness.evaluation import Evaluation, MeasuredLoad


class SweepPointResult(LoadResult):
    """One level of a sweep: the result of its load, and its place on the axes."""

    def __init__(self, recorder: EvaluationRecorder, test: str, load: MeasuredLoad, row: SweepPoint) -> None:
        evaluation = Evaluation(Verdict(status=row.status, reason=row.reason), (load,))
        super().__init__(recorder, test, bind_evaluation(evaluation))
        self.row = row
        self.at: AxisValues = row.at

    @property
    def concurrency(self) -> int:
        """The concurrency, in a sweep over it."""
        return int(self._get_axis("concurrency"))

    @property
    def rate(self) -> float:
        """The arrival rate in requests/s, in a sweep over it."""
        return float(self._get_axis("rate"))

    @property
    def num_ctx(self) -> int:
        """The context length, in a sweep over it."""
        return int(self._get_axis("num_ctx"))

    @property
    def prompt_words(self) -> int:
        """The length of the prompts, in a sweep over it."""
        return int(self._get_axis("prompt_words"))

    @property
    def num_predict(self) -> int:
        """The maximum length of responses, in a sweep over it."""
        return int(self._get_axis("num_predict"))

    @property
    def model(self) -> str:
        """The model, in a sweep over models."""
        return str(self._get_axis("model"))

    def _get_axis(self, name: str) -> float | str:
        if name not in self.at:
            raise AttributeError(f"this sweep has no axis {name} (it has {', '.join(self.at)})")
        return self.at[name]

    @property
    def efficiency(self) -> float:
        """Throughput over ``concurrency`` times that of one client; 1.0 is ideal."""
        if self.row.efficiency is None:
            raise AttributeError("efficiency needs a measured single client with successes")
        return self.row.efficiency

    @property
    def slots(self) -> int | None:
        """How many requests the server ran in parallel while others waited; ``None`` if none waited."""
        return self.row.slots

    @property
    def success_rate(self) -> float:
        """Share of successful requests."""
        return self.row.success_rate

    def __repr__(self) -> str:
        return f"<SweepPointResult {format_position(self.at)}, {self.verdict.status.value}: {self.verdict.reason}>"


class CurveResult:
    """The levels along the swept axis, in increasing order, for one choice ``at`` of the other axes."""

    def __init__(
        self, curve: Curve, recorder: EvaluationRecorder, test: str, loads: Mapping[str, MeasuredLoad]
    ) -> None:
        def result(row: SweepPoint) -> SweepPointResult:
            return SweepPointResult(recorder, test, loads[row.run_id], row)

        self.at: AxisValues = curve.at
        self.levels: tuple[SweepPointResult, ...] = tuple(map(result, curve.levels))
        self.single: SweepPointResult | None = result(curve.single) if curve.single else None
        self.saturation: Saturation | None = curve.saturation
        self.slots: int | None = curve.slots
        self.stopped: str = curve.stopped
        self._curve = curve

    @property
    def speedup(self) -> float:
        """Throughput of the best level relative to one client."""
        if self._curve.speedup is None:
            raise AttributeError("speedup needs a measured single client with successes")
        return self._curve.speedup

    @property
    def knee(self) -> Knee:
        """The level at which throughput stops growing; only a sweep over concurrency or rate has one."""
        if self._curve.knee is None:
            raise AttributeError("this sweep has no knee: it needs levels of concurrency or rate with successes")
        return self._curve.knee

    @property
    def best(self) -> SweepPointResult:
        """The level with the highest throughput."""
        best = self._curve.best
        return next(level for level in self.levels if level.row is best)

    def level(self, **at: float | str) -> SweepPointResult:
        """Return one level: ``level(concurrency=4)``; ``LookupError`` names the measured ones."""
        for level in self.levels:
            if all(level.at.get(axis) == value for axis, value in at.items()):
                return level
        raise LookupError(
            f"no level at {format_position(at)}; measured: "
            f"{'; '.join(format_position(level.at) for level in self.levels)}"
        )


class SweepResult:
    """A measured sweep. With one curve, the members of that curve are available directly."""

    def __init__(self, recorder: EvaluationRecorder, test: str, measure: Measure) -> None:
        self._recorder, self._test, self._measure = recorder, test, measure
        self._read: tuple[Evaluation, tuple[CurveResult, ...]] | None = None

    @property
    def verdict(self) -> Verdict:
        """The verdict on the sweep."""
        return self._measure().verdict

    @property
    def curves(self) -> tuple[CurveResult, ...]:
        """One curve for each choice of the axes that are not the swept one."""
        evaluation = self._measure()
        if self._read is None or self._read[0] is not evaluation:
            self._read = evaluation, self._build_curves(evaluation)
        return self._read[1]

    def _build_curves(self, evaluation: Evaluation) -> tuple[CurveResult, ...]:
        found = next((found for found in evaluation.findings if isinstance(found, Sweep)), None)
        loads = {load.run.id: load for load in evaluation.loads}
        curves = found.curves if found else ()
        return tuple(CurveResult(curve, self._recorder, self._test, loads) for curve in curves)

    @property
    def curve(self) -> CurveResult:
        """The only curve; ``AttributeError`` if there are several."""
        if len(self.curves) != 1:
            raise AttributeError(f"this sweep has {len(self.curves)} curves: use sweep.curves[i]")
        return self.curves[0]

    @property
    def levels(self) -> tuple[SweepPointResult, ...]:
        """The levels, in increasing order."""
        return self.curve.levels

    @property
    def single(self) -> SweepPointResult | None:
        """One client alone; ``None`` if that was not measured."""
        return self.curve.single

    @property
    def best(self) -> SweepPointResult:
        """The level with the highest throughput."""
        return self.curve.best

    @property
    def knee(self) -> Knee:
        """The level at which throughput stops growing."""
        return self.curve.knee

    @property
    def saturation(self) -> Saturation | None:
        """The level from which TTFT grows faster than the load; ``None`` if there is none."""
        return self.curve.saturation

    @property
    def slots(self) -> int | None:
        """How many requests the server ran in parallel; ``None`` if the sweep does not show it."""
        return self.curve.slots

    @property
    def speedup(self) -> float:
        """Throughput of the best level relative to one client."""
        return self.curve.speedup

    @property
    def stopped(self) -> str:
        """Why levels were not measured; empty if all were."""
        return self.curve.stopped

    @property
    def at(self) -> AxisValues:
        """The values of the axes that are not the swept one."""
        return self.curve.at

    def level(self, **at: float | str) -> SweepPointResult:
        """Return one level: ``level(concurrency=4)``; ``LookupError`` names the measured ones."""
        return self.curve.level(**at)

    def __repr__(self) -> str:
        return f"<SweepResult {self.verdict.status.value}: {self.verdict.reason}>"
