"""Reads this machine's GPUs, and the machine itself, in a thread of its own while a load runs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from pytest_ollama_perf.telemetry.reading import GpuReading, HostReading, Log

EVERY_S = 0.5
"""Drivers themselves bring utilisation up to date a few times a second."""

_COST = 0.02
"""The share of its time that reading may take; where a driver is slow, readings become rarer."""

_STOP_WITHIN_S = 2.0


class Gpus(Protocol):
    """GPUs that can be read again and again. ``missing`` says why there are none, or which one was lost."""

    name: str
    driver: str
    missing: str

    def read(self, at_ns: int) -> Iterable[GpuReading]: ...


class Machine(Protocol):
    """A machine that can be read again and again."""

    def read(self, at_ns: int) -> HostReading: ...


class Sampler:
    """Keeps a log of GPUs and machine. The clock is that of the samples; ``wait`` returns true once it is to stop.

    One reading is taken before the load begins and one after its end, so that a load of any length lies between two.
    """

    def __init__(self, gpus: Gpus, machine: Machine | None, *, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._gpus = gpus
        self._machine = machine
        self._clock = clock
        self._every_s = EVERY_S
        self._spent_ns = 0
        self._log = Log()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Log]:
        """Read while the block runs; the log is whole once it has been left."""
        self._log = log = Log(source=self._gpus.name, driver=self._gpus.driver, missing=self._gpus.missing)
        self._every_s, self._spent_ns = EVERY_S, 0
        began = self._clock()
        self._look()
        stop = threading.Event()
        thread = threading.Thread(target=self._run, args=(stop.wait,), name="ollama-perf-telemetry", daemon=True)
        thread.start()
        try:
            yield log
        finally:
            stop.set()
            thread.join(_STOP_WITHIN_S)
            if thread.is_alive():
                log.missing = "the driver did not answer any more"
            else:
                self._look()
                log.missing = self._gpus.missing
            log.cpu_share = self._spent_ns / max(1, self._clock() - began)

    def _run(self, wait: Callable[[float], bool]) -> None:
        while not wait(self._every_s):
            began = self._clock()
            self._look()
            took_s = (self._clock() - began) / 1e9
            self._every_s = max(self._every_s, took_s / _COST)
            if self._log.thin():
                self._every_s *= 2

    def _look(self) -> None:
        began = time.thread_time_ns()
        at_ns = self._clock()
        self._log.gpus.extend(self._gpus.read(at_ns))
        if self._machine is not None:
            self._log.host.append(self._machine.read(at_ns))
        self._spent_ns += time.thread_time_ns() - began
