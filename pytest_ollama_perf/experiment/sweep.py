"""The sweep: one load at every level of an axis, or of a product of axes. The marker ``ollama_sweep``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.experiment.joined import Part, beside, joined
from pytest_ollama_perf.experiment.result import Host
from pytest_ollama_perf.experiment.swept import SweepResult
from pytest_ollama_perf.finding.held import Held, hold
from pytest_ollama_perf.finding.sweep import LOAD_AXES, At, Curve, Knee, Level, Sweep, curve_of, level_of, place
from pytest_ollama_perf.marks import LoadSpec, load_spec
from pytest_ollama_perf.marks import known_words as load_words
from pytest_ollama_perf.past import gating_pairs
from pytest_ollama_perf.quantity import seconds
from pytest_ollama_perf.settings import Settings, parse_percent
from pytest_ollama_perf.summary import Summary
from pytest_ollama_perf.trial import Lab, Trial, conduct
from pytest_ollama_perf.verdict.absolute import judge_limit
from pytest_ollama_perf.verdict.limits import Limit
from pytest_ollama_perf.verdict.wording import count, number
from pytest_ollama_perf.verdict.wording import seconds as said
from pytest_ollama_perf.verdict.words import Verdict, Word
from pytest_ollama_perf.words import shown

AXES = ("model", "num_ctx", "prompt_words", "num_predict", "concurrency", "rate")
"""Words that may hold a list, outermost first: the load grows fastest, so that every curve is a rise of the load."""

DEFAULT_CONCURRENCY = (1, 2, 4, 8)
SINGLE_REQUESTS = 5
OWN_WORDS = ("single", "stop_success_rate", "stop_latency", "min_knee", "min_speedup")
_OF_THE_SYSTEM = ("throughput", "throughput_whole", "qps", "goodput")
"""What the whole server makes: a limit on it holds for the best level, any other limit at every level."""


@dataclass(frozen=True)
class SweepTest:
    """What a sweep is asked for: a load for each level, in the order they are fired."""

    axis: str
    curves: tuple[tuple[At, tuple[tuple[At, LoadSpec], ...]], ...]
    single: tuple[LoadSpec | None, ...]
    best: tuple[Limit, ...]
    stop_success_rate: float
    stop_latency_s: float
    min_knee: float | None = None
    min_speedup: float | None = None

    @property
    def specs(self) -> tuple[LoadSpec, ...]:
        """Every load of the sweep."""
        levels = [spec for _, levels in self.curves for _, spec in levels]
        return (*levels, *(spec for spec in self.single if spec is not None))

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(spec.workload.model for spec in self.specs))

    @property
    def gating(self) -> int:
        return sum(gating_pairs(spec.margins) for spec in self.specs)

    def conduct(self, lab: Lab, test: str) -> Trial:
        """Climb every curve, and judge its levels and the whole."""
        return _Climb(self, lab, test).conduct()

    def present(self, host: Host, test: str, trial: Trial) -> SweepResult:
        """Return the result that the fixture ``ollama_sweep`` stands for."""
        return SweepResult(host, test, trial)


@dataclass
class _Climb:
    """One sweep under way."""

    asked: SweepTest
    lab: Lab
    test: str
    parts: list[Part] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    _fired: int = 0

    def conduct(self) -> Trial:
        self._check_models()
        self.lab.found = lambda: (Sweep(axis=self.asked.axis, curves=tuple(self.curves)),)
        for (at, levels), single in zip(self.asked.curves, self.asked.single, strict=True):
            self._curve(at, levels, single)
        found = Sweep(axis=self.asked.axis, curves=tuple(self.curves), held=tuple(self._held()))
        verdict = joined(self._judged(), summary=_summary(found), held=found.held)
        loads = tuple(load for part in self.parts for load in part.trial.loads)
        return Trial(verdict, loads, (found, *beside(self.parts)))

    def _check_models(self) -> None:
        """Learn that a model is missing before hours were spent on the others."""
        for model in self.asked.models if len(self.asked.models) > 1 else ():
            for server in self.lab.bench.servers:
                server.control.installed(model)

    def _curve(self, at: At, levels: Sequence[tuple[At, LoadSpec]], single: LoadSpec | None) -> None:
        alone = self._level({**at, "concurrency": 1}, single, alone=True) if single else None
        rows: list[Level] = []
        stopped = ""
        self.curves.append(curve_of(self.asked.axis, at, rows, alone))
        for index, (where, spec) in enumerate(levels):
            rows.append(self._level(where, spec))
            if self.asked.axis in LOAD_AXES and index + 1 < len(levels):
                stopped = self._past_limits(rows[-1], [place(at) for at, _ in levels[index + 1 :]])
            self.curves[-1] = curve_of(self.asked.axis, at, rows, alone, stopped)
            if stopped:
                self._note_missing(levels[index + 1 :], stopped)
                return

    def _level(self, at: At, spec: LoadSpec, *, alone: bool = False) -> Level:
        self._fired += 1
        level = f"level {self._fired} of {len(self.asked.specs)}"
        self.lab.onlooker.message(f"{level}: {place(at)}")
        trial = conduct(self.lab.captioned(level), spec, self.test)
        self.parts.append(Part(f"{place(at)}, alone" if alone else place(at), trial))
        middle = sorted(trial.loads, key=lambda load: _made(load.summary))[(len(trial.loads) - 1) // 2]
        verdict = trial.verdict
        return level_of(at, middle.run, middle.summary, verdict.word, verdict.reason, single=alone)

    def _past_limits(self, level: Level, rest: Sequence[str]) -> str:
        """Say why the server is not to be driven further, in one line; empty while it bears the load."""
        left = f"{', '.join(rest)} not measured"
        if level.success_rate < self.asked.stop_success_rate:
            failed = f"{level.requests - level.ok} of {count(level.requests, 'request')} failed"
            least = f"stop_success_rate={self.asked.stop_success_rate:g}"
            return f"stopped after {place(level.at)}: {failed} ({least}); {left}"
        latency = level.latency_p50_s
        if latency is not None and latency > self.asked.stop_latency_s:
            limit = f"stop_latency={self.asked.stop_latency_s:g}"
            return f"stopped after {place(level.at)}: latency p50 {said(latency)} ({limit}); {left}"
        return ""

    def _note_missing(self, rest: Sequence[tuple[At, LoadSpec]], stopped: str) -> None:
        """A level with limits of its own that was not measured has not met them."""
        for at, spec in rest:
            if any(limit.metric != "error_rate" for limit in spec.limits):
                verdict = Verdict(word=Word.BROKEN, reason=f"not measured: {stopped.partition(';')[0]}")
                self.parts.append(Part(place(at), Trial(verdict)))

    def _held(self) -> Iterator[Held]:
        """Hold what every curve shows together against the limits on that; several curves each have to meet them."""
        for curve in self.curves:
            where = f" ({place(curve.at)})" if curve.at else ""
            if self.asked.min_knee is not None:
                yield _hold_knee(curve, f"knee{where}", self.asked.min_knee)
            if self.asked.min_speedup is not None:
                missing = "the single client made nothing"
                yield hold(f"speedup{where}", curve.speedup, ">=", self.asked.min_speedup, unit="x", missing=missing)

    def _judged(self) -> list[Part]:
        """The parts, and for every curve the limits on what the server makes, held against its best level."""
        if not self.asked.best:
            return self.parts
        return [*self.parts, *(self._best(curve) for curve in self.curves)]

    def _best(self, curve: Curve) -> Part:
        best = curve.best
        load = next(load for part in self.parts for load in part.trial.loads if best and load.run.id == best.run_id)
        rows = tuple(judge_limit(limit, load.run, load.summary) for limit in self.asked.best)
        speaker = max(rows, key=lambda row: list(Word).index(row.word))
        verdict = Verdict(word=speaker.word, reason=speaker.reason, rows=rows)
        return Part(f"best level, {place(best.at)}" if best else "best level", Trial(verdict))


def _hold_knee(curve: Curve, name: str, least: float) -> Held:
    knee = curve.knee
    one = hold(name, knee.at if knee else None, ">=", least, missing="no request succeeded")
    if knee is None:
        return one
    grew = "stops growing at" if knee.reached else "still grows at"
    where, speed = _spot(knee), _speed(curve, knee.throughput)
    return msgspec.structs.replace(one, reason=f"throughput {grew} {where} ({speed}), limit min_knee={least:g}")


def known_words() -> tuple[str, ...]:
    """Every word the marker takes: those of a load, and a sweep's own."""
    return (*load_words(), *OWN_WORDS)


