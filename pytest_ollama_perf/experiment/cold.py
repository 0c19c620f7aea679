"""Cold and warm: unload, see that the model is gone, load it by the first request. The marker ``ollama_cold_start``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from pytest_ollama_perf.bench import Onlooker
from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.experiment.joined import Part, beside, joined
from pytest_ollama_perf.experiment.result import Host, Result
from pytest_ollama_perf.finding.coldstart import NUMBERS, ColdStart, Start, cold_start_of, start_of
from pytest_ollama_perf.finding.held import Held, hold
from pytest_ollama_perf.load.recorder import Progress
from pytest_ollama_perf.marks import LoadSpec, load_spec
from pytest_ollama_perf.marks import known_words as load_words
from pytest_ollama_perf.metric import METRICS, Metric, Shape
from pytest_ollama_perf.past import Compared, gating_pairs
from pytest_ollama_perf.quantity import seconds
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.settings import Settings
from pytest_ollama_perf.trial import Lab, Trial
from pytest_ollama_perf.verdict.epoch import History
from pytest_ollama_perf.verdict.run_value import POLICIES
from pytest_ollama_perf.verdict.wording import seconds as said
from pytest_ollama_perf.verdict.words import Problem, Verdict, Word
from pytest_ollama_perf.words import shown
from pytest_ollama_perf.workload import Workload

LIMITS = tuple(f"max_{name}" for name in NUMBERS)
OWN_WORDS = ("repeats", "load_timeout", *LIMITS)
_NOT_HERE = ("concurrency", "rate", "arrival", "cold", "duration", "drain", "warmup", "think_time")
_REPEATS = 3
_WARM_REQUESTS = 10
_LOAD_TIMEOUT_S = 1800.0
"""Half an hour: what the largest models take from a slow disk."""


@dataclass(frozen=True)
class ColdStartTest:
    """What a series of cold starts is asked for."""

    cold: LoadSpec
    warm: LoadSpec
    repeats: int
    bounds: Mapping[str, float]

    @property
    def models(self) -> tuple[str, ...]:
        return (self.warm.workload.model,)

    @property
    def gating(self) -> int:
        return gating_pairs(self.cold.margins) + gating_pairs(self.warm.margins)

    def conduct(self, lab: Lab, test: str) -> Trial:
        """Start cold as often as asked, and judge what was found."""
        return _Starts(self, lab, test).conduct()

    def present(self, host: Host, test: str, trial: Trial) -> ColdStartResult:
        """Return the result that the fixture ``ollama_cold_start`` stands for."""
        return ColdStartResult(host, test, trial)


class ColdStartResult:
    """Measured cold starts.

    ``load_time``, ``cold_ttft``, ``cold_latency``, ``warm_ttft``, ``warm_latency`` (seconds) and ``ratio`` (cold TTFT
    over warm) are medians over the repeats; ``starts`` has each repeat. ``cold`` and ``warm`` are the results of the
    loads, one a repeat, with every sample.
    """

    def __init__(self, host: Host, test: str, trial: Trial) -> None:
        self.verdict: Verdict = trial.verdict
        found = next((found for found in trial.findings if isinstance(found, ColdStart)), None)
        if found is None:
            raise AttributeError(f"nothing was found: {trial.verdict.reason}")
        self.starts: tuple[Start, ...] = found.starts
        self.load_time = found.load_time_s
        self.cold_ttft = found.cold_ttft_s
        self.cold_latency = found.cold_latency_s
        self.warm_ttft = found.warm_ttft_s
        self.warm_latency = found.warm_latency_s
        self.ratio = found.ratio
        results = [Result(host, test, Trial(trial.verdict, (load,))) for load in trial.loads]
        self.cold: tuple[Result, ...] = tuple(result for result in results if result.run.workload.cold)
        self.warm: tuple[Result, ...] = tuple(result for result in results if not result.run.workload.cold)

    def __repr__(self) -> str:
        return f"<ColdStartResult {self.verdict.word.value}: {self.verdict.reason}>"


@dataclass(frozen=True)
class _Loading:
    """Tells an onlooker how long a load that may take minutes has been going on, until the first answer is there."""

    onlooker: Onlooker
    model: str

    def begin(self, model: str, duration_s: float | None = None) -> None:
        self.onlooker.begin(model, duration_s)

    def message(self, text: str) -> None:
        self.onlooker.message(text)

    def update(self, progress: Progress) -> None:
        self.onlooker.message(f"cold start: loading {self.model} ... {progress.elapsed_s:.0f} s")


@dataclass(frozen=True)
class _Compared:
    """Runs of one half, cold or warm, against their past."""

    where: str
    history: History
    found: Compared
    runs: Sequence[Run]


@dataclass
class _Starts:
    """A series of cold starts under way."""

    asked: ColdStartTest
    lab: Lab
    test: str
    cold: list[Trial] = field(default_factory=list)
    warm: list[Trial] = field(default_factory=list)

    def conduct(self) -> Trial:
        self.lab.found = lambda: (self._found(),)
        going = all(self._start(turn) for turn in range(1, self.asked.repeats + 1))
        compared = self._compared() if going else []
        while any(each.found.again for each in compared) and len(self.cold) < self.lab.settings.max_runs and going:
            going = self._start(len(self.cold) + 1)
            compared = self._compared() if going else []
        found = self._found()
        found = msgspec.structs.replace(found, held=tuple(self._held(found)))
        verdict = joined(self._parts(compared), summary=_summary(found), held=found.held)
        trials = (*self.cold, *self.warm)
        loads = tuple(load for trial in trials for load in trial.loads)
        return Trial(verdict, loads, (found, *beside([Part("", trial) for trial in trials])))

    def _start(self, turn: int) -> bool:
        """Measure one repeat; say whether it makes sense to go on."""
        again = f"{turn}: not sure yet" if turn > self.asked.repeats else f"{turn} of {self.asked.repeats}"
        self.lab.onlooker.message(f"cold start {again}")
        model = self.asked.cold.workload.model or "the model"
        lab = replace(self.lab, onlooker=_Loading(self.lab.onlooker, model))
        self.cold.append(_gone_before(lab.fire(self._cold_workload(), self.test, self.asked.cold.limits)))
        if self.cold[-1].verdict.word in {Word.INVALID, Word.ABORTED} or not self.cold[-1].loads[0].summary.ok:
            return False
        lab = self.lab.captioned(f"cold start {again}, then warm")
        self.warm.append(lab.fire(self.asked.warm.workload, self.test, self.asked.warm.limits))
        return self.warm[-1].verdict.word not in {Word.INVALID, Word.ABORTED}

    def _cold_workload(self) -> Workload:
        """One request for each server at the same time, so that each loads the model by its own."""
        servers = len(self.lab.bench.servers)
        return msgspec.structs.replace(self.asked.cold.workload, requests=servers, concurrency=servers)

    def _found(self) -> ColdStart:
        runs = zip(self.cold, self.warm, strict=False)
        starts = [start_of(cold.run, warm.run) for cold, warm in runs]
        model = self.cold[0].run.workload.model if self.cold else self.asked.cold.workload.model
        return cold_start_of(model, starts)

    def _held(self, found: ColdStart) -> list[Held]:
        return [_hold(found, name, bound) for name, bound in self.asked.bounds.items()]

    def _compared(self) -> list[_Compared]:
        """Judge cold and warm runs against their own histories: every repeat loaded the model, and so is evidence."""
        found = []
        for where, spec, trials in (("cold", self.asked.cold, self.cold), ("warm", self.asked.warm, self.warm)):
            history = self.lab.past.of(self.test, trials[0].run.workload)
            if self.lab.past.matters(history):
                runs = [trial.run for trial in trials]
                compared = self.lab.past.compare(history, runs, spec.margins, spec.gating)
                found.append(_Compared(where, history, compared, runs))
        return found

    def _parts(self, compared: Sequence[_Compared]) -> list[Part]:
        """The judged halves: cold and warm, each with the gravest of its verdicts and what its past adds to that."""
        against = {each.where: each for each in compared}
        parts = []
        for where, trials in (("cold", self.cold), ("warm", self.warm)):
            gravest = max(trials, key=lambda trial: list(Word).index(trial.verdict.word), default=None)
            if gravest is not None:
                verdict = gravest.verdict
                if one := against.get(where):
                    verdict = self.lab.past.conclude(verdict, one.found, one.runs, one.history)
                parts.append(Part(where, Trial(verdict)))
        return parts


def _gone_before(trial: Trial) -> Trial:
    """Void a cold start whose model was still there when the request was sent: something else uses the server."""
    loaded = [url for url, state in trial.run.before.items() if state.loaded]
    if not loaded:
        return trial
    text = "the model was loaded again before the cold request was sent; something else is using the server"
    problem = Problem(name="not cold", text=text, spoils=True)
    verdict = msgspec.structs.replace(
        trial.verdict,
        word=Word.INVALID,
        reason=f"not a valid measurement: {text}",
        problems=(*trial.verdict.problems, problem),
    )
    return replace(trial, verdict=verdict)


def _hold(found: ColdStart, name: str, bound: float) -> Held:
    """Hold the median against its bound; where single repeats are beyond it, the limit is met but not for sure."""
    unit = "x" if name == "ratio" else "s"
    spoken = name.replace("_", " ").replace("ttft", "TTFT")
    one = hold(
        spoken, found.get(name), "<=", bound, unit=unit, missing="no start succeeded, or the server does not say"
    )
    beyond = [start for start in found.starts if (value := start.get(name)) is not None and value > bound]
    if one.word is Word.OK and beyond:
        reason = f"{one.reason}: the median meets it, {len(beyond)} of {len(found.starts)} starts did not"
        return msgspec.structs.replace(one, word=Word.UNSURE, reason=reason)
    return one


def _summary(found: ColdStart) -> str:
    """Say in one line what was found."""
    if found.cold_latency_s is None:
        return "no cold start succeeded"
    told = [f"load {said(found.load_time_s)}"] if found.load_time_s is not None else []
    if found.cold_ttft_s is not None and found.warm_ttft_s is not None:
        told.append(f"TTFT {said(found.cold_ttft_s)} cold, {said(found.warm_ttft_s)} warm")
    elif found.warm_latency_s is not None:
        told.append(f"latency {said(found.cold_latency_s)} cold, {said(found.warm_latency_s)} warm")
    return ", ".join(told)


def known_words() -> tuple[str, ...]:
    """Every word the marker takes: those of a load but its pace, and a cold start's own."""
    return tuple(word for word in (*load_words(), *OWN_WORDS) if word not in _NOT_HERE)


