"""What the blocks of an A/B comparison say: per metric the change with its interval, and one word for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import msgspec

from pytest_ollama_perf.finding import Finding
from pytest_ollama_perf.run import Run
from pytest_ollama_perf.verdict import ab
from pytest_ollama_perf.verdict.epoch import meaning_changes
from pytest_ollama_perf.verdict.evidence import of_run
from pytest_ollama_perf.verdict.phases import explain, moves, phase_medians
from pytest_ollama_perf.verdict.run_value import GATING, POLICIES, Policy, change, run_value, value
from pytest_ollama_perf.verdict.wording import count, label, percent, show_apart
from pytest_ollama_perf.verdict.words import Row, Word, worst

Blocks = Sequence[Sequence[Run]]
"""One side: for each block the runs of its turns."""

BESIDE = (*GATING, "latency", "throughput")
"""Numbers shown beside the judged ones, without a say."""

WITHOUT_TOKENS = "latency"
"""What decides where nothing generates: embeddings."""

SERVER_TIMED = frozenset({"tps", "prefill_tps", "tpot", "queue", "load_time"})
"""Metrics made of the server's own counters, whose meaning differs between versions of Ollama."""

_PRECISION = ab.DIFFERENCE / POLICIES["tps"].margin


class Comparison(Finding, frozen=True, kw_only=True):
    """Two sides measured in turn. ``baseline`` and ``candidate`` say what tells them apart.

    ``requests`` is how many of each side a complete block holds, ``more`` how many blocks the next look asks for (0:
    decided, or the last look is over). ``rows`` has one number each: ``baseline``, the candidate's ``value``, the
    relative ``change`` of the metric and its 95 % interval, which an unfinished comparison lacks.
    """

    word: Word
    reason: str
    baseline: str
    candidate: str
    blocks: int
    requests: int
    more: int
    rows: tuple[Row, ...]


def usual_margin(one: Policy) -> float:
    """Return the change that matters for a metric unless told otherwise: 3 % of tokens/s, and as much stricter than the
    margin against history for every other number, since both sides are measured in the same minutes."""
    return one.margin * _PRECISION


def compare(
    baseline: Blocks,
    candidate: Blocks,
    margins: Mapping[str, float],
    *,
    requests: int,
    names: tuple[str, str] = ("baseline", "candidate"),
) -> Comparison:
    """Compare two sides block by block; the numbers named in ``margins`` decide, or tokens/s and TTFT.

    Each deciding number gets its part of the error that ``ab.ALPHA`` allows (Bonferroni). Slower is ``regressed`` only
    where the interval reaches the margin: what is plainly slower by less than that is within it.
    """
    judged = [_difference(one, baseline, candidate, margins) for one in _deciding(margins, baseline, candidate)]
    level = ab.ALPHA / max(1, len(judged))
    rows = [difference.row(level, gating=True) for difference in judged]
    beside = [POLICIES[name] for name in BESIDE if name not in {difference.name for difference in judged}]
    shown = [_difference(one, baseline, candidate, {}) for one in beside]
    word = worst(tuple(row.word for row in rows)) if rows else Word.UNSURE
    undecided = [difference.found(level).more for difference, row in zip(judged, rows, strict=True) if _open(row)]
    return Comparison(
        word=word,
        reason=_reason(word, rows, baseline, candidate),
        baseline=names[0],
        candidate=names[1],
        blocks=len(baseline),
        requests=requests,
        more=0 if word is Word.REGRESSED else max(undecided, default=0),
        rows=(*rows, *(difference.row(ab.ALPHA, gating=False) for difference in shown if difference.known)),
    )


def _open(row: Row) -> bool:
    return row.word is Word.UNSURE


