"""One clause of a contract: a limit on a number, or how much worse than its history the number may be."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_ollama_perf.analysis import FindingMetric
from pytest_ollama_perf.analysis.limits import EXAMPLE_BOUNDS, Limit, parse_limit
from pytest_ollama_perf.analysis.thresholds import judge_contract
from pytest_ollama_perf.config import read_margin
from pytest_ollama_perf.contracts.preconditions import Precondition, explain_violations
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.text import safe_repr
from pytest_ollama_perf.core.verdict import FAILING_STATUSES, Verdict, VerdictRow, VerdictStatus, get_worst_status
from pytest_ollama_perf.experiments import Experiment
from pytest_ollama_perf.experiments.load import LoadTest
from pytest_ollama_perf.experiments.results import EvaluationRecorder, Measure
from pytest_ollama_perf.harness.evaluation import Evaluation, ExperimentContext
from pytest_ollama_perf.metrics import METRICS

if TYPE_CHECKING:
    from pytest_ollama_perf.session import Session


DEFAULT_ERROR_CLAUSE = "error_rate <= 0%"
"""What every contract promises that says nothing else of errors."""

_REGRESSION = re.compile(r"\s*(?:(?P<stat>\w+)\s+)?regress\w*\s*(?P<op><=|>=|==|=|<|>)?\s*(?P<share>.*?)\s*")


@dataclass(frozen=True)
class Clause:
    """``name`` is how it reads, ``ttft p95 <= 300ms``; ``line`` its line, 0 for the implicit one.

    Exactly one of ``limit``, ``margin`` and ``finding_metric`` is set. A margin is a number's name, ``ttft.p95``,
    and a share; ``finding_metric`` is a number that an experiment finds.
    """

    name: str
    line: int
    limit: Limit | None = None
    margin: tuple[str, float] | None = None
    finding_metric: FindingMetric | None = None


def parse_clause(metric: str, stat: str, text: object, line: int = 0) -> Clause:
    """Read ``p95 <= 300ms`` or ``regression <= 20%`` of ``metric``; ``stat`` is what the key named, or nothing.

    Raises:
        ConfigError: it is no clause; the message says what would be one.
    """
    key = f"{metric}.{stat}" if stat else metric
    if not isinstance(text, str):
        raise ConfigError(
            f"{key} = {safe_repr(text)}: expected a text such as '{format_example(metric)}', or a list of such texts"
        )
    if match := _REGRESSION.fullmatch(text):
        return _parse_regression(metric, stat, match, text, line)
    limit = parse_limit(key, text)
    return Clause(" ".join(f"{metric} {stat} {text}".split()), line, limit=limit)


def _parse_regression(metric: str, stat: str, match: re.Match[str], text: str, line: int) -> Clause:
    written = f"{metric} = {safe_repr(text)}"
    if stat and match["stat"]:
        raise ConfigError(f"{written}: duplicate statistic: '{stat}' and '{match['stat']}'")
    if match["op"] != "<=" or not re.search(r"\bregression\b", text):
        raise ConfigError(f"{written}: write it as 'regression <= 20%'")
    stat = stat or match["stat"] or ""
    name, share = read_margin(f"{metric}.{stat}" if stat else metric, match["share"], written)
    return Clause(" ".join(f"{metric} {stat} regression <= {match['share']}".split()), line, margin=(name, share))


def format_example(metric: str) -> str:
    """Return a clause as it may be written for ``metric``."""
    found = METRICS[metric]
    stat = "p95 " if found.shape.value == "per request" else ""
    return f"{stat}{'>=' if found.is_higher_better else '<='} {EXAMPLE_BOUNDS[found.unit]}"


def suggest_clause(option: str) -> str:
    """Return how a limit argument, ``min_tps`` or ``max_p95_ttft``, is written in a contract."""
    side, _, rest = option.partition("_")
    metric = next((name for name in METRICS if rest == name or rest.endswith(f"_{name}")), "")
    if side not in {"min", "max"} or not metric:
        return ""
    stat = rest.removesuffix(metric).rstrip("_")
    clause = format_example(metric)
    return f"; write {metric} = '{clause.replace('p95', stat) if stat else clause}'"


class ClauseGroup(msgspec.Struct, frozen=True, kw_only=True):
    """``model`` and ``name`` identify it, ``llama3.2:3b`` and ``concurrency=4``; ``line`` is that of its table.

    ``experiment`` measures, with every limit of ``clauses``; ``require`` must hold before it begins.
    """

    model: str
    name: str
    line: int
    experiment: Experiment
    clauses: tuple[Clause, ...]
    preconditions: tuple[Precondition, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """The models it needs."""
        return self.experiment.models

    @property
    def gating(self) -> int:
        """How many numbers history may fail here: those with a regression clause."""
        return sum(clause.margin is not None for clause in self.clauses)

    def run(self, context: ExperimentContext, test: str) -> Evaluation:
        """Measure, unless a precondition is broken.

        Raises:
            OllamaPerfError: nothing could be measured.
        """
        context.precondition = self._explain_violations
        return self.experiment.run(context, test)

    def result(self, recorder: EvaluationRecorder, test: str, measure: Measure) -> Any:
        """Return the result of the experiment."""
        return self.experiment.result(recorder, test, measure)

    def _explain_violations(self, run: Run) -> str:
        return explain_violations(self.preconditions, run)


def judge_clause(clause: Clause, evaluation: Evaluation, experiment: Experiment, *, strict: bool) -> Verdict:
    """Return the verdict on one clause of ``evaluation``; if ``experiment`` was invalid, so is every clause."""
    if evaluation.verdict.status in {VerdictStatus.INVALID, VerdictStatus.ABORTED} or not evaluation.loads:
        return evaluation.verdict
    if clause.finding_metric or not isinstance(experiment, LoadTest):
        return _judge_experiment_clause(clause, evaluation)
    if clause.limit is not None:
        first = evaluation.loads[0]
        return judge_contract(first.run, first.summary, [clause.limit], strict=strict)
    return _judge_regression_clause(clause, evaluation)


def _judge_experiment_clause(clause: Clause, evaluation: Evaluation) -> Verdict:
    """Return what an experiment's own verdict holds of one clause; what no row explains speaks for every clause."""
    whole = evaluation.verdict
    checks = [each for found in evaluation.findings for each in getattr(found, "checks", ())]
    judged = [*((each.status, each.reason) for each in checks), *((row.status, row.reason) for row in whole.rows)]
    if whole.status in FAILING_STATUSES and not any(word in FAILING_STATUSES for word, _ in judged):
        return whole
    rows = tuple(row for row in whole.rows if _is_row_of_clause(row, clause))
    mine = [each for each in checks if each.metric is clause.finding_metric]
    found = [
        *((each.status, each.reason) for each in mine),
        *((row.status, f"{row.where}: {row.reason}") for row in rows),
    ]
    word = get_worst_status(tuple(word for word, _ in found))
    reason = next((reason for each, reason in found if each is word), f"{clause.name}: met throughout")
    return _build_clause_verdict(evaluation, word, reason, rows)


