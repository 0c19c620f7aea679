"""Whether a measurement can be trusted. Each problem is named, put in numbers, and says whether it spoils the run."""

from __future__ import annotations

from pytest_ollama_perf.run import Run
from pytest_ollama_perf.summary import Summary
from pytest_ollama_perf.verdict.words import Problem


def problems(run: Run, summary: Summary) -> tuple[Problem, ...]:
    """Return what makes ``run`` less than it seems, what spoils it first."""
    return ()
