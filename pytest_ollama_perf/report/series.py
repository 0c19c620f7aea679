"""How the loads of one test are told apart: runs of one load, levels of a sweep, sides of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pytest_ollama_perf.report.facts import public_url
from pytest_ollama_perf.report.json_report import LoadEntry
from pytest_ollama_perf.report.layout import clean

_APART: tuple[tuple[str, Callable[[LoadEntry], object]], ...] = (
    ("{}", lambda load: load.workload.model),
    ("{} at once", lambda load: load.workload.concurrency),
    ("{} a second", lambda load: load.workload.rate),
    ("{}", lambda load: ", ".join(sorted(map(public_url, load.before)))),
    ("num_ctx {}", lambda load: load.workload.num_ctx),
    ("prompt {} words", lambda load: load.workload.prompt_words),
    ("num_predict {}", lambda load: load.workload.num_predict),
    ("{}", lambda load: load.workload.endpoint.value),
    ("{}", lambda load: "cold" if load.workload.cold else "warm"),
    ("options {}", lambda load: sorted(load.workload.options.items(), key=str)),
)


def names(loads: Sequence[LoadEntry]) -> list[str]:
    """Return one name for each load: what tells it from the others, or ``run 1``, ``run 2`` where nothing does.

    Loads that are alike among others share a name, so that they can be shown as one.
    """
    if any(found := apart(loads)):
        return [name or "other" for name in found]
    return ["this run"] if len(loads) == 1 else [f"run {number}" for number in range(1, len(loads) + 1)]


def apart(loads: Sequence[LoadEntry]) -> list[str]:
    """Return for each load what tells it from the others of its test: ``4 at once``; empty where nothing does."""
    telling = [(form, get) for form, get in _APART if len({str(get(load)) for load in loads}) > 1]
    return [_name(load, telling) for load in loads]


def _name(load: LoadEntry, telling: Sequence[tuple[str, Callable[[LoadEntry], object]]]) -> str:
    values = ((form, get(load)) for form, get in telling)
    return clean(", ".join(form.format(value) for form, value in values if value not in (None, "", [])), 80)
