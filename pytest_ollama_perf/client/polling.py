"""Watching many sockets for data, at the least cost that the platform allows."""

from __future__ import annotations

import asyncio
import select
import socket
import sys
from collections.abc import Callable
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
