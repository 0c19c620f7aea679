"""SIGTERM and SIGHUP end a session of load tests as Ctrl-C does: reports are written."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """While a test runs, let SIGTERM end the session as Ctrl-C does: streams closed, what was measured reported."""

    def end(number: int, frame: FrameType | None) -> None:
        raise pytest.exit.Exception("terminated (SIGTERM)")

    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
