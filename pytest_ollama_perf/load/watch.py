"""The client watches itself: a load that it limited says nothing about the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import anyio

from pytest_ollama_perf.run import Watch
from pytest_ollama_perf.sample import Sample, Stage

_EVERY_S = 0.02
_TELLING = 20
"""With fewer looks at the loop a single one would decide what is usual."""


class Watcher:
    """Measures event-loop lag and CPU share from ``begin`` to ``end``, both called in the loop's thread.

    Lag is how much later than asked a sleeping task wakes; a loop that polls in milliseconds shows up to one of them
    even when idle. CPU time is that of the loop's thread alone, so that what the caller does meanwhile does not count;
    where other threads hold the interpreter, the lag tells.
    """

    def __init__(
        self, *, cpu_ns: Callable[[], int] = time.thread_time_ns, wall_ns: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self._cpu_ns = cpu_ns
        self._wall_ns = wall_ns
        self._lags: list[float] = []
        self._began: tuple[int, int] | None = None
        self._cpu_share = 0.0

    def begin(self) -> None:
        """Start the measured window; what came before does not count."""
        self._began = (self._cpu_ns(), self._wall_ns())
        self._lags.clear()

    def end(self) -> None:
        """Close the window; without a ``begin`` there was none."""
        if self._began is None:
            return
        cpu, wall = self._cpu_ns() - self._began[0], self._wall_ns() - self._began[1]
        self._cpu_share = cpu / wall if wall > 0 else 0.0
        self._began = None

    async def lag(self) -> None:
        """Sample the event loop's lag until cancelled."""
        while True:
            due_ns = self._wall_ns() + round(_EVERY_S * 1e9)
            await anyio.sleep(_EVERY_S)
            self._lags.append(max(0, self._wall_ns() - due_ns) / 1e9)

    def result(self, samples: Iterable[Sample]) -> Watch:
        """Return what was noticed; read lag is that of the measured ``samples``."""
        read_lags = [sample.read_lag_ns / 1e9 for sample in samples if sample.stage is Stage.MEASURED]
        return Watch(
            loop_lag_p90_s=_ranked(self._lags, 90) if len(self._lags) >= _TELLING else 0.0,
            loop_lag_p99_s=_ranked(self._lags, 99),
            loop_lag_max_s=max(self._lags, default=0.0),
            cpu_share=self._cpu_share,
            read_lag_p99_s=_ranked(read_lags, 99),
        )


def _ranked(values: Sequence[float], percent: int) -> float:
    """Return the percentile by nearest rank, which never lies between two values; 0 of nothing."""
    ordered = sorted(values)
    return ordered[-(-percent * len(ordered) // 100) - 1] if ordered else 0.0
