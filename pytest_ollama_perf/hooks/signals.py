"""SIGTERM and SIGHUP end a session of load tests as Ctrl-C does: what was measured is reported."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

_NAMES = ("SIGTERM", "SIGHUP")


class SignalHandler:
    """Turns the first signal into the end of the session, and ignores later ones so that the reports get written.

    Signals that something else handles are left alone. ``handles_interrupt`` adds SIGINT.
    """

    def __init__(self, *, handles_interrupt: bool = False) -> None:
        self._names = (*_NAMES, "SIGINT") if handles_interrupt else _NAMES
        self._previous: dict[int, Callable[..., Any] | int | None] = {}
        self._is_ending = False

    def install(self) -> None:
        """Handle signals from now on; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in [getattr(signal, name) for name in self._names if hasattr(signal, name)]:
            if (previous := signal.getsignal(number)) in {signal.SIG_DFL, signal.default_int_handler}:
                self._previous[number] = previous
                signal.signal(number, self._end)

    def ignore(self) -> None:
        """Ignore signals from now on: the session is ending."""
        self._is_ending = True

    def restore(self) -> None:
        """Handle signals as before, except where something else was installed since."""
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._end:
                signal.signal(number, previous)
        self._previous.clear()

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self._is_ending:
            return
        self._is_ending = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise pytest.exit.Exception(f"terminated ({signal.Signals(number).name})")
