"""The largest bearable concurrency: the marker ``ollama_max_concurrency``, ``ollama.find_max_concurrency(...)``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.experiment.joined import Part, beside, joined
from pytest_ollama_perf.experiment.result import Host
from pytest_ollama_perf.finding.bearable import Bearable, Probe, judge, pooled, probe_of, search, settled
from pytest_ollama_perf.finding.held import Held, hold
from pytest_ollama_perf.marks import LoadSpec, load_spec
from pytest_ollama_perf.marks import known_words as load_words
from pytest_ollama_perf.metric import METRICS, Shape
from pytest_ollama_perf.past import gating_pairs
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.settings import Settings, parse_percent
from pytest_ollama_perf.trial import Lab, Trial, conduct
from pytest_ollama_perf.verdict.words import Verdict, Word
from pytest_ollama_perf.words import shown
from pytest_ollama_perf.workload import Workload

OWN_WORDS = ("start", "maximum", "success_rate", "max_latency", "max_ttft", "repeats", "min_concurrency")
_NOT_HERE = ("concurrency", "rate", "arrival")
_SHORT = {"max_latency": "max_p95_latency", "max_ttft": "max_p95_ttft"}
_SUCCESS = 0.95
_MAXIMUM = 64
_REPEATS = 3
_REQUESTS_PER_CLIENT = 2


@dataclass(frozen=True)
class MaxConcurrencyTest:
    """What a search is asked for; ``words`` are those of every probe's load, ``spec`` is that of one client."""

    words: Mapping[str, Any]
    spec: LoadSpec
    start: int
    maximum: int
    repeats: int
    min_concurrency: int | None
    default_model: str | None

    @property
    def models(self) -> tuple[str, ...]:
        return (self.spec.workload.model,)

    @property
    def gating(self) -> int:
        return gating_pairs(self.spec.margins)

    def load(self, concurrency: int) -> LoadSpec:
        """Return the load of one probe: at least two requests a client, or not all of them would be at work at once."""
        words = {**self.words, "concurrency": concurrency}
        if "requests" in words:
            words["requests"] = max(words["requests"], _REQUESTS_PER_CLIENT * concurrency)
        return msgspec.structs.replace(load_spec(words, default_model=self.default_model), limits=())

    def conduct(self, lab: Lab, test: str) -> Trial:
        """Search, and judge what was found."""
        return _Search(self, lab, test).conduct()

    def present(self, host: Host, test: str, trial: Trial) -> MaxConcurrency:
        """Return the result that the fixture ``ollama_max_concurrency`` stands for."""
        return MaxConcurrency(trial)


class MaxConcurrency:
    """What a search found.

    ``concurrency`` is the largest that was borne (0: none), ``breach`` the probe of the lowest that was not (``None``
    up to ``maximum``): its ``concurrency``, ``metric``, ``stat``, ``value``, ``bound`` and ``reason``. ``sure`` says
    whether both are known beyond chance; ``probes`` are all that were tried.
    """

    def __init__(self, trial: Trial) -> None:
        self.verdict: Verdict = trial.verdict
        found = next((found for found in trial.findings if isinstance(found, Bearable)), None)
        if found is None:
            raise AttributeError(f"nothing was found: {trial.verdict.reason}")
        self.concurrency: int = found.concurrency
        self.maximum: int = found.maximum
        self.breach: Probe | None = found.breach
        self.sure: bool = found.sure
        self.probes: tuple[Probe, ...] = found.probes

    def __repr__(self) -> str:
        return f"<MaxConcurrency {self.concurrency}, {self.verdict.word.value}: {self.verdict.reason}>"


class _CannotGoOn(Exception):
    """A probe that is no valid measurement ends the search."""


