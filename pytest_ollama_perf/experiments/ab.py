"""A/B: two servers, models or option sets measured in turn, in blocks A B B A. The marker ``ollama_ab``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import msgspec

from pytest_ollama_perf.analysis.ab import BLOCK_ORDER, LOOKS, REQUESTS_PER_SIDE, ABComparison, compare_sides
from pytest_ollama_perf.analysis.epochs import compare_fingerprints
from pytest_ollama_perf.analysis.run_value import POLICIES
from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.config.load_options import LOAD_OPTIONS
from pytest_ollama_perf.config.load_spec import LoadSpec, build_load_spec
from pytest_ollama_perf.config.markers import MARKERS, SIDE_EXCLUDED_OPTIONS
from pytest_ollama_perf.config.value_types import MAX_NUMBER
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.run import ClientStats, Run
from pytest_ollama_perf.core.text import safe_repr, sanitize, suggest_match
from pytest_ollama_perf.core.verdict import Problem, ProblemCode, Verdict, VerdictStatus
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.experiments.experiment_results import ABResult
from pytest_ollama_perf.experiments.results import EvaluationRecorder, Measure
from pytest_ollama_perf.harness.evaluation import Evaluation, ExperimentContext, MeasuredLoad, evaluate_run
from pytest_ollama_perf.harness.servers import TargetServer, parse_target
from pytest_ollama_perf.metrics import PERCENTILES
from pytest_ollama_perf.report.facts import redact_url

SIDES = ("baseline", "candidate")
_JUDGING_OPTIONS = ("max_regression", "max_error_rate")
RUNS_PER_BLOCK = 2
"""How often each side has its turn in a block."""

MIN_REQUESTS_PER_CLIENT = 2
"""The minimum of requests per client and run: the first wave alone does not represent the load."""


@dataclass(frozen=True)
class ABSide:
    """One of the two sides: its load in one run, and its server if it is not one of those under test.

    ``own_options`` holds the arguments of this side only.
    """

    name: str
    spec: LoadSpec
    url: str | None
    own_options: Mapping[str, Any]


@dataclass(frozen=True)
class ABTest:
    """Two sides measured in turn until the difference is known, or the last look is over."""

    baseline: ABSide
    candidate: ABSide

    @property
    def models(self) -> tuple[str, ...]:
        """The models of both sides."""
        return tuple(dict.fromkeys(side.spec.workload.model for side in (self.baseline, self.candidate)))

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers of the sides that name one."""
        return tuple(side.url for side in (self.baseline, self.candidate) if side.url is not None)

    @property
    def gating(self) -> int:
        """Nothing: the baseline is measured, not remembered."""
        return 0

    def run(self, context: ExperimentContext, test: str) -> Evaluation:
        """Measure blocks, and compare after 4, 6, 8 and 12 of them."""
        return _ABRunner(self, context, test).run()

    def result(self, recorder: EvaluationRecorder, test: str, measure: Measure) -> ABResult:
        """Return the value of the fixture ``ollama_ab``."""
        return ABResult(measure)


def list_option_names() -> tuple[str, ...]:
    """Return every argument of the marker."""
    return MARKERS["ollama_ab"].list_option_names()


def parse_options(options: Mapping[str, Any], settings: Settings) -> ABTest:
    """Parse the marker's arguments; ``ConfigError`` explains what is wrong with them."""
    _reject_unknown(options)
    own = {side: _parse_side_options(side, options.get(side, {})) for side in SIDES}
    if not any(side in options for side in SIDES) and not settings.baseline_url:
        raise ConfigError(
            "nothing to compare: pass baseline={...} and candidate={...}, each with arguments such as model, options "
            "or url, or the server to compare with: --ollama-baseline-url"
        )
    common = {name: value for name, value in options.items() if name not in SIDES}
    baseline, candidate = (_build_side(side, common, own[side], settings) for side in SIDES)
    _reject_margins(candidate.spec)
    return ABTest(baseline, candidate)


def _reject_unknown(options: Mapping[str, Any]) -> None:
    known = list_option_names()
    for name in options:
        if name == "duration":
            raise ConfigError("duration: both sides must send the same number of requests; pass requests")
        if name.startswith(("min_", "max_")) and name not in known:
            raise ConfigError(f"{name}: a comparison has no absolute limits, ollama_load has; pass max_regression='5%'")
        if name not in known:
            given = sanitize(name)
            raise ConfigError(f"unknown argument '{given}'{suggest_match(name, known)} (valid: {', '.join(known)})")


def _parse_side_options(side: str, given: object) -> dict[str, Any]:
    read: Mapping[Any, Any] = MARKERS["ollama_ab"].own_options[side].parse(given)
    valid = ("url", *(name for name in LOAD_OPTIONS if name not in SIDE_EXCLUDED_OPTIONS))
    for name in read:
        if name in {"requests", *_JUDGING_OPTIONS}:
            raise ConfigError(f"{side}: '{name}' applies to both sides; pass it next to baseline and candidate")
        if name not in valid:
            near = suggest_match(str(name), valid)
            raise ConfigError(f"{side}: unknown argument {safe_repr(name)}{near} (valid: {', '.join(valid)})")
    return dict(read)


