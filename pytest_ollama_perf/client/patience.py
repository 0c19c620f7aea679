"""Waits for a call that may take minutes, and says meanwhile how long it has taken."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def patiently(
    call: Callable[[], T],
    tick: Callable[[float], None],
    *,
    every_s: float = 1.0,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Return what ``call`` returns, or raise what it raises; it runs in a thread of its own.

    ``tick`` is called in the caller's thread with the seconds so far, every ``every_s``. Whatever it raises, and
    Ctrl-C, ends the waiting at once; the call goes on by itself until it ends or the process does.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(call())
        except BaseException as error:  # raised again where it was waited for
            failed.append(error)

    began = clock()
    thread = threading.Thread(target=run, daemon=True, name="ollama-perf-patience")
    thread.start()
    thread.join(every_s)
    while thread.is_alive():
        tick(clock() - began)
        thread.join(every_s)
    if failed:
        raise failed[0]
    return done[0]
