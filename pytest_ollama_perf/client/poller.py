"""Which sockets have something to read: one epoll of our own under the event loop, where there is epoll.

The loop sees a single descriptor, so that a thousand readable sockets cost it one callback, not a thousand. It is
edge-triggered: a level-triggered one is asked twice for everything it reports, once by itself and once by the loop's.

Where many sockets keep it busy it naps for a moment before it looks, and so reads several at a time: when a packet
arrived is the kernel's word, not that of the read.
"""

from __future__ import annotations

import asyncio
import select
import sys
from collections.abc import Callable
from time import perf_counter_ns, sleep
from typing import Protocol

_AT_ONCE = 256
_LONG_NS = 1_000_000
_RAPID_NS = 100_000
_NAP_S = 150e-6
_MANY = 64
"""With fewer sockets two chunks of one stream could come within a nap and take the same stamp."""

Callback = Callable[[], bool]
"""Reads once; returns whether there may be more to read."""


class Poller(Protocol):
    """Calls back while a descriptor is readable."""

    def watch(self, fd: int, callback: Callback) -> None:
        """Call ``callback`` whenever there is more to read from ``fd``, and again while it says so."""

    def forget(self, fd: int) -> None:
        """Stop that; must come before ``fd`` is closed."""

    def catch_up(self) -> None:
        """Call back at once for what has become readable, where the loop has been kept from it for long."""

    def close(self) -> None:
        """Watch nothing any more."""


class LoopPoller:
    """The event loop's own watching, for platforms without epoll."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._watched: set[int] = set()

    def watch(self, fd: int, callback: Callback) -> None:
        self._watched.add(fd)
        self._loop.add_reader(fd, callback)

    def forget(self, fd: int) -> None:
        self._watched.discard(fd)
        self._loop.remove_reader(fd)

    def catch_up(self) -> None:
        """Nothing: the loop keeps its own order."""

    def close(self) -> None:
        for fd in list(self._watched):
            self.forget(fd)


if sys.platform == "linux":
    _EDGE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET

    class EpollPoller:
        """An epoll that the loop watches; closed with the backend that uses it."""

        def __init__(self) -> None:
            self._loop = asyncio.get_running_loop()
            self._epoll = select.epoll()
            self._looked_ns = 0
            self._callbacks: dict[int, Callback] = {}
            self._loop.add_reader(self._epoll.fileno(), self._ready)

        def watch(self, fd: int, callback: Callback) -> None:
            self._callbacks[fd] = callback
            self._epoll.register(fd, _EDGE)

        def forget(self, fd: int) -> None:
            if self._callbacks.pop(fd, None) is not None:
                self._epoll.unregister(fd)

        def catch_up(self) -> None:
            if perf_counter_ns() - self._looked_ns > _LONG_NS:
                self._look()
                self._looked_ns = perf_counter_ns()

        def close(self) -> None:
            if not self._epoll.closed:
                self._loop.remove_reader(self._epoll.fileno())
                self._callbacks.clear()
                self._epoll.close()

        def _ready(self) -> None:
            if len(self._callbacks) >= _MANY and perf_counter_ns() - self._looked_ns < _RAPID_NS:
                sleep(_NAP_S)
            self._look()
            self._looked_ns = perf_counter_ns()

        def _look(self) -> None:
            callbacks = self._callbacks
            for fd, event in self._epoll.poll(0, _AT_ONCE):
                callback = callbacks.get(fd)  # an earlier callback may have closed this one
                if callback is None:
                    continue
                more = callback()
                if (more or event != select.EPOLLIN) and fd in callbacks:
                    self._epoll.modify(fd, _EDGE)  # reports again at once where there is more, as after the last bytes


def make_poller() -> Poller:
    """Return the cheapest poller of this platform, for the running loop."""
    return EpollPoller() if sys.platform == "linux" else LoopPoller()