def _build_side(name: str, common: Mapping[str, Any], own: Mapping[str, Any], settings: Settings) -> ABSide:
    url = own.get("url", settings.baseline_url if name == "baseline" else None)
    if url is not None:
        parse_target(_parse_url(name, url))
    merged = {word: value for word, value in {**common, **own}.items() if word != "url"}
    if "prompt" in own or "prompts" in own:
        merged = {word: value for word, value in merged.items() if word not in {"prompt", "prompts"} or word in own}
    try:
        spec = build_load_spec({**merged, "requests": 1}, default_model=settings.model)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}" if own else str(error)) from None
    turn = _parse_requests(common.get("requests"), spec.workload.clients) // RUNS_PER_BLOCK
    return ABSide(name, msgspec.structs.replace(spec, workload=_replace_requests(spec.workload, turn)), url, own)


def _replace_requests(workload: Workload, requests: int) -> Workload:
    return msgspec.structs.replace(workload, requests=requests)


def _parse_url(side: str, url: object) -> str:
    if not isinstance(url, str) or not url.strip():
        raise ConfigError(f"{side}: url={safe_repr(url)}: expected a server such as 'http://gpu-box:11434'")
    return url


def _parse_requests(given: object, clients: int) -> int:
    """Return how many requests of a side a block holds: at least eight, and two of every client in each turn."""
    if given is None:
        return max(REQUESTS_PER_SIDE, RUNS_PER_BLOCK * MIN_REQUESTS_PER_CLIENT * clients)
    if (
        isinstance(given, bool)
        or not isinstance(given, int)
        or not RUNS_PER_BLOCK <= given <= MAX_NUMBER
        or given % RUNS_PER_BLOCK
    ):
        raise ConfigError(
            f"requests={safe_repr(given)}: expected an even number from {RUNS_PER_BLOCK}: requests per side and "
            "block, half of them in each of its two runs"
        )
    least = RUNS_PER_BLOCK * MIN_REQUESTS_PER_CLIENT * clients
    if clients > 1 and given < least:
        raise ConfigError(
            f"requests={given}: {clients} clients need at least {least} requests per side and block, "
            f"{MIN_REQUESTS_PER_CLIENT} per client and run"
        )
    return given


def _reject_margins(spec: LoadSpec) -> None:
    requests = RUNS_PER_BLOCK * (spec.workload.requests or 0)
    for name in spec.margins:
        if POLICIES[name].stat in PERCENTILES and (refusal := POLICIES[name].explain_refusal(requests)):
            raise ConfigError(f"max_regression: {refusal.replace('a run', 'a side and block')}")


