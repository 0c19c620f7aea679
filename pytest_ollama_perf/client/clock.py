"""When a packet arrived: the kernel's receive stamps, converted to the clock of ``time.perf_counter_ns``.

Linux stamps each packet with CLOCK_REALTIME as it comes in. CLOCK_REALTIME and CLOCK_MONOTONIC are slewed together,
so their offset only changes when the time is set. It is measured again every few milliseconds, and a stamp
that does not fit is dropped for the time of the read. On TCP the stamp of a read is that of its last packet.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from platform import machine

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
