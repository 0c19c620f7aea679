"""The history of a build: the stored runs of a test, the comparison of new runs with them, and what is stored."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone

import msgspec

from pytest_ollama_perf.analysis.drift import (
    MAX_VIEW_RUNS,
    REFERENCE_RUNS,
    DriftPoint,
    HistoryView,
    build_history_view,
    detect_drift,
)
from pytest_ollama_perf.analysis.epochs import (
    Acceptance,
    BaselineRuns,
    RunKind,
    StoredRuns,
    has_success,
    select_baseline,
)
from pytest_ollama_perf.analysis.gate import ErrorBudget, GateRule
from pytest_ollama_perf.analysis.regression import (
    TestVerdict,
    compare_phases,
    compute_phase_medians,
    explain_phases,
    judge_test,
    suggest_longer_runs,
)
from pytest_ollama_perf.analysis.run_value import GATING_METRICS, POLICIES, MetricPolicy, build_evidence
from pytest_ollama_perf.config import DEFAULT_STORE, Settings
from pytest_ollama_perf.core import StoreError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.core.verdict import (
    Hint,
    HintCode,
    Problem,
    ProblemCode,
    Verdict,
    VerdictRow,
    VerdictStatus,
    get_worst_status,
)
from pytest_ollama_perf.core.workload import Workload, compute_identity
from pytest_ollama_perf.metrics import format_percent
from pytest_ollama_perf.store import open_store
from pytest_ollama_perf.store.base import HISTORY_LIMIT, Store
from pytest_ollama_perf.store.files import escape_surrogates

REPORTED_METRICS = ("latency", "throughput")
"""Metrics that are shown, but do not affect the verdict."""


@dataclass(frozen=True)
class HistoryComparison:
    """New runs compared with the history: the parts of the verdict, whether one more run is needed, whether these look
    slower, and the view of the history for reports, if one is written. ``reason`` is about ``speaker``, a metric and
    statistic."""

    status: VerdictStatus
    reason: str
    rows: tuple[VerdictRow, ...]
    changed: tuple[str, ...]
    needs_more_runs: bool
    is_suspect: bool = False
    regressed_pairs: int = 0
    speaker: tuple[str, str] | None = None
    hints: tuple[Hint, ...] = ()
    history_view: HistoryView | None = None


class RunHistory:
    """The history of one build's tests.

    ``pairs`` is how many (test, metric) pairs of the build gate: they share the chance of a false alarm.
    """

    def __init__(self, settings: Settings, pairs: int) -> None:
        self._settings = settings
        self._store: Store = open_store(settings.store)
        self._error_budget = ErrorBudget(pairs)
        self.unsaved: list[str] = []
        self.damaged: dict[str, None] = {}
        self._completed: dict[bytes, StoredRuns] = {}

    def close(self) -> None:
        """Give back the store."""
        self._store.close()

    def load_runs(self, test: str, workload: Workload, baseline: str = "") -> StoredRuns:
        """Return the newest stored runs of the test's load, oldest first.

        ``baseline`` is the text with which the test accepts its performance; the setting of the same name is its
        default. If no stored acceptance has this text, the next runs start a new epoch.
        Older ones are read when a comparison needs them: only then it is known which runs are comparable.
        """
        history = self._store.read_history(test, identity=compute_identity(workload), limit=MAX_VIEW_RUNS)
        self.damaged |= dict.fromkeys(history.damaged)
        text = escape_surrogates(baseline or self._settings.baseline)
        is_known = any(one.why == text for one in history.acceptances)
        return history if is_known else msgspec.structs.replace(history, new_baseline=text)

    def _complete(self, history: StoredRuns, run: Run) -> StoredRuns:
        """Add the older runs that a comparison with ``run`` needs: its baseline, and the reference of its drift."""
        if len(history.runs) >= history.total:
            return history
        key = msgspec.json.encode((run.test, run.workload, run.fingerprint))
        if key not in self._completed:
            has_baseline = len(select_baseline(history, run, HISTORY_LIMIT).runs) == HISTORY_LIMIT
            newest = 0 if has_baseline else HISTORY_LIMIT
            self._completed[key] = self._store.read_comparable(run.test, run, first=REFERENCE_RUNS, newest=newest)
        older = self._completed[key]
        runs = {one.id: one for one in (*older.runs, *history.runs)}
        return msgspec.structs.replace(
            history,
            runs=tuple(sorted(runs.values(), key=lambda one: (one.started_at, one.id))),
            damaged=tuple(dict.fromkeys((*history.damaged, *older.damaged))),
        )

    def is_active_for(self, history: StoredRuns) -> bool:
        """Whether this test is to be judged by history: there is some, or it is to be made or required."""
        return bool(history.runs or history.damaged or self._settings.save or self._settings.require_baseline)

    def compare(
        self,
        history: StoredRuns,
        runs: Sequence[Run],
        margins: Mapping[str, float],
        gating: Sequence[str] | None = None,
    ) -> HistoryComparison:
        """Judge ``runs``, each of a freshly loaded model, against the runs they may be compared with.

        ``gating`` names the numbers that may fail, where they are not the usual ones and those with ``margins``.
        """
        if gating is not None and not gating:
            return HistoryComparison(VerdictStatus.OK, "", (), (), needs_more_runs=False)
        history = _start_epoch(self._complete(history, runs[0]), runs)
        found = self._compare_runs(history, runs, margins, gating)
        return replace(found, history_view=build_history_view(history, runs)) if self._settings.reports else found

    def _compare_runs(
        self, history: StoredRuns, runs: Sequence[Run], margins: Mapping[str, float], gating: Sequence[str] | None
    ) -> HistoryComparison:
        if history.unreadable_acceptances:
            return _build_invalid(
                f"the baseline is unknown because an acceptance cannot be read: {history.unreadable_acceptances[0]}"
            )
        baseline = select_baseline(history, runs[0], HISTORY_LIMIT)
        if not baseline.runs:
            return _build_uncompared(history, baseline)
        stored, fresh = [build_evidence(run) for run in baseline.runs], [build_evidence(run) for run in runs]
        everywhere = self._settings.margins
        names = (
            _select_gating_metrics(runs[0], {**everywhere, **margins}, asked=margins)
            if gating is None
            else list(gating)
        )
        found = judge_test(
            stored,
            fresh,
            names,
            margins={**everywhere, **margins},
            max_runs=self._settings.max_runs,
            family=self._error_budget,
        )
        beside = judge_test(stored, fresh, [name for name in REPORTED_METRICS if name not in names], margins=everywhere)
        return HistoryComparison(
            status=found.status,
            reason=_build_reason(found, baseline, runs),
            rows=(*(metric.row for metric in found.metrics), *_list_reported_rows(beside)),
            changed=tuple(map(str, baseline.changed)) if found.status is not VerdictStatus.OK else (),
            needs_more_runs=found.again,
            is_suspect=found.suspect,
            regressed_pairs=sum(metric.status is VerdictStatus.REGRESSED for metric in found.metrics),
            speaker=(found.speaker.row.metric, found.speaker.row.stat) if found.speaker else None,
            hints=(
                *(_explain_unused_margins(runs[0], everywhere, names) if gating is None else ()),
                *suggest_longer_runs(found),
            ),
        )

    def apply_comparison(
        self, verdict: Verdict, compared: HistoryComparison, runs: Sequence[Run], history: StoredRuns
    ) -> Verdict:
        """Store the runs if enabled, and return the verdict with the result of the comparison."""
        self._error_budget = self._error_budget.spend(compared.regressed_pairs)
        history = _start_epoch(self._complete(history, runs[0]), runs)
        self.damaged |= dict.fromkeys(history.damaged)
        whole = _merge_verdicts(
            verdict, compared, len(select_baseline(history, runs[0], HISTORY_LIMIT).runs), _list_damage(history)
        )
        if compared.status is VerdictStatus.REGRESSED:
            whole = msgspec.structs.replace(
                whole,
                accept=self._format_accept_command(runs[0].test),
                hints=(*whole.hints, *self._suggest_baseline_option()),
            )
        whole = msgspec.structs.replace(whole, hints=(*whole.hints, *compared.hints, *find_drift(history, runs)))
        # Regressed runs are quarantined; a broken limit does not change that.
        kind = RunKind.REGRESSED if compared.status is VerdictStatus.REGRESSED else RunKind.SAVED
        return self._store_epoch(self.store_runs(whole, runs, kind), history, runs)

    def _store_epoch(self, verdict: Verdict, history: StoredRuns, runs: Sequence[Run]) -> Verdict:
        """Store the acceptance that the code asks for together with its runs."""
        if not (history.new_baseline and self._settings.save and verdict.is_usable and any(map(has_success, runs))):
            return verdict
        try:
            self._store.add_acceptance(history.acceptances[-1])
        except StoreError as error:
            self.unsaved.append(str(error))
            return _add_unsaved(verdict, str(error))
        return verdict

    def store_runs(self, verdict: Verdict, runs: Sequence[Run], kind: RunKind = RunKind.SAVED) -> Verdict:
        """Store valid runs with a successful request, if enabled; the verdict names what could not be stored."""
        if not self._settings.save or not verdict.is_usable:
            return verdict
        kept = [run for run in runs if has_success(run)]
        if len(kept) < len(runs):
            verdict = _add_unsaved(verdict, "no request of this run succeeded, so it cannot be a baseline")
        try:
            for run in kept:
                self._store.add(run, kind)
        except StoreError as error:
            self.unsaved.append(str(error))
            return _add_unsaved(verdict, str(error))
        return verdict

    def _suggest_baseline_option(self) -> tuple[Hint, ...]:
        """Say how to accept a regression whose runs are not stored, so that the command has nothing to accept."""
        if self._settings.save:
            return ()
        text = (
            f'these runs are not saved in {self._store.name}: to accept the change, set baseline="..." on the test; '
            "the command accept needs a history with the runs of a build with --ollama-save"
        )
        return (Hint(code=HintCode.RUNS_NOT_SAVED, text=text),)

    def _format_accept_command(self, test: str) -> str:
        # A database's name lacks its credentials, and so would not open it.
        named = "<as --ollama-store>" if "://" in self._settings.store else shlex.quote(self._settings.store)
        where = "" if self._settings.store == DEFAULT_STORE else f" --store {named}"
        return f'pytest-ollama-perf accept {shlex.quote(test)} --why "..."{where}'


def count_gating_pairs(margins: Mapping[str, float]) -> int:
    """Return how many metrics of a test gate when it has these margins."""
    return len({*GATING_METRICS, *margins})


def find_drift(history: StoredRuns, runs: Sequence[Run]) -> tuple[Hint, ...]:
    """Return a warning for each gating metric that has drifted away from the first runs of its epoch."""
    whole = [*select_baseline(history, runs[0]).runs, *runs]
    readings = [build_evidence(run) for run in whole]
    warnings = []
    for name in GATING_METRICS:
        one = POLICIES[name]
        found = detect_drift(
            (DriftPoint(run.started_at, each.compute_cost(one)) for run, each in zip(whole, readings, strict=True)),
            GateRule.from_policy(one),
        )
        if found.warns and found.since is not None:
            text = (
                f"{name} drifts: {format_percent(found.slowdown)} slower than the first runs of this epoch, "
                f"since {_format_day(found.since)}; see pytest-ollama-perf trend"
            )
            warnings.append(Hint(code=HintCode.METRIC_DRIFT, text=text))
    return tuple(warnings)


def _start_epoch(history: StoredRuns, runs: Sequence[Run]) -> StoredRuns:
    """Return the history with a new epoch of ``runs`` if the code accepts them."""
    if not history.new_baseline or history.unreadable_acceptances:
        return history
    accepted = Acceptance(
        test=runs[0].test,
        at=min(run.started_at for run in runs),
        why=history.new_baseline,
        who="baseline option",
        runs=tuple(run.id for run in runs),
    )
    return msgspec.structs.replace(history, acceptances=(*history.acceptances, accepted))


def _build_invalid(reason: str) -> HistoryComparison:
    return HistoryComparison(VerdictStatus.INVALID, reason, (), (), needs_more_runs=False)


def _add_unsaved(verdict: Verdict, reason: str) -> Verdict:
    lost = Problem(code=ProblemCode.NOT_SAVED, text=reason, invalidates=False)
    return msgspec.structs.replace(verdict, problems=(*verdict.problems, lost))


def _build_uncompared(history: StoredRuns, baseline: BaselineRuns) -> HistoryComparison:
    """Nothing to compare with, for one of three reasons that must not be mistaken for each other."""
    changed = tuple(map(str, baseline.changed))
    if history.damaged and not history.runs:
        return _build_invalid(f"the history of this test cannot be read: {history.damaged[0]}")
    if history.new_baseline:
        return HistoryComparison(
            VerdictStatus.NEW,
            f"new baseline: {sanitize(history.new_baseline, 100)}",
            (),
            changed,
            needs_more_runs=False,
        )
    if baseline.is_incomparable:
        apart = ", ".join(str(change) for change in baseline.changed if change.separates)
        return HistoryComparison(
            VerdictStatus.INCOMPARABLE,
            f"no stored run may be compared with this one: {apart}",
            (),
            changed,
            needs_more_runs=False,
        )
    return HistoryComparison(
        VerdictStatus.NEW, "no baseline yet: save some runs with --ollama-save", (), (), needs_more_runs=False
    )


def _select_gating_metrics(run: Run, margins: Mapping[str, float], *, asked: Mapping[str, float]) -> list[str]:
    """Return the numbers that gate: those that always do where the run has them, and those given a margin.

    A margin set for all tests gates only where a run has requests enough; one on the test itself was checked with it.
    """
    evidence = build_evidence(run)
    return [
        name
        for name in dict.fromkeys([*GATING_METRICS, *margins])
        if name in asked
        or (_has_values(evidence.values(POLICIES[name].metric.name)) and not _explain_refusal(POLICIES[name], run))
    ]


def _explain_unused_margins(run: Run, everywhere: Iterable[str], gating: Sequence[str]) -> tuple[Hint, ...]:
    """Name each margin set for all tests that is ignored for this one, and why."""
    reasons = {
        name: _explain_refusal(POLICIES[name], run) or "the load does not have this metric"
        for name in everywhere
        if name not in gating
    }
    return tuple(
        Hint(code=HintCode.UNUSED_MARGIN, text=f"--ollama-margin {name} is ignored for this test: {reason}")
        for name, reason in reasons.items()
    )


def _has_values(values: Sequence[float]) -> bool:
    return len(values) > 0


def _explain_refusal(one: MetricPolicy, run: Run) -> str:
    return one.explain_refusal(len(run.measured))


def _list_reported_rows(found: TestVerdict) -> tuple[VerdictRow, ...]:
    return tuple(
        msgspec.structs.replace(metric.row, gating=False)
        for metric in found.metrics
        if metric.baseline is not None and metric.candidates
    )


def _build_reason(found: TestVerdict, baseline: BaselineRuns, runs: Sequence[Run]) -> str:
    if found.status is not VerdictStatus.REGRESSED:
        return found.reason
    before = [compute_phase_medians(run.measured) for run in baseline.runs]
    moved = explain_phases(compare_phases(before, [compute_phase_medians(run.measured) for run in runs]))
    return f"{found.reason}: {moved}" if moved else found.reason


def _merge_verdicts(verdict: Verdict, compared: HistoryComparison, stored: int, damage: tuple[Problem, ...]) -> Verdict:
    """Return the more severe verdict of limits and history; that of the limits if they are equal."""
    word = get_worst_status((verdict.status, compared.status))
    return msgspec.structs.replace(
        verdict,
        status=word,
        reason=compared.reason if compared.status is word and verdict.status is not word else verdict.reason,
        rows=(*verdict.rows, *compared.rows),
        changed=compared.changed,
        problems=(*verdict.problems, *damage),
        stored=stored,
    )


def _list_damage(history: StoredRuns) -> tuple[Problem, ...]:
    return tuple(Problem(code=ProblemCode.DAMAGED_HISTORY, text=text, invalidates=False) for text in history.damaged)


def _format_day(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d")
