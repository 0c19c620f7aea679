"""A/B: two servers, models or option sets measured in turn, in blocks A B B A. The marker ``ollama_ab``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import msgspec

from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.experiment.result import Host
from pytest_ollama_perf.finding.comparison import Comparison, compare
from pytest_ollama_perf.fleet import Server, place
from pytest_ollama_perf.marks import WORDS, LoadSpec, load_spec
from pytest_ollama_perf.metric import PERCENTILES
from pytest_ollama_perf.report.facts import public_url
from pytest_ollama_perf.report.result import LoadResult
from pytest_ollama_perf.run import Run, Watch
from pytest_ollama_perf.settings import Settings
from pytest_ollama_perf.trial import Lab, Trial, judge
from pytest_ollama_perf.verdict.ab import LOOKS, ORDER, REQUESTS_PER_SIDE
from pytest_ollama_perf.verdict.epoch import changes
from pytest_ollama_perf.verdict.run_value import POLICIES
from pytest_ollama_perf.verdict.words import Problem, Row, Verdict, Word
from pytest_ollama_perf.words import did_you_mean, shown
from pytest_ollama_perf.workload import Workload

SIDES = ("baseline", "candidate")
JUDGING = ("max_regression", "max_error_rate")
TURNS = 2
"""How often each side has its turn in a block."""

REQUESTS_PER_CLIENT = 2
"""Requests of one client in one turn, at least: the first wave alone is not the load that was asked for."""


@dataclass(frozen=True)
class Side:
    """One of the two: its load in one turn, and the server where it is not one of those under test.

    ``own`` holds the words that tell it from the other side.
    """

    name: str
    spec: LoadSpec
    url: str | None
    own: Mapping[str, Any]


@dataclass(frozen=True)
class ABTest:
    """Two sides measured in turn until the difference is known, or the last look is over."""

    baseline: Side
    candidate: Side

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(side.spec.workload.model for side in (self.baseline, self.candidate)))

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers of the sides that have some of their own."""
        return tuple(side.url for side in (self.baseline, self.candidate) if side.url is not None)

    @property
    def gating(self) -> int:
        """Nothing: the baseline is measured, not remembered."""
        return 0

    def conduct(self, lab: Lab, test: str) -> Trial:
        """Measure block after block; look after 4, 6, 8 and 12."""
        return _Session(self, lab, test).conduct()

    def present(self, host: Host, test: str, trial: Trial) -> ABResult:
        """Return the result that the fixture ``ollama_ab`` stands for."""
        return ABResult(trial)


class ABResult:
    """Two sides compared. Every compared metric is an attribute: ``ab.tps.change`` is the candidate's relative change,
    ``ab.tps.low`` and ``.high`` the ends of its 95 % interval, ``ab.tps.baseline`` and ``.value`` the two numbers."""

    def __init__(self, trial: Trial) -> None:
        self.verdict: Verdict = trial.verdict
        self.comparison: Comparison | None = next((one for one in trial.findings if isinstance(one, Comparison)), None)
        self.loads: tuple[LoadResult, ...] = trial.loads

    @property
    def blocks(self) -> int:
        """How many blocks were measured."""
        return self.comparison.blocks if self.comparison else 0

    def change(self, name: str) -> Row:
        """Return the row of one number, such as ``tps`` or ``ttft.p50``."""
        rows = {f"{row.metric}.{row.stat}".rstrip("."): row for row in self.comparison.rows} if self.comparison else {}
        if name not in rows:
            has = ", ".join(rows) or "nothing"
            raise AttributeError(f"'{name}' was not compared{did_you_mean(name, rows)} ({has} was)")
        return rows[name]

    def __getattr__(self, name: str) -> Row:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.change(name)

    def __repr__(self) -> str:
        return f"<ABResult {self.verdict.word.value}: {self.verdict.reason}>"


def known_words() -> tuple[str, ...]:
    """Every word the marker takes."""
    return (*SIDES, *(word for word in WORDS if word != "duration"), *JUDGING)


def read(words: Mapping[str, Any], settings: Settings) -> ABTest:
    """Read the marker's words; ``ConfigError`` says what is wrong with them."""
    _refuse_unknown(words)
    own = {side: _side_words(side, words.get(side, {})) for side in SIDES}
    if not any(side in words for side in SIDES) and not settings.baseline_url:
        raise ConfigError(
            "what is to be compared? Give baseline={...} and candidate={...}, each with words such as model, options "
            "or url, or the server to compare with: --ollama-baseline-url"
        )
    common = {word: value for word, value in words.items() if word not in SIDES}
    baseline, candidate = (_side(side, common, own[side], settings) for side in SIDES)
    _refuse_margins(candidate.spec)
    return ABTest(baseline, candidate)


