"""Watching many sockets for data, at the least cost that the platform allows."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from platform import machine
from time import perf_counter_ns, sleep
from typing import Protocol

_MAX_EVENTS = 256
_CATCH_UP_AFTER_NS = 1_000_000
_BUSY_INTERVAL_NS = 100_000
_BATCH_PAUSE_S = 150e-6
_MIN_BATCHED_SOCKETS = 64
"""With fewer sockets, two chunks of one stream could arrive within a pause and get the same stamp."""

ReadCallback = Callable[[], bool]
"""Reads once; returns whether there may be more to read."""


class Poller(Protocol):
    """Calls back when a file descriptor is readable."""

    def watch(self, fd: int, callback: ReadCallback) -> None:
        """Call ``callback`` whenever ``fd`` has data, and again while it returns true."""

    def forget(self, fd: int) -> None:
        """Stop watching ``fd``; call this before closing it."""

    def catch_up(self) -> None:
        """Call back now for everything that is readable, if the loop has not looked for a while."""

    def close(self) -> None:
        """Stop watching everything."""


class LoopPoller:
    """The event loop's own ``add_reader``, for platforms without epoll."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._watched: set[int] = set()

    def watch(self, fd: int, callback: ReadCallback) -> None:
        """Call ``callback`` when ``fd`` is readable."""
        self._watched.add(fd)
        self._loop.add_reader(fd, callback)

    def forget(self, fd: int) -> None:
        """Stop watching ``fd``."""
        self._watched.discard(fd)
        self._loop.remove_reader(fd)

    def catch_up(self) -> None:
        """Do nothing: the loop decides the order."""

    def close(self) -> None:
        """Stop watching all descriptors."""
        for fd in list(self._watched):
            self.forget(fd)


if sys.platform == "linux":
    _EDGE_TRIGGERED = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET

    class EpollPoller:
        """An epoll object that the loop watches. Closed by the backend that uses it."""

        def __init__(self) -> None:
            self._loop = asyncio.get_running_loop()
            self._epoll = select.epoll()
            self._looked_ns = 0
            self._callbacks: dict[int, ReadCallback] = {}
            try:
                self._loop.add_reader(self._epoll.fileno(), self._on_ready)
            except NotImplementedError:
                self._epoll.close()
                raise

        def watch(self, fd: int, callback: ReadCallback) -> None:
            """Call ``callback`` when ``fd`` is readable."""
            self._callbacks[fd] = callback
            self._epoll.register(fd, _EDGE_TRIGGERED)

        def forget(self, fd: int) -> None:
            """Stop watching ``fd``."""
            if self._callbacks.pop(fd, None) is not None:
                self._epoll.unregister(fd)

        def catch_up(self) -> None:
            """Read what is ready if the last look was too long ago."""
            if perf_counter_ns() - self._looked_ns > _CATCH_UP_AFTER_NS:
                self._read_ready()
                self._looked_ns = perf_counter_ns()

        def close(self) -> None:
            """Stop watching and close the epoll descriptor."""
            if not self._epoll.closed:
                self._loop.remove_reader(self._epoll.fileno())
                self._callbacks.clear()
                self._epoll.close()

        def _on_ready(self) -> None:
            if len(self._callbacks) >= _MIN_BATCHED_SOCKETS and perf_counter_ns() - self._looked_ns < _BUSY_INTERVAL_NS:
                sleep(_BATCH_PAUSE_S)
            self._read_ready()
            self._looked_ns = perf_counter_ns()

        def _read_ready(self) -> None:
            callbacks = self._callbacks
            for fd, event in self._epoll.poll(0, _MAX_EVENTS):
                callback = callbacks.get(fd)  # an earlier callback may have closed this one
                if callback is None:
                    continue
                more = callback()
                if (more or event != select.EPOLLIN) and fd in callbacks:
                    self._epoll.modify(fd, _EDGE_TRIGGERED)  # reports again if there is more, also an end of file


def make_poller() -> Poller | None:
    """Return the cheapest poller for the running loop; ``None`` where the loop cannot watch sockets.

    The default loop of Windows cannot: it has no ``add_reader``.
    """
    try:
        return EpollPoller() if sys.platform == "linux" else _make_loop_poller()
    except NotImplementedError:
        return None


def _make_loop_poller() -> LoopPoller:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        asyncio.get_running_loop().remove_reader(ours.fileno())
    return LoopPoller()


ANCILLARY_BYTES = 64
_SUPPORTED_MACHINES = {"x86_64", "aarch64", "arm64", "riscv64", "ppc64le", "s390x", "loongarch64"}
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; other machines number it differently
_unpack_timespec = struct.Struct("qq").unpack
_SECOND_NS = 1_000_000_000
_OFFSET_REFRESH_NS = 10_000_000
_MAX_STAMP_AGE_NS = 2_000_000
_CLOCK_STEP_NS = 200_000
_MAX_OFFSET_READINGS = 20
_GOOD_READING_NS = 5_000
"""A reading that took longer was interrupted, and its offset may be off by as much."""

AncillaryData = Sequence[tuple[int, int, bytes]]


def has_receive_stamps() -> bool:
    """Return whether this platform stamps received packets on a clock that this module can read."""
    return sys.platform == "linux" and machine() in _SUPPORTED_MACHINES


def describe_clock() -> str:
    """Return the clock of the samples' times, and whether arrival times are the kernel's or those of the read."""
    arrival = "kernel receive stamps" if has_receive_stamps() else "arrival times are those of the read"
    return f"{time.get_clock_info('perf_counter').implementation}, {arrival}"


def enable_receive_stamps(sock: socket.socket) -> bool:
    """Ask the kernel to stamp what ``sock`` receives; return whether it will."""
    if not has_receive_stamps():
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    except OSError:
        return False
    return True


class ReceiveClock:
    """Turns the ancillary data of ``recvmsg`` into nanoseconds of ``monotonic``."""

    def __init__(
        self,
        realtime: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._realtime = realtime
        self._monotonic = monotonic
        self._offset = 0
        self._due = 0
        self._measure_offset()

    def to_arrival_ns(self, ancillary: AncillaryData, now_ns: int) -> int:
        """Return when the packet of ``ancillary`` arrived; ``now_ns``, the time of the read, if that is unknown."""
        if len(ancillary) != 1:
            return now_ns
        level, kind, data = ancillary[0]
        if kind != _SO_TIMESTAMPNS or level != socket.SOL_SOCKET or len(data) != 16:
            return now_ns
        seconds, nanoseconds = _unpack_timespec(data)
        at_ns: int = seconds * 1_000_000_000 + nanoseconds - self._offset
        if 0 <= now_ns - at_ns < _MAX_STAMP_AGE_NS and now_ns < self._due:
            return at_ns
        return self._recheck_stamp(at_ns + self._offset, now_ns)

    def _recheck_stamp(self, real: int, now_ns: int) -> int:
        """Use an old or future stamp only if the offset of the clocks has not changed since it was last measured."""
        if self._has_stepped():
            return now_ns
        return min(real - self._offset, now_ns)

    def _has_stepped(self) -> bool:
        before = self._offset
        self._measure_offset()
        return abs(self._offset - before) > _CLOCK_STEP_NS

    def _measure_offset(self) -> None:
        best = _SECOND_NS
        for _ in range(_MAX_OFFSET_READINGS):
            before = self._monotonic()
            real = self._realtime()
            after = self._monotonic()
            if after - before < best:
                best, self._offset = after - before, real - (before + after) // 2
            if best < _GOOD_READING_NS:
                break
        self._due = after + _OFFSET_REFRESH_NS
