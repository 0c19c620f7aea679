"""Results of cold starts: the time to the first token with loading the model, and without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import msgspec

from pytest_ollama_perf.analysis import BoundCheck, Finding
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.metrics.per_request import list_request_values

COLD_WARM_METRICS = ("load_time", "cold_ttft", "cold_latency", "warm_ttft", "warm_latency", "ratio")
"""The metrics of a repeat, each of which can have a limit: seconds, and the ratio of cold to warm TTFT."""


class ColdStartRepeat(msgspec.Struct, frozen=True, kw_only=True):
    """One repeat: the first request after the unload, and the median of the warm requests that followed.

    ``None`` is what the server does not report or the load does not have; ``inf`` is the time of a failed request.
    """

    cold_run: str
    warm_run: str
    load_time_s: float | None
    cold_ttft_s: float | None
    cold_latency_s: float | None
    warm_ttft_s: float | None
    warm_latency_s: float | None
    warm_requests: int

    @property
    def ratio(self) -> float | None:
        """Cold TTFT over warm TTFT; of whole latencies where there is no TTFT (embeddings)."""
        cold, warm = self.cold_ttft_s, self.warm_ttft_s
        if cold is None or warm is None:
            cold, warm = self.cold_latency_s, self.warm_latency_s
        return cold / warm if cold is not None and warm and math.isfinite(warm) else None

    def get(self, name: str) -> float | None:
        """Return one of ``COLD_WARM_METRICS``."""
        value: float | None = self.ratio if name == "ratio" else getattr(self, f"{name}_s")
        return value


class ColdStart(Finding, frozen=True, kw_only=True, tag="cold_start"):
    """The medians over all repeats, each repeat, and the limits on the medians."""

    model: str
    starts: tuple[ColdStartRepeat, ...]
    load_time_s: float | None = None
    cold_ttft_s: float | None = None
    cold_latency_s: float | None = None
    warm_ttft_s: float | None = None
    warm_latency_s: float | None = None
    ratio: float | None = None
    checks: tuple[BoundCheck, ...] = ()

    def get(self, name: str) -> float | None:
        """Return the median of one of ``COLD_WARM_METRICS``."""
        value: float | None = self.ratio if name == "ratio" else getattr(self, f"{name}_s")
        return value


def build_repeat(cold: Run, warm: Run) -> ColdStartRepeat:
    """Return one repeat; a cold sample never enters a warm number, for it is of another run."""
    return ColdStartRepeat(
        cold_run=cold.id,
        warm_run=warm.id,
        load_time_s=_get_largest("load_time", cold),
        cold_ttft_s=_get_largest("ttft", cold),
        cold_latency_s=_get_largest("latency", cold),
        warm_ttft_s=_compute_median("ttft", warm),
        warm_latency_s=_compute_median("latency", warm),
        warm_requests=len(warm.measured),
    )


def build_cold_start(model: str, starts: Sequence[ColdStartRepeat]) -> ColdStart:
    """Return the medians of all repeats; a number that a repeat lacks is that of the others."""

    def middle(name: str) -> float | None:
        found = [value for start in starts if (value := start.get(name)) is not None]
        return median(found) if found else None

    return ColdStart(
        model=model,
        starts=tuple(starts),
        load_time_s=middle("load_time"),
        cold_ttft_s=middle("cold_ttft"),
        cold_latency_s=middle("cold_latency"),
        warm_ttft_s=middle("warm_ttft"),
        warm_latency_s=middle("warm_latency"),
        ratio=middle("ratio"),
    )


def _get_largest(metric: str, run: Run) -> float | None:
    """Of several servers that all start cold, the slowest decides what a user may experience."""
    return max(list_request_values(metric, run.measured), default=None)


def _compute_median(metric: str, run: Run) -> float | None:
    values = list_request_values(metric, run.measured)
    return median(values) if values else None
