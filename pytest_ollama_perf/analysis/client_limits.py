"""How fast the client can measure on this machine, and whether that is enough for a load."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from pytest_ollama_perf.core.verdict import Problem, ProblemCode
from pytest_ollama_perf.metrics.format import format_count, format_number, format_percent, format_seconds

MAX_CORE_SHARE = 0.7
"""Share of a core that streams may take: above it a run is called client-bound (``client_side``)."""

TYPICAL_TPS = 50.0
"""Tokens/s of a stream, to convert a rate of chunks to a number of streams; typical for a desktop GPU."""

_MAX_IDLE_LAG_S = 0.025
_MAX_TTFT_ERROR_S = 0.010
_MAX_CLOCK_STEP_S = 1e-4


class ClientMeasurement(msgspec.Struct, frozen=True, kw_only=True):
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

    def count_streams(self, tps: float = TYPICAL_TPS) -> int:
        """Return how many streams of ``tps`` one core can take in and keep its reserve."""
        return int(MAX_CORE_SHARE * self.chunks_s / tps)


def find_client_problems(client: ClientMeasurement, *, streams: int = 0, tps: float = 0.0) -> tuple[Problem, ...]:
    """Return what makes the measurements of ``client`` inaccurate, for ``streams`` at ``tps`` each if known."""
    return (
        tuple(_check_open_files(client))
        + tuple(_check_lag(client))
        + tuple(_check_rate(client, streams, tps))
        + tuple(_check_clock(client))
    )


def _check_open_files(client: ClientMeasurement) -> Iterator[Problem]:
    if client.open_files is not None and client.open_files < client.open_files_needed:
        needed = f"the load needs {client.open_files_needed} open files"
        text = f"{needed}, this process may have {client.open_files}: raise the limit (ulimit -n)"
        yield Problem(code=ProblemCode.OPEN_FILES, text=text, invalidates=True)


def _check_lag(client: ClientMeasurement) -> Iterator[Problem]:
    """Lag that would void a run (25 ms) while nothing is to be done can only be the machine's."""
    if client.idle_lag_p99_s >= _MAX_IDLE_LAG_S:
        text = (
            f"an idle event loop wakes {format_seconds(client.idle_lag_p99_s)} late (p99): this machine is overloaded"
        )
        yield Problem(code=ProblemCode.EVENT_LOOP_LAG, text=text, invalidates=True)
    if client.load_average is not None and client.load_average > client.cpus:
        cores = format_count(client.cpus, "core")
        text = f"load average {format_number(client.load_average)} on {cores}: other programs are using this machine"
        yield Problem(code=ProblemCode.BUSY_MACHINE, text=text, invalidates=False)


def _check_rate(client: ClientMeasurement, streams: int, tps: float) -> Iterator[Problem]:
    share = streams * tps / client.chunks_s
    if share > MAX_CORE_SHARE:
        load = f"{format_count(streams, 'stream')} of {format_number(tps)} tokens/s"
        text = f"{load} would take {format_percent(share)} of a core of this client: use fewer at once"
        yield Problem(code=ProblemCode.CLIENT_TOO_SLOW, text=text, invalidates=True)


def _check_clock(client: ClientMeasurement) -> Iterator[Problem]:
    if client.ttft_error_p50_s > _MAX_TTFT_ERROR_S:
        text = f"times to the first token look {format_seconds(client.ttft_error_p50_s)} longer than they are (p50)"
        yield Problem(code=ProblemCode.CLOCK_ERROR, text=text, invalidates=True)
    if client.timer_resolution_s > _MAX_CLOCK_STEP_S:
        text = f"this machine's clock has steps of {format_seconds(client.timer_resolution_s)}: short times are rounded"
        yield Problem(code=ProblemCode.COARSE_CLOCK, text=text, invalidates=False)