def _refuse_unknown(words: Mapping[str, Any]) -> None:
    known = known_words()
    for word in words:
        if word == "duration":
            raise ConfigError("duration: a comparison counts requests, so that both sides do the same; give requests")
        if word.startswith(("min_", "max_")) and word not in known:
            raise ConfigError(f"{word}: a comparison has no absolute limits, ollama_load has; give max_regression='5%'")
        if word not in known:
            raise ConfigError(f"unknown word '{word}'{did_you_mean(word, known)} (valid: {', '.join(known)})")


def _side_words(side: str, given: object) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{side}={shown(given)}: expected a mapping of words such as {{'model': 'llama3.2:3b'}}")
    valid = ("url", *(word for word in WORDS if word not in {"requests", "duration"}))
    for word in given:
        if word in {"requests", *JUDGING}:
            raise ConfigError(f"{side}: '{word}' holds for both sides; write it beside baseline and candidate")
        if word not in valid:
            near = did_you_mean(str(word), valid)
            raise ConfigError(f"{side}: unknown word {shown(word)}{near} (valid: {', '.join(valid)})")
    return dict(given)


def _side(name: str, common: Mapping[str, Any], own: Mapping[str, Any], settings: Settings) -> Side:
    url = own.get("url", settings.baseline_url if name == "baseline" else None)
    if url is not None:
        place(_url(name, url))
    merged = {word: value for word, value in {**common, **own}.items() if word != "url"}
    if "prompt" in own or "prompts" in own:
        merged = {word: value for word, value in merged.items() if word not in {"prompt", "prompts"} or word in own}
    try:
        spec = load_spec({**merged, "requests": 1}, default_model=settings.model)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}" if own else str(error)) from None
    turn = _requests(common.get("requests"), spec.workload.clients) // TURNS
    return Side(name, msgspec.structs.replace(spec, workload=_of_turn(spec.workload, turn)), url, own)


def _of_turn(workload: Workload, requests: int) -> Workload:
    return msgspec.structs.replace(workload, requests=requests)


def _url(side: str, url: object) -> str:
    if not isinstance(url, str) or not url.strip():
        raise ConfigError(f"{side}: url={shown(url)}: expected a server such as 'http://gpu-box:11434'")
    return url


def _requests(given: object, clients: int) -> int:
    """Return how many requests of a side a block holds: at least eight, and two of every client in each turn."""
    if given is None:
        return max(REQUESTS_PER_SIDE, TURNS * REQUESTS_PER_CLIENT * clients)
    if isinstance(given, bool) or not isinstance(given, int) or given < TURNS or given % TURNS:
        raise ConfigError(
            f"requests={shown(given)}: expected an even number from {TURNS}: so many a side and block, half of them in "
            "each of the side's two turns"
        )
    return given


def _refuse_margins(spec: LoadSpec) -> None:
    requests = TURNS * (spec.workload.requests or 0)
    for name in spec.margins:
        if POLICIES[name].stat in PERCENTILES and (refusal := POLICIES[name].refusal(requests)):
            raise ConfigError(f"max_regression: {refusal.replace('a run', 'a side and block')}")