class _Difference(msgspec.Struct, frozen=True):
    """One number of both sides: its cost in every block. ``unlike`` says why it means something else on each side."""

    policy: Policy
    a: tuple[float, ...]
    b: tuple[float, ...]
    margin: float
    unlike: str

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def known(self) -> bool:
        """Whether both sides have the number in every block."""
        return bool(self.a) and not any(map(math.isnan, (*self.a, *self.b)))

    def found(self, alpha: float) -> ab.Comparison:
        return ab.compare(self.a, self.b, self.policy.prior_sd, self.margin, alpha)

    def row(self, alpha: float, *, gating: bool) -> Row:
        found = self.found(alpha)
        low, high = self._interval(found)
        now = _mean(self.b)
        return Row(
            metric=self.policy.metric.name,
            stat=self.policy.stat,
            word=self._word(found),
            value=value(self.policy, now),
            reason=self.unlike,
            baseline=value(self.policy, _mean(self.a)),
            change=change(self.policy, now - _mean(self.a)),
            low=low,
            high=high,
            margin=self.margin,
            gating=gating,
        )

    def _word(self, found: ab.Comparison) -> Word:
        if self.unlike:
            return Word.INCOMPARABLE
        return Word.OK if found.word is Word.REGRESSED and found.high < self.margin else found.word

    def _interval(self, found: ab.Comparison) -> tuple[float | None, float | None]:
        if math.isnan(found.low):
            return None, None
        ends = sorted(change(self.policy, math.log1p(end)) for end in (found.low, found.high))
        return ends[0], ends[1]


def _mean(costs: Sequence[float]) -> float:
    return math.fsum(costs) / len(costs) if costs else math.nan


def _difference(one: Policy, baseline: Blocks, candidate: Blocks, margins: Mapping[str, float]) -> _Difference:
    margin = margins.get(one.name, usual_margin(one))
    return _Difference(one, _costs(one, baseline), _costs(one, candidate), margin, _unlike(one, baseline, candidate))


def _costs(one: Policy, blocks: Blocks) -> tuple[float, ...]:
    """Return the cost of each block: that of all its requests together, whichever turn they were sent in."""
    name = one.metric.name
    return tuple(run_value(one, [number for run in turns for number in of_run(run).values(name)]) for turns in blocks)


def _deciding(margins: Mapping[str, float], baseline: Blocks, candidate: Blocks) -> list[Policy]:
    if margins:
        return [POLICIES[name] for name in margins]
    usual = [POLICIES[name] for name in GATING]
    known = [one for one in usual if _difference(one, baseline, candidate, {}).known]
    return known or [POLICIES[WITHOUT_TOKENS]]


def _unlike(one: Policy, baseline: Blocks, candidate: Blocks) -> str:
    if one.metric.name not in SERVER_TIMED or not baseline or not candidate:
        return ""
    return ", ".join(map(str, meaning_changes(baseline[0][0].fingerprint, candidate[0][0].fingerprint)))


def _reason(word: Word, rows: Sequence[Row], baseline: Blocks, candidate: Blocks) -> str:
    telling = [row for row in rows if row.word is word]
    if not telling:
        return "no complete block was measured"
    if word is Word.OK:
        return f"no change beyond the margin: {', '.join(map(_brief, telling))}"
    if word is Word.REGRESSED:
        moved = _moved(baseline, candidate)
        return f"{_whole(telling[0])}: {moved}" if moved else _whole(telling[0])
    return _REASONS.get(word, _all)(telling, len(baseline))


def _moved(baseline: Blocks, candidate: Blocks) -> str:
    sides = [[phase_medians(run.measured) for turns in blocks for run in turns] for blocks in (baseline, candidate)]
    return explain(moves(*sides))


def _unsure(telling: Sequence[Row], blocks: int) -> str:
    row = telling[0]
    if row.low is None or row.high is None:
        return f"{_brief(row)}: cannot tell from {count(blocks, 'block')}"
    interval = f"95 % between {percent(row.low, signed=True)} and {percent(row.high, signed=True)}"
    return f"{_brief(row)}: cannot tell from {count(blocks, 'block')}, {interval}"


def _incomparable(telling: Sequence[Row], blocks: int) -> str:
    return f"{label(telling[0].metric, telling[0].stat)} cannot be compared: {telling[0].reason}"


def _all(telling: Sequence[Row], blocks: int) -> str:
    return ", ".join(map(_whole, telling))


def _brief(row: Row) -> str:
    return f"{label(row.metric, row.stat)} {_changed(row)} (margin {percent(row.margin or 0.0)})"


def _whole(row: Row) -> str:
    before, after = show_apart(row.metric, row.baseline or 0.0, row.value)
    return f"{label(row.metric, row.stat)} {_changed(row)} ({before} -> {after}), margin {percent(row.margin or 0.0)}"


def _changed(row: Row) -> str:
    return "-" if row.change is None or math.isnan(row.change) else percent(row.change, signed=True)


_REASONS: Mapping[Word, Callable[[Sequence[Row], int], str]] = {
    Word.UNSURE: _unsure,
    Word.INCOMPARABLE: _incomparable,
}
