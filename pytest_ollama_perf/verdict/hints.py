"""What a run suggests to its reader, beside the verdict. A hint never changes a word."""

from __future__ import annotations

from pytest_ollama_perf.run import Run
from pytest_ollama_perf.summary import Summary


def hints(run: Run, summary: Summary) -> tuple[str, ...]:
    """Return the hints of ``run``, one line each."""
    return ()
