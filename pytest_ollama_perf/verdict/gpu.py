"""Problems of the GPU: clocks that were slowed down while it was measured, and readings that are missing."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_ollama_perf.run import Gpu, Run
from pytest_ollama_perf.summary import Summary
from pytest_ollama_perf.text import inert
from pytest_ollama_perf.verdict.wording import number, percent
from pytest_ollama_perf.verdict.words import Problem

_ORDINARY = frozenset({"software power cap", "sync boost"})
"""Large models run a GPU at its power limit for as long as they decode: that is how fast this GPU is."""

_SPOILS = 0.1
"""A tenth of the readings: a shorter slow-down moves medians and trimmed means by less than their margins."""


def throttled(run: Run, summary: Summary) -> Iterator[Problem]:
    """Heat, a failing power supply or a power limit kept a GPU below the clocks it could have run at."""
    gpus = run.telemetry.gpus if run.telemetry else ()
    for index, gpu in enumerate(gpus):
        for reason, share in gpu.throttled.items():
            ordinary = reason in _ORDINARY
            if not ordinary or share >= _SPOILS:
                text = f"{_which(gpu, index, len(gpus))} was slowed down in {percent(share)} of the readings: {reason}"
                spoils = not ordinary and share >= _SPOILS
                yield Problem(name="GPU throttled", text=f"{text}{_at(gpu, reason)}", spoils=spoils)


def _which(gpu: Gpu, index: int, of: int) -> str:
    name = inert(gpu.name, 60)
    return " ".join(filter(None, ("GPU", f"{index}" if of > 1 else "", f"({name})" if name else "")))


def _at(gpu: Gpu, reason: str) -> str:
    if "thermal" in reason and gpu.max_temperature_c is not None:
        return f", up to {number(gpu.max_temperature_c)} °C"
    if "power" in reason and gpu.max_power_w is not None:
        return f", up to {number(gpu.max_power_w)} W"
    return ""


def unread(run: Run, summary: Summary) -> Iterator[Problem]:
    """Readings that were asked for, or had begun, are missing. Where nobody asked, a limit on them says so itself."""
    telemetry = run.telemetry
    if telemetry is not None and telemetry.missing and (telemetry.source == "command" or telemetry.gpus):
        yield Problem(name="telemetry incomplete", text=inert(telemetry.missing, 300), spoils=False)