@dataclass
class _Search:
    """One search under way."""

    asked: MaxConcurrencyTest
    lab: Lab
    test: str
    parts: list[Part] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)

    def conduct(self) -> Trial:
        self.lab.found = lambda: (self._found(),)
        try:
            search(self.asked.start, self.asked.maximum, self._bearable)
        except _CannotGoOn:
            return self._trial(joined(self.parts, summary=""), self._found())
        found = self._found()
        self._into_history(found.concurrency)
        held = tuple(self._held(found))
        found = msgspec.structs.replace(found, held=held)
        judged = [part for part in self.parts if part.verdict.word is not Word.OK]
        verdict = joined(judged, summary=_summary(found), held=held)
        if not found.concurrency and verdict.word is Word.OK:
            verdict = msgspec.structs.replace(verdict, word=Word.BROKEN)
        return self._trial(msgspec.structs.replace(verdict, hints=self._hints()), found)

    def _bearable(self, concurrency: int) -> bool:
        spec, runs = self.asked.load(concurrency), []
        for turn in range(1, self.asked.repeats + 1):
            again = f", run {turn} of at most {self.asked.repeats}: too short to tell" if turn > 1 else ""
            self.lab.onlooker.message(f"trying {concurrency} at once{again}")
            runs.append(self._fire(spec.workload, f"{concurrency} at once"))
            whole = pooled(runs)
            judged = judge(self.asked.spec.limits, *whole)
            if settled(judged):
                break
        self.probes.append(probe_of(concurrency, runs, whole, judged))
        return self.probes[-1].bearable

    def _fire(self, workload: Workload, where: str) -> Run:
        trial = self.lab.captioned(where).fire(workload, self.test)
        cannot = trial.verdict.word in {Word.INVALID, Word.ABORTED}
        self.parts.append(Part(where, trial if cannot else _measured(trial)))
        if cannot:
            raise _CannotGoOn
        return trial.run

    def _into_history(self, concurrency: int) -> None:
        """Keep and judge the load at the border as any other load, where this build has a history."""
        if not concurrency:
            return
        spec = self.asked.load(concurrency)
        if self.lab.past.matters(self.lab.past.of(self.test, spec.workload)):
            self.parts.append(Part(f"{concurrency} at once", conduct(self.lab, spec, self.test)))

    def _found(self) -> Bearable:
        borne = [probe.concurrency for probe in self.probes if probe.bearable]
        broken = [probe for probe in self.probes if not probe.bearable]
        return Bearable(
            concurrency=max(borne, default=0),
            maximum=self.asked.maximum,
            criteria=tuple(f"{limit.metric} {limit.stat}".rstrip() for limit in self.asked.spec.limits),
            probes=tuple(self.probes),
            breach=min(broken, key=lambda probe: probe.concurrency, default=None),
        )

    def _held(self, found: Bearable) -> list[Held]:
        least = self.asked.min_concurrency
        if least is None:
            return []
        one = hold("bearable concurrency", found.concurrency, ">=", least)
        if one.word is Word.BROKEN and found.breach:
            reason = f"{one.reason}; {found.breach.concurrency} at once: {found.breach.reason}"
            return [msgspec.structs.replace(one, reason=reason)]
        borne = any(probe.bearable and probe.sure and probe.concurrency >= least for probe in self.probes)
        if one.word is Word.OK and not borne:
            reason = f"{one.reason}, but the runs were too short to be sure; raise requests or repeats"
            return [msgspec.structs.replace(one, word=Word.UNSURE, reason=reason)]
        return [one]

    def _hints(self) -> tuple[str, ...]:
        """What the greatest load suggests."""
        greatest = max(self.parts, key=lambda part: part.trial.run.workload.clients, default=None)
        return greatest.verdict.hints if greatest else ()

    def _trial(self, verdict: Verdict, found: Bearable) -> Trial:
        loads = tuple(load for part in self.parts for load in part.trial.loads)
        return Trial(verdict, loads, (found, *beside(self.parts)))


def _measured(trial: Trial) -> Trial:
    """Return the trial of a probe as no judgement: that every request fails is what the search is there to find."""
    verdict = msgspec.structs.replace(trial.verdict, word=Word.OK, reason="measured, not judged")
    return Trial(verdict, trial.loads, trial.findings)


def _summary(found: Bearable) -> str:
    """Say in one line what was found."""
    breach = found.breach
    if breach is None:
        return f"{found.concurrency} at once are bearable, and no more were tried (maximum={found.maximum})"
    what = f"{found.concurrency} at once are bearable" if found.concurrency else "not even one client is bearable"
    unsure = "" if found.sure else " (too short to be sure)"
    return f"{what}{unsure}; {breach.concurrency} at once: {breach.reason}"


def known_words() -> tuple[str, ...]:
    """Every word the marker takes: those of a load but its pace, and a search's own."""
    return tuple(word for word in (*load_words(), *OWN_WORDS) if word not in _NOT_HERE)


def read(words: Mapping[str, Any], settings: Settings) -> MaxConcurrencyTest:
    """Read the marker's words; ``ConfigError`` says what is wrong with them."""
    for word in _NOT_HERE:
        if word in words:
            raise ConfigError(f"{word}={shown(words[word])}: the search sets the pace itself; give start and maximum")
    own = {word: value for word, value in words.items() if word in OWN_WORDS}
    load = {word: value for word, value in words.items() if word not in OWN_WORDS} | _limits(own, words)
    spec = load_spec({**load, "concurrency": 1}, default_model=settings.model)
    _check_criteria(spec)
    start, maximum = _whole(own, "start", 1), _whole(own, "maximum", _MAXIMUM)
    if start > maximum:
        raise ConfigError(f"start={start}: it is above maximum={maximum}")
    least = _whole(own, "min_concurrency", 1) if "min_concurrency" in own else None
    if least is not None and least > maximum:
        raise ConfigError(f"min_concurrency={least}: it is above maximum={maximum}; raise maximum")
    return MaxConcurrencyTest(
        words=load,
        spec=spec,
        start=start,
        maximum=maximum,
        repeats=_whole(own, "repeats", _REPEATS),
        min_concurrency=least,
        default_model=settings.model,
    )


def _limits(own: Mapping[str, Any], words: Mapping[str, Any]) -> dict[str, Any]:
    """Return a search's own limits as words of a load: ``max_latency`` limits the P95, ``success_rate`` the errors."""
    found = {_SHORT[word]: value for word, value in own.items() if word in _SHORT}
    for word, long in _SHORT.items():
        if word in own and long in words:
            raise ConfigError(f"{word} and {long} are the same limit: give one of them")
    if "max_error_rate" in words:
        if "success_rate" in own:
            raise ConfigError("success_rate and max_error_rate are the same limit: give one of them")
        return found
    given = own.get("success_rate", _SUCCESS)
    share = parse_percent(given, f"success_rate={shown(given)}")
    if share > 1:
        raise ConfigError(f"success_rate={shown(given)}: expected a share up to 1, or a percentage up to 100%")
    return found | {"max_error_rate": round(1 - share, 9)}


def _check_criteria(spec: LoadSpec) -> None:
    for limit in spec.limits:
        if METRICS[limit.metric].shape is Shape.PER_RUN and limit.metric != "error_rate":
            raise ConfigError(
                f"{limit.text}: {limit.metric} is what the server makes for all, not what one client bears; "
                "use max_latency, max_ttft, min_tps or another limit on a single request"
            )


def _whole(own: Mapping[str, Any], word: str, default: int) -> int:
    value = own.get(word, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{word}={shown(value)}: expected a whole number from 1")
    return value
