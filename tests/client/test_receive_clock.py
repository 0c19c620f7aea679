import socket
import struct
import time

import pytest

from pytest_ollama_perf.client import polling
from pytest_ollama_perf.client.polling import ReceiveClock

SECOND = 1_000_000_000


class Clocks:
    """Two clocks that only move when advanced; reading either takes no time."""

    def __init__(self):
        self.monotonic = 5 * SECOND
        self.realtime = 1_700_000_000 * SECOND

    def pass_ns(self, duration):
        self.monotonic += duration
        self.realtime += duration

    def stamps(self):
        return ReceiveClock(lambda: self.realtime, lambda: self.monotonic)

    def arrival(self):
        return [(socket.SOL_SOCKET, 35, struct.pack("qq", *divmod(self.realtime, SECOND)))]


def test_a_kernel_stamp_is_brought_onto_the_monotonic_clock():
    clocks = Clocks()
    stamps = clocks.stamps()
    arrived, at = clocks.arrival(), clocks.monotonic
    clocks.pass_ns(70_000)
    assert stamps.to_arrival_ns(arrived, clocks.monotonic) == at


def test_a_read_long_after_the_arrival_keeps_the_arrival():
    clocks = Clocks()
    stamps = clocks.stamps()
    arrived, at = clocks.arrival(), clocks.monotonic
    clocks.pass_ns(3 * SECOND)
    assert stamps.to_arrival_ns(arrived, clocks.monotonic) == at


def test_a_missing_or_foreign_stamp_leaves_the_time_of_the_read():
    clocks = Clocks()
    stamps = clocks.stamps()
    for ancillary in ([], [(socket.SOL_SOCKET, 1, b"x" * 16)], [(socket.SOL_SOCKET, 35, b"x" * 8)]):
        assert stamps.to_arrival_ns(ancillary, 42) == 42


def test_a_stamp_in_the_future_is_the_time_of_the_read():
    clocks = Clocks()
    stamps = clocks.stamps()
    now = clocks.monotonic
    clocks.realtime += SECOND
    arrived = clocks.arrival()
    clocks.realtime -= SECOND
    assert stamps.to_arrival_ns(arrived, now) == now


def test_a_clock_set_between_arrival_and_read_costs_the_stamp_and_nothing_else():
    for step in (SECOND, -SECOND, 3600 * SECOND):
        clocks = Clocks()
        stamps = clocks.stamps()
        arrived = clocks.arrival()
        clocks.realtime += step
        clocks.pass_ns(50_000)
        assert stamps.to_arrival_ns(arrived, clocks.monotonic) in (clocks.monotonic, clocks.monotonic - 50_000)
        arrived, at = clocks.arrival(), clocks.monotonic
        clocks.pass_ns(20_000_000)
        assert stamps.to_arrival_ns(arrived, clocks.monotonic) in (at, clocks.monotonic)
        arrived, at = clocks.arrival(), clocks.monotonic
        clocks.pass_ns(30_000)
        assert stamps.to_arrival_ns(arrived, clocks.monotonic) == at


@pytest.mark.parametrize(
    ("platform", "arrival"),
    [("linux", "kernel receive stamps"), ("win32", "arrival times are those of the read")],
)
def test_the_clock_of_a_platform_is_described(monkeypatch, platform, arrival):
    monkeypatch.setattr(polling.sys, "platform", platform)
    monkeypatch.setattr(polling, "machine", lambda: "x86_64")
    assert polling.describe_clock() == f"{time.get_clock_info('perf_counter').implementation}, {arrival}"