class _Session:
    """One comparison under way: the runs of each side, turn by turn and block by block."""

    def __init__(self, asked: ABTest, lab: Lab, test: str) -> None:
        self._asked, self._lab, self._test = asked, lab, test
        self._sides = (asked.baseline, asked.candidate)
        self._servers = {side.name: self._of(side) for side in self._sides}
        self._loads: dict[str, list[LoadResult]] = {side.name: [] for side in self._sides}
        self._blocks: dict[str, list[list[Run]]] = {side.name: [] for side in self._sides}
        lab.found = self._found

    def _of(self, side: Side) -> Sequence[Server]:
        return self._lab.bench.servers if side.url is None else (self._lab.bench.server_at(side.url),)

    def conduct(self) -> Trial:
        """Measure up to each look until nothing is open; stop where the measuring itself went wrong."""
        more = LOOKS[0]
        while more:
            look = len(self._blocks["baseline"]) + more
            for _ in range(more):
                if not self._block(look):
                    return self._ended(self._spoiled() or self._failed())
            if spoiled := self._spoiled():
                return self._ended(spoiled)
            more = self._compared().more
        return self._ended(self._verdict(self._compared()))

    def _block(self, look: int) -> bool:
        """Measure one block; ``False`` where a turn had no success, so that more of them would tell nothing."""
        number = len(self._blocks["baseline"]) + 1
        turns: dict[str, list[Run]] = {side.name: [] for side in self._sides}
        last: Side | None = None
        for letter in ORDER:
            side = self._sides["AB".index(letter)]
            load = self._turn(side, last, f"block {number} of {look}")
            self._loads[side.name].append(load)
            turns[side.name].append(load.run)
            last = side
            if not load.summary.ok:
                return False
        for name, runs in turns.items():
            self._blocks[name].append(runs)
        return True

    @property
    def _is_shared(self) -> bool:
        here, there = (self._servers[side.name] for side in self._sides)
        return bool({server.address.url for server in here} & {server.address.url for server in there})

    def _turn(self, side: Side, last: Side | None, where: str) -> LoadResult:
        """Every turn starts from a fresh load: a turn right after one is not like a turn of a model that has rested."""
        lab, servers = self._lab, self._servers[side.name]
        if self._is_shared and last is not side:
            self._make_room(side)
        watched = lab.captioned(f"{where}, {side.name}")
        return watched.fire(side.spec.workload, self._test, fresh=True, servers=servers).loads[0]

    def _make_room(self, side: Side) -> None:
        """Unload the other side's model, which would take memory from this one."""
        other = next(one for one in self._sides if one is not side)
        model = self._lab.bench.completed(other.spec.workload, self._servers[other.name]).model
        for server in self._servers[side.name]:
            server.control.unload(model)

    def _compared(self) -> Comparison:
        baseline, candidate = (self._blocks[side.name] for side in self._sides)
        names = _told_apart(self._sides, [self._named(side) for side in self._sides])
        requests = TURNS * (self._asked.candidate.spec.workload.requests or 0)
        return compare(baseline, candidate, self._asked.candidate.spec.margins, requests=requests, names=names)

    def _named(self, side: Side) -> str:
        return ", ".join(public_url(server.name) for server in self._servers[side.name])

    def _found(self) -> tuple[Comparison, ...]:
        return (self._compared(),) if self._blocks["baseline"] else ()

    def _spoiled(self) -> Verdict | None:
        """Return the verdict of the first side that could not be measured or failed requests, its runs taken together:
        a single turn has too few requests to say so."""
        for side in self._sides:
            verdict = self._judged(side).verdict
            if verdict.word in {Word.INVALID, Word.BROKEN}:
                return msgspec.structs.replace(verdict, reason=f"{side.name}: {verdict.reason}")
        return None

    def _judged(self, side: Side) -> Trial:
        runs = [load.run for load in self._loads[side.name]]
        return judge(pooled(runs), side.spec.limits, strict=False) if runs else Trial(Verdict(word=Word.OK, reason=""))

    def _failed(self) -> Verdict:
        """A whole turn without a success that the limits allow is no comparison either."""
        return Verdict(word=Word.INVALID, reason="every request of a turn failed, so there is nothing to compare")

    def _verdict(self, found: Comparison) -> Verdict:
        before, after = (self._blocks[side.name][-1][-1].fingerprint for side in self._sides)
        return Verdict(
            word=found.word,
            reason=found.reason,
            problems=(*self._problems(), *_sameness(self._sides, self._is_shared)),
            changed=tuple(map(str, changes(before, after))),
        )

    def _problems(self) -> list[Problem]:
        return [
            msgspec.structs.replace(problem, text=f"{side.name}: {problem.text}")
            for side in self._sides
            for problem in self._judged(side).verdict.problems
        ]

    def _ended(self, verdict: Verdict) -> Trial:
        loads = tuple(load for side in self._sides for load in self._loads[side.name])
        return Trial(self._lab.past.keep(verdict, self._records()), loads, self._found())

    def _records(self) -> list[Run]:
        """Every turn under the name of its side: history and trend then know how each of the two has run."""
        return [
            msgspec.structs.replace(load.run, test=f"{self._test} {side.name}")
            for side in self._sides
            for load in self._loads[side.name]
        ]


def pooled(runs: Sequence[Run]) -> Run:
    """Return the runs of one side as one, for checks that count requests; its times hold gaps, so it has no throughput.

    The client's own figures are the medians; the state after the load is that of the turn in which a model was gone.
    """
    watch = Watch(**{name: median(getattr(run.watch, name) for run in runs) for name in Watch.__struct_fields__})
    gone = (run for run in runs if not all(state.loaded for state in run.after.values()))
    return msgspec.structs.replace(
        runs[0],
        samples=tuple(sample for run in runs for sample in run.samples),
        after=next(gone, runs[-1]).after,
        watch=watch,
    )


def _told_apart(sides: Sequence[Side], servers: Sequence[str]) -> tuple[str, str]:
    """Say of each side what the other has not: ``model small``, ``num_ctx 2048``, the server where they differ."""
    words = [word for word in WORDS if any(word in side.own for side in sides)]
    texts = []
    for side, server in zip(sides, servers, strict=True):
        parts = [f"{word} {_shown(side.own[word])}" if word in side.own else f"{word} as usual" for word in words]
        texts.append(", ".join([*parts, *([f"at {server}"] if len(set(servers)) > 1 else [])]))
    return texts[0] or "the same", texts[1] or "the same"


def _shown(value: object) -> str:
    return value if isinstance(value, str) else shown(value, 60)


def _sameness(sides: Sequence[Side], shared: bool) -> list[Problem]:
    here, there = (msgspec.structs.replace(side.spec.workload, salt="") for side in sides)
    if here != there or not shared:
        return []
    text = "baseline and candidate are the same: whatever differs is noise"
    return [Problem(name="nothing to compare", text=text, spoils=False)]