class _ABRunner:
    """One comparison under way: the runs of each side, turn by turn and block by block."""

    def __init__(self, asked: ABTest, context: ExperimentContext, test: str) -> None:
        self._asked, self._context, self._test = asked, context, test
        self._sides = (asked.baseline, asked.candidate)
        self._servers = {side.name: self._select_servers(side) for side in self._sides}
        self._loads: dict[str, list[MeasuredLoad]] = {side.name: [] for side in self._sides}
        self._blocks: dict[str, list[list[Run]]] = {side.name: [] for side in self._sides}
        context.collect_findings = self._build_findings

    def _select_servers(self, side: ABSide) -> Sequence[TargetServer]:
        return self._context.harness.servers if side.url is None else (self._context.harness.open_server(side.url),)

    def run(self) -> Evaluation:
        """Measure until the comparison is conclusive or the last look is over; stop at an invalid measurement."""
        more = LOOKS[0]
        while more:
            look = len(self._blocks["baseline"]) + more
            for _ in range(more):
                if not self._measure_block(look):
                    return self._finish(self._find_spoiled_verdict() or self._build_failed_verdict())
            if spoiled := self._find_spoiled_verdict():
                return self._finish(spoiled)
            more = self._compare_sides().more
        return self._finish(self._build_verdict(self._compare_sides()))

    def _measure_block(self, look: int) -> bool:
        """Measure one block; ``False`` where a turn had no success, so that more would not help."""
        number = len(self._blocks["baseline"]) + 1
        turns: dict[str, list[Run]] = {side.name: [] for side in self._sides}
        last: ABSide | None = None
        for letter in BLOCK_ORDER:
            side = self._sides["AB".index(letter)]
            load = self._measure_run(side, last, f"block {number} of {look}")
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

    def _measure_run(self, side: ABSide, last: ABSide | None, where: str) -> MeasuredLoad:
        """Every turn starts from a fresh load: a turn right after one is not like a turn of a model that has rested."""
        context, servers = self._context, self._servers[side.name]
        if self._is_shared and last is not side:
            self._unload_other_model(side)
        watched = context.add_caption(f"{where}, {side.name}")
        return watched.fire(side.spec.workload, self._test, fresh=True, servers=servers).loads[0]

    def _unload_other_model(self, side: ABSide) -> None:
        """Unload the other side's model, which would take memory from this one."""
        other = next(one for one in self._sides if one is not side)
        model = self._context.harness.resolve_workload(other.spec.workload, self._servers[other.name]).model
        for server in self._servers[side.name]:
            server.control.unload(model)

    def _compare_sides(self) -> ABComparison:
        baseline, candidate = (self._blocks[side.name] for side in self._sides)
        names = _describe_differences(self._sides, [self._format_server_names(side) for side in self._sides])
        requests = RUNS_PER_BLOCK * (self._asked.candidate.spec.workload.requests or 0)
        return compare_sides(baseline, candidate, self._asked.candidate.spec.margins, requests=requests, names=names)

    def _format_server_names(self, side: ABSide) -> str:
        return ", ".join(redact_url(server.name) for server in self._servers[side.name])

    def _build_findings(self) -> tuple[ABComparison, ...]:
        return (self._compare_sides(),) if self._blocks["baseline"] else ()

    def _find_spoiled_verdict(self) -> Verdict | None:
        """Return the verdict of the first side that could not be measured or failed requests, its runs taken together:
        a single turn has too few requests to say so."""
        for side in self._sides:
            verdict = self._evaluate_side(side).verdict
            if verdict.status in {VerdictStatus.INVALID, VerdictStatus.BROKEN}:
                return msgspec.structs.replace(verdict, reason=f"{side.name}: {verdict.reason}")
        return None

    def _evaluate_side(self, side: ABSide) -> Evaluation:
        runs = [load.run for load in self._loads[side.name]]
        return (
            evaluate_run(pool_runs(runs), side.spec.limits, strict=False)
            if runs
            else Evaluation(Verdict(status=VerdictStatus.OK, reason=""))
        )

    def _build_failed_verdict(self) -> Verdict:
        """A whole turn without a success that the limits allow is no comparison either."""
        return Verdict(
            status=VerdictStatus.INVALID, reason="every request of a run failed, so there is nothing to compare"
        )

    def _build_verdict(self, found: ABComparison) -> Verdict:
        before, after = (self._blocks[side.name][-1][-1].fingerprint for side in self._sides)
        return Verdict(
            status=found.status,
            reason=found.reason,
            problems=(*self._list_problems(), *_list_sameness_problems(self._sides, self._is_shared)),
            changed=tuple(map(str, compare_fingerprints(before, after))),
        )

    def _list_problems(self) -> list[Problem]:
        return [
            msgspec.structs.replace(problem, text=f"{side.name}: {problem.text}")
            for side in self._sides
            for problem in self._evaluate_side(side).verdict.problems
        ]

    def _finish(self, verdict: Verdict) -> Evaluation:
        loads = tuple(load for side in self._sides for load in self._loads[side.name])
        return Evaluation(
            self._context.history.store_runs(verdict, self._list_records()), loads, self._build_findings()
        )

    def _list_records(self) -> list[Run]:
        """Every turn under the name of its side: history and trend then know how each of the two has run."""
        return [
            msgspec.structs.replace(load.run, test=f"{self._test} {side.name}")
            for side in self._sides
            for load in self._loads[side.name]
        ]


def pool_runs(runs: Sequence[Run]) -> Run:
    """Return the runs of one side as one, for checks that count requests; its times hold gaps, so it has no throughput.

    The client's own figures are the medians; the state after the load is that of the turn in which a model was gone.
    """
    watch = ClientStats(
        **{name: median(getattr(run.watch, name) for run in runs) for name in ClientStats.__struct_fields__}
    )
    gone = (run for run in runs if not all(state.loaded for state in run.after.values()))
    return msgspec.structs.replace(
        runs[0],
        samples=tuple(sample for run in runs for sample in run.samples),
        after=next(gone, runs[-1]).after,
        watch=watch,
    )


def _describe_differences(sides: Sequence[ABSide], servers: Sequence[str]) -> tuple[str, str]:
    """Say of each side what the other has not: ``model small``, ``num_ctx 2048``, the server where they differ."""
    options = [word for word in LOAD_OPTIONS if any(word in side.own_options for side in sides)]
    texts = []
    for side, server in zip(sides, servers, strict=True):
        parts = [
            f"{word} {_format_value(side.own_options[word])}" if word in side.own_options else f"{word} as usual"
            for word in options
        ]
        texts.append(", ".join([*parts, *([f"at {server}"] if len(set(servers)) > 1 else [])]))
    return texts[0] or "the same", texts[1] or "the same"


def _format_value(value: object) -> str:
    return value if isinstance(value, str) else safe_repr(value, 60)


def _list_sameness_problems(sides: Sequence[ABSide], shared: bool) -> list[Problem]:
    here, there = (msgspec.structs.replace(side.spec.workload, salt="") for side in sides)
    if here != there or not shared:
        return []
    text = "baseline and candidate are the same: any difference is noise"
    return [Problem(code=ProblemCode.NOTHING_TO_COMPARE, text=text, invalidates=False)]