def read(words: Mapping[str, Any], settings: Settings) -> SweepTest:
    """Read the marker's words; ``ConfigError`` says what is wrong with them."""
    own = {word: value for word, value in words.items() if word in OWN_WORDS}
    rest = {word: value for word, value in words.items() if word not in OWN_WORDS}
    axes = _axes(rest)
    axis = next((name for name in LOAD_AXES if name in axes), list(axes)[-1])
    fixed = {word: value for word, value in rest.items() if word not in axes}
    every, best = _split(load_spec({**fixed, **_first(axes)}, default_model=settings.model).limits)
    single_at = _wants_single(own, axis, axes)
    curves, singles = [], []
    for chosen in itertools.product(*(values for name, values in axes.items() if name != axis)):
        at = dict(zip((name for name in axes if name != axis), chosen, strict=True))
        levels = [{**at, axis: value} for value in axes[axis]]
        specs = [_whole_level(load_spec({**fixed, **level}, default_model=settings.model)) for level in levels]
        curves.append((at, tuple((level, _limited(spec, every)) for level, spec in zip(levels, specs, strict=True))))
        singles.append(_single({**fixed, **at}, settings) if single_at else None)
    return SweepTest(
        axis=axis,
        curves=tuple(curves),
        single=tuple(singles),
        best=best,
        stop_success_rate=_share(own, "stop_success_rate", 0.9),
        stop_latency_s=seconds(own.get("stop_latency", 300.0), "stop_latency"),
        min_knee=_min_knee(own, axis, axes),
        min_speedup=_positive(own, "min_speedup"),
    )