def read(words: Mapping[str, Any], settings: Settings) -> ColdStartTest:
    """Read the marker's words; ``ConfigError`` says what is wrong with them."""
    for word in _NOT_HERE:
        if word in words:
            valid = "repeats, requests (warm ones) and load_timeout"
            raise ConfigError(f"{word}={shown(words[word])}: a cold start is one request at a time; valid: {valid}")
    own = {word: value for word, value in words.items() if word in OWN_WORDS}
    load = {word: value for word, value in words.items() if word not in OWN_WORDS}
    load.setdefault("requests", _WARM_REQUESTS)
    warm = load_spec(load, default_model=settings.model)
    return ColdStartTest(
        cold=_cold(warm, load, own),
        warm=warm,
        repeats=_repeats(own.get("repeats", _REPEATS)),
        bounds={name: _bound(name, own[f"max_{name}"]) for name in NUMBERS if f"max_{name}" in own},
    )


def _cold(warm: LoadSpec, load: Mapping[str, Any], own: Mapping[str, Any]) -> LoadSpec:
    """Return the load of the one cold request: timeouts of its own, and load_time judged by history, too."""
    patience = seconds(own.get("load_timeout", _LOAD_TIMEOUT_S), "load_timeout")
    if not patience:
        raise ConfigError("load_timeout=0: a timeout must be above 0")
    usual = warm.workload.timeouts
    total = max(usual.total_s, patience + usual.total_s)
    timeouts = msgspec.structs.replace(usual, first_token_s=patience, total_s=total)
    workload = msgspec.structs.replace(warm.workload, cold=True, requests=1, warmup=0, timeouts=timeouts)
    limits = tuple(limit for limit in warm.limits if limit.metric == "error_rate")
    # One request has no percentiles and no throughput, so margins on those say nothing of it.
    margins = {name: share for name, share in warm.margins.items() if name in METRICS and _of_one(METRICS[name])}
    margins.setdefault("load_time", POLICIES["load_time"].margin)
    return LoadSpec(workload=workload, limits=limits, margins=margins)


def _of_one(metric: Metric) -> bool:
    return metric.shape is not Shape.PER_RUN


def _repeats(given: object) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise ConfigError(f"repeats={shown(given)}: expected a whole number from 1")
    return given


def _bound(name: str, given: Any) -> float:
    if name != "ratio":
        return seconds(given, f"max_{name}")
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given < float("inf"):
        raise ConfigError(f"max_ratio={shown(given)}: expected a number above 0, cold TTFT over warm")
    return float(given)