def _is_row_of_clause(row: VerdictRow, clause: Clause) -> bool:
    limit = clause.limit
    return limit is not None and (row.metric, row.stat, row.bound) == (limit.metric, limit.stat, limit.bound)


def _judge_regression_clause(clause: Clause, evaluation: Evaluation) -> Verdict:
    assert clause.margin is not None
    metric, _, stat = clause.margin[0].partition(".")
    compared = evaluation.comparison
    if compared is None:
        return _build_clause_verdict(
            evaluation, VerdictStatus.NEW, "no baseline yet: save some runs with --ollama-save"
        )
    found = [row for row in compared.rows if row.gating and (row.metric, row.stat) == (metric, stat)]
    if not found:
        return _build_clause_verdict(evaluation, compared.status, compared.reason)
    return _build_clause_verdict(evaluation, found[0].status, _build_reason(found[0], evaluation), (found[0],))


def _build_reason(row: VerdictRow, evaluation: Evaluation) -> str:
    """Return the row's own reason; that of the whole comparison, which explains the phases, if it is about the row."""
    compared = evaluation.comparison
    return compared.reason if compared and compared.speaker == (row.metric, row.stat) else row.reason


def _build_clause_verdict(
    evaluation: Evaluation, word: VerdictStatus, reason: str, rows: tuple[VerdictRow, ...] = ()
) -> Verdict:
    regressed = word is VerdictStatus.REGRESSED
    return msgspec.structs.replace(
        evaluation.verdict,
        status=word,
        reason=reason,
        rows=rows,
        accept=evaluation.verdict.accept if regressed else "",
        changed=evaluation.comparison.changed if evaluation.comparison and word is not VerdictStatus.OK else (),
    )


class SharedLoad:
    """One group of a contract file in one session. ``test`` is what its run is called in the history and in reports."""

    def __init__(self, session: Session, test: str, group: ClauseGroup) -> None:
        self.group = group
        self._session, self.test = session, test
        self._evaluation: Evaluation | None = None
        self._judged: set[str] = set()
        self._kept: dict[str, Evaluation] = {}

    def judge(self, clause: Clause, test: str) -> None:
        """Judge ``clause`` for the item ``test`` and fail the item if it is broken.

        A clause that is judged a second time is being run again, and so measured again.
        """
        if self._evaluation is None or clause.name in self._judged:
            self._evaluation = self._session.measure(self.group, self.test)
            self._judged.clear()
            self._kept = {name: Evaluation(kept.verdict) for name, kept in self._kept.items()}
        evaluation = replace(self._evaluation, verdict=self._judge_clause(clause, self._evaluation))
        # The loads and findings are reported once, with the verdicts of all clauses.
        self._kept[clause.name] = Evaluation(evaluation.verdict) if self._judged else evaluation
        self._judged.add(clause.name)
        self._session.replace(self.test, self._kept.values())
        self._session.raise_if_failed(test, evaluation)

    def _judge_clause(self, clause: Clause, evaluation: Evaluation) -> Verdict:
        return judge_clause(clause, evaluation, self.group.experiment, strict=self._session.settings.strict)
