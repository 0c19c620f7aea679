"""Calls that must not block: with a deadline over everything, or with a callback while they run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class _BackgroundCall(Generic[T]):
    """A call in a daemon thread. Whoever stops waiting leaves it behind: it ends by itself or with the process."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="ollama-perf-call")
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Return whether the call has ended within ``timeout_s``."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def get_result(self) -> T:
        """Return what the call returned, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._call())
        except BaseException as error:  # raised again in the thread that waits
            self._error = error


def call_with_deadline(call: Callable[[], T], timeout_s: float) -> T:
    """Return what ``call`` returns, or raise what it raises.

    The deadline covers all of the call, name resolution included, where the call's own timeouts are for one step each.

    Raises:
        TimeoutError: the call has not ended within ``timeout_s`` seconds. It goes on in its thread.
    """
    running = _BackgroundCall(call)
    if not running.wait(timeout_s):
        raise TimeoutError
    return running.get_result()


def call_with_ticks(
    call: Callable[[], T],
    tick: Callable[[float], None],
    *,
    every_s: float = 1.0,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Return what ``call`` returns, or raise what it raises.

    ``tick`` is called in the caller's thread with the seconds so far, every ``every_s`` seconds. An exception of
    ``tick``, and Ctrl-C, end the waiting immediately; the call goes on in its thread.
    """
    began = clock()
    running = _BackgroundCall(call)
    while not running.wait(every_s):
        tick(clock() - began)
    return running.get_result()