def _axes(words: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return the words that hold a list, in the order of ``AXES``."""
    axes = {name: _values(name, words[name]) for name in AXES if _is_list(words.get(name))}
    if "concurrency" in axes and "rate" in words:
        raise ConfigError("concurrency and rate contradict each other: sweep over one of them")
    if "rate" in axes and "concurrency" in words:
        raise ConfigError("concurrency and rate contradict each other: sweep over one of them")
    if not axes and ("concurrency" in words or "rate" in words):
        raise ConfigError(f"a sweep needs a list: concurrency=[1, 2, 4, 8], or one of {', '.join(AXES)}")
    return axes or {"concurrency": DEFAULT_CONCURRENCY}


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple, range, set, frozenset))


def _values(name: str, given: Any) -> tuple[Any, ...]:
    values = tuple(dict.fromkeys(given))
    if not values:
        raise ConfigError(f"{name}={shown(given)}: expected a list with at least one value")
    try:
        return tuple(sorted(values)) if name in LOAD_AXES else values
    except TypeError:
        raise ConfigError(f"{name}={shown(given)}: expected a list of numbers") from None


def _first(axes: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    return {name: values[0] for name, values in axes.items()}


def _split(limits: Sequence[Limit]) -> tuple[tuple[Limit, ...], tuple[Limit, ...]]:
    """Return the limits that hold at every level, and those that hold for the best one."""
    every = tuple(limit for limit in limits if limit.metric not in _OF_THE_SYSTEM)
    return every, tuple(limit for limit in limits if limit.metric in _OF_THE_SYSTEM)


def _limited(spec: LoadSpec, limits: tuple[Limit, ...]) -> LoadSpec:
    return msgspec.structs.replace(spec, limits=limits)


def _whole_level(spec: LoadSpec) -> LoadSpec:
    """Refuse a level that its own requests could not fill."""
    requests, clients = spec.workload.requests, spec.workload.concurrency
    if requests is not None and clients is not None and requests < clients:
        raise ConfigError(
            f"requests={requests}: fewer than the {clients} clients of a level, which would never be at work at once; "
            "give more, or none for 5 a client and at least 20"
        )
    return spec


def _wants_single(own: Mapping[str, Any], axis: str, axes: Mapping[str, tuple[Any, ...]]) -> bool:
    wanted = own.get("single", True)
    if not isinstance(wanted, bool):
        raise ConfigError(f"single={shown(wanted)}: expected True or False")
    return wanted and axis in LOAD_AXES and 1 not in axes.get("concurrency", ())


def _single(words: Mapping[str, Any], settings: Settings) -> LoadSpec:
    """Return the load of one client: what the levels are compared with."""
    kept = {word: value for word, value in words.items() if word not in {"rate", "arrival", "duration", "drain"}}
    load = load_spec({**kept, "concurrency": 1, "requests": SINGLE_REQUESTS}, default_model=settings.model)
    return msgspec.structs.replace(load, limits=tuple(limit for limit in load.limits if limit.metric == "error_rate"))


def _share(own: Mapping[str, Any], word: str, default: float) -> float:
    if own.get(word, default) == 0:
        return 0.0
    return min(1.0, parse_percent(own.get(word, default), f"{word}={shown(own.get(word, default))}"))


def _positive(own: Mapping[str, Any], word: str) -> float | None:
    value = own.get(word)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigError(f"{word}={shown(value)}: expected a number above 0")
    return float(value)


def _min_knee(own: Mapping[str, Any], axis: str, axes: Mapping[str, tuple[Any, ...]]) -> float | None:
    least = _positive(own, "min_knee")
    if least is None:
        return None
    if axis not in LOAD_AXES:
        raise ConfigError(f"min_knee={least:g}: a sweep over {axis} has no knee; sweep over concurrency or rate")
    if least > axes[axis][-1]:
        raise ConfigError(f"min_knee={least:g}: no level is that high; add it to {axis}={shown(list(axes[axis]))}")
    return least


def _made(summary: Summary) -> float:
    for name in ("throughput", "throughput_whole", "qps"):
        if name in summary.metrics:
            return summary.metrics[name].value or 0.0
    return 0.0


def _summary(found: Sweep) -> str:
    """Say in one line what the sweep found, of the first curve."""
    levels = sum(len(curve.levels) for curve in found.curves)
    curve = found.curves[0]
    told = [count(levels, "level")]
    if curve.knee:
        where, speed = _spot(curve.knee), _speed(curve, curve.knee.throughput)
        grew = "throughput stops growing at" if curve.knee.reached else "throughput still grows at"
        told.append(f"{grew} {where} ({speed})")
    if curve.avalanche:
        told.append(f"TTFT takes off at {number(curve.avalanche.at)}")
    if curve.stopped:
        told.append("stopped early")
    return ", ".join(told) + (f"; {len(found.curves) - 1} more curves" if len(found.curves) > 1 else "")


def _spot(knee: Knee) -> str:
    return place({knee.axis: int(knee.at) if knee.axis == "concurrency" else knee.at})


def _speed(curve: Curve, made: float) -> str:
    return f"{number(made)} {'requests' if curve.levels[0].throughput is None else 'tokens'}/s"
