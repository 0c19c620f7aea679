"""What this machine's client can measure, and whether that is enough for a load."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from pytest_ollama_perf.verdict.wording import count, number, percent, seconds
from pytest_ollama_perf.verdict.words import Problem

RESERVE = 0.7
"""Share of a core that streams may take: above it a run is called client-bound (``client_side``)."""

TYPICAL_TPS = 50.0
"""Tokens/s of a stream, for telling a rate of chunks as a number of streams; about what a person's GPU gives one."""

_IDLE_LAG_S = 0.025
_TRUE_S = 0.010
_COARSE_S = 1e-4


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of the client on this machine.

    ``flood_chunks_s`` is chunks per CPU second with every socket full, ``chunks_s`` with one chunk a read, which is how
    a model's tokens come. ``ttft_error_*_s`` is how much longer the time to the first token looked than it was on the
    generator's clock. ``open_files`` is ``None`` where there is no limit.
    """

    cpus: int
    uvloop: bool
    receive_stamps: bool
    timer_resolution_s: float
    idle_lag_p99_s: float
    idle_lag_max_s: float
    flood_chunks_s: float
    chunks_s: float
    paced_streams: int
    paced_tps: float
    ttft_error_p50_s: float
    ttft_error_p99_s: float
    open_files: int | None = None
    open_files_needed: int = 0
    load_average: float | None = None

    def streams(self, tps: float = TYPICAL_TPS) -> int:
        """Return how many streams of ``tps`` one core can take in and keep its reserve."""
        return int(RESERVE * self.chunks_s / tps)


def inability(client: Client, *, streams: int = 0, tps: float = 0.0) -> tuple[Problem, ...]:
    """Return what keeps ``client`` from measuring truthfully, for a load of ``streams`` at ``tps`` each where known."""
    return tuple(_files(client)) + tuple(_lag(client)) + tuple(_rate(client, streams, tps)) + tuple(_clock(client))


def _files(client: Client) -> Iterator[Problem]:
    if client.open_files is not None and client.open_files < client.open_files_needed:
        needed = f"the load needs {client.open_files_needed} open files"
        text = f"{needed}, this process may have {client.open_files}: raise the limit (ulimit -n)"
        yield Problem(name="open files", text=text, spoils=True)


def _lag(client: Client) -> Iterator[Problem]:
    """Lag that would void a run (25 ms) while nothing is to be done can only be the machine's."""
    if client.idle_lag_p99_s >= _IDLE_LAG_S:
        text = f"an idle event loop wakes {seconds(client.idle_lag_p99_s)} late (p99): this machine is overloaded"
        yield Problem(name="event loop", text=text, spoils=True)
    if client.load_average is not None and client.load_average > client.cpus:
        cores = count(client.cpus, "core")
        text = f"load average {number(client.load_average)} on {cores}: other programs run beside this one"
        yield Problem(name="busy machine", text=text, spoils=False)


def _rate(client: Client, streams: int, tps: float) -> Iterator[Problem]:
    share = streams * tps / client.chunks_s
    if share > RESERVE:
        load = f"{count(streams, 'stream')} of {number(tps)} tokens/s"
        text = f"{load} would take {percent(share)} of a core of this client: use fewer at once"
        yield Problem(name="client-bound", text=text, spoils=True)


def _clock(client: Client) -> Iterator[Problem]:
    if client.ttft_error_p50_s > _TRUE_S:
        text = f"times to the first token look {seconds(client.ttft_error_p50_s)} longer than they are (p50)"
        yield Problem(name="clock", text=text, spoils=True)
    if client.timer_resolution_s > _COARSE_S:
        text = f"this machine's clock has steps of {seconds(client.timer_resolution_s)}: short times are rounded"
        yield Problem(name="coarse clock", text=text, spoils=False)
