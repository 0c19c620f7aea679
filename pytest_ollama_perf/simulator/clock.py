"""The clocks a simulator can be given: the event loop's own (virtual under trio's ``MockClock``) or the real one."""

from __future__ import annotations

import time
from typing import Protocol

import anyio
import anyio.lowlevel


class Clock(Protocol):
    def now_ns(self) -> int:
        """The present, in nanoseconds."""

    async def sleep_until(self, deadline_ns: int) -> None:
        """Return at ``deadline_ns`` or later; at once (after a checkpoint) when that has passed."""

    async def settle(self) -> None:
        """Let whatever else happens at this instant happen first."""


class LoopClock:
    """The clock of the running event loop; exact to the nanosecond in virtual time."""

    def now_ns(self) -> int:
        return round(anyio.current_time() * 1e9)

    async def sleep_until(self, deadline_ns: int) -> None:
        await anyio.sleep_until(deadline_ns / 1e9)

    async def settle(self) -> None:
        # virtual time moves, here by a nanosecond, only when nobody has anything left to do
        await anyio.sleep(1e-9)


class RealClock:
    """``time.perf_counter_ns``: the clock that a load client on the same machine stamps its samples with."""

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    async def sleep_until(self, deadline_ns: int) -> None:
        await anyio.sleep(max(0, deadline_ns - time.perf_counter_ns()) / 1e9)

    async def settle(self) -> None:
        await anyio.lowlevel.checkpoint()
