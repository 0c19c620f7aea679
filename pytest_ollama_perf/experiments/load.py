"""The plain load: the marker ``ollama_load``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from pytest_ollama_perf.analysis import BoundCheck, Finding
from pytest_ollama_perf.client.waiting import call_with_ticks
from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.config.load_spec import LoadSpec, build_load_spec, list_option_names
from pytest_ollama_perf.core import ServerError
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.verdict import Problem, ProblemCode, Verdict, VerdictRow, VerdictStatus, get_worst_status
from pytest_ollama_perf.core.workload import Timeouts, Workload
from pytest_ollama_perf.experiments.results import EvaluationRecorder, LoadResult, Measure
from pytest_ollama_perf.harness import Harness, ProgressListener
from pytest_ollama_perf.harness.evaluation import Evaluation, ExperimentContext, run_load
from pytest_ollama_perf.harness.history import count_gating_pairs
from pytest_ollama_perf.harness.servers import TargetServer

__all__ = ["LoadTest", "list_option_names", "parse_options"]


@dataclass(frozen=True)
class LoadTest:
    """One load, judged by its limits and its history."""

    spec: LoadSpec

    @property
    def models(self) -> tuple[str, ...]:
        """The models that the load needs."""
        return (self.spec.workload.model,)

    @property
    def gating(self) -> int:
        """The number of pairs (test, metric) that history can gate."""
        return count_gating_pairs(self.spec.margins)

    def run(self, context: ExperimentContext, test: str) -> Evaluation:
        """Run the load, again if the verdict needs it."""
        return run_load(context, self.spec, test)

    def result(self, recorder: EvaluationRecorder, test: str, measure: Measure) -> LoadResult:
        """Return the value of the fixture ``ollama_load``."""
        return LoadResult(recorder, test, measure)


def parse_options(options: Mapping[str, Any], settings: Settings) -> LoadTest:
    """Parse the marker's arguments; ``ConfigError`` explains what is wrong with them."""
    return LoadTest(build_load_spec(options, default_model=settings.model))


def warm_up(
    harness: Harness,
    models: Sequence[str],
    listener: ProgressListener,
    *,
    num_ctx: int | None = None,
    keep_alive: str | float = "1h",
    timeout_s: float | None = None,
) -> dict[str, float]:
    """Load ``models`` on every server and return how many seconds each took there, the slowest server's.

    A model that is loaded already takes milliseconds and gets the new ``keep_alive``. Pass the same ``num_ctx`` as the
    loads do: with a different one the server reloads the model at the first request.

    Raises:
        ServerError: a model cannot be loaded, or one is gone again when the last was loaded.
    """
    names = [harness.resolve_workload(Workload(model=model)).model for model in models or ("",)]
    harness.remember_models()
    took: dict[str, float] = {}
    for model in names:
        for server in harness.servers:
            seconds = _load_model(server, model, listener, num_ctx, keep_alive, timeout_s)
            took[model] = max(seconds, took.get(model, 0.0))
    for server in harness.servers:
        _check_all_loaded(server, names)
    return took


def _load_model(
    server: TargetServer,
    model: str,
    listener: ProgressListener,
    num_ctx: int | None,
    keep_alive: str | float,
    timeout_s: float | None,
) -> float:
    server.control.get_installed(model)
    listener.show_message(f"warming up {model}")
    return call_with_ticks(
        lambda: server.control.load(
            model, keep_alive=keep_alive, num_ctx=num_ctx, timeout_s=timeout_s or Timeouts().total_s
        ),
        lambda seconds: listener.show_message(f"warming up {model} ...", time=f"{seconds:.0f} s"),
    )


def _check_all_loaded(server: TargetServer, models: Sequence[str]) -> None:
    for model in models:
        if server.control.find_running(model) is None:
            others = ", ".join(sanitize(other, 60) for other in models if other != model)
            raise ServerError(
                f"warm_up: {sanitize(model, 60)} is no longer loaded on {server.name} once {others or 'it'} is; the "
                "server keeps fewer loaded (OLLAMA_MAX_LOADED_MODELS, memory): warm up fewer, or one before each test"
            )


@dataclass(frozen=True)
class ExperimentPart:
    """One judged load and its position in the experiment: ``concurrency 4``."""

    where: str
    evaluation: Evaluation

    @property
    def verdict(self) -> Verdict:
        """The verdict on this part."""
        return self.evaluation.verdict


def combine_verdicts(parts: Sequence[ExperimentPart], *, summary: str, checks: Sequence[BoundCheck] = ()) -> Verdict:
    """Return the verdict on all parts and the limits ``checks`` against what they show together.

    The most severe status counts; ``summary`` is the reason if nothing is wrong. Rows which only say that no request
    failed are omitted, because the table of the experiment shows it. Hints are those of the last part, which had the
    highest load.
    """
    word = get_worst_status((*(part.verdict.status for part in parts), *(each.status for each in checks)))
    return Verdict(
        status=word,
        reason=_build_reason(word, parts, checks) or summary,
        rows=tuple(_list_rows(parts)),
        problems=tuple(_list_problems(parts)),
        hints=parts[-1].verdict.hints if parts else (),
        changed=tuple(dict.fromkeys(change for part in parts for change in part.verdict.changed)),
        accept=next((part.verdict.accept for part in parts if part.verdict.accept), ""),
        stored=max((part.verdict.stored for part in parts if part.verdict.stored is not None), default=None),
    )


def find_last_findings(parts: Sequence[ExperimentPart]) -> tuple[Finding, ...]:
    """Return the findings of the last load that has some, such as how several servers shared it."""
    return next((part.evaluation.findings for part in reversed(parts) if part.evaluation.findings), ())


def _build_reason(word: VerdictStatus, parts: Sequence[ExperimentPart], checks: Sequence[BoundCheck]) -> str:
    """Return the first reason as grave as ``status``; what a whole experiment promised speaks before its parts."""
    if word is VerdictStatus.OK:
        return ""
    reasons = [each.reason for each in checks if each.status is word]
    reasons += [f"{part.where}: {part.verdict.reason}" for part in parts if part.verdict.status is word]
    more = len(reasons) - 1
    return reasons[0] + (f" (and {more} more)" if more else "")


def _list_rows(parts: Sequence[ExperimentPart]) -> Iterable[VerdictRow]:
    for part in parts:
        for row in part.verdict.rows:
            if row.metric != "error_rate" or row.status is not VerdictStatus.OK:
                yield msgspec.structs.replace(row, where=part.where)


def _list_problems(parts: Sequence[ExperimentPart]) -> Iterable[Problem]:
    """Yield each problem once, with the places that have it in common."""
    found: dict[tuple[ProblemCode, bool], list[tuple[str, Problem]]] = {}
    for part in parts:
        for problem in part.verdict.problems:
            found.setdefault((problem.code, problem.invalidates), []).append((part.where, problem))
    for several in found.values():
        where, problem = several[0]
        more = f" (and at {len(several) - 1} more levels)" if len(several) > 2 else ""
        more = f" (and {several[1][0]})" if len(several) == 2 else more
        yield msgspec.structs.replace(problem, text=f"{where}: {problem.text}{more}")
