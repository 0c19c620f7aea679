"""A simulator in a process of its own, so that neither side takes the other's time."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from pytest_ollama_perf.core.errors import ServerError
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.simulator.job import GroundTruth
from pytest_ollama_perf.simulator.settings import SimulatorSettings

_START_S = 30.0
_STOP_S = 3.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class _RequestListing(msgspec.Struct):
    requests: list[GroundTruth]


class RunningSimulator:
    """A running simulator: its ``url``, its ``settings`` and the ground truth of what it answered."""

    def __init__(self, url: str, settings: SimulatorSettings) -> None:
        self.url = url
        self.settings = settings

    def requests(self) -> list[GroundTruth]:
        """Return the ground truth of every request since the start or the last reset, in order of arrival.

        Times are ``time.perf_counter_ns`` of this machine. A ``ServerError`` when the simulator is gone.
        """
        return msgspec.json.decode(self._fetch("/sim/requests"), type=_RequestListing).requests

    def reset(self) -> None:
        """Forget the ground truth and count requests from 1 again; loaded models stay loaded."""
        self._fetch("/sim/reset", b"{}")

    def _fetch(self, path: str, body: bytes | None = None) -> bytes:
        try:
            with _OPENER.open(urllib.request.Request(self.url + path, data=body), timeout=_START_S) as answer:
                return bytes(answer.read())
        except OSError as error:
            raise ServerError(f"the simulator at {self.url} does not answer: {error}") from error


@contextmanager
def start_simulator(settings: SimulatorSettings | None = None) -> Iterator[RunningSimulator]:
    """Run a simulator on a free port of 127.0.0.1 for as long as the block does.

    It ends with this process however that ends. A ``ServerError`` says why it could not start.
    """
    settings = SimulatorSettings() if settings is None else settings
    command = [sys.executable, "-P", "-m", "pytest_ollama_perf.simulator"]
    if sys.version_info < (3, 11):
        command.remove("-P")
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield RunningSimulator(_await_url(child, settings), settings)
    finally:
        _stop_process(child)


def _await_url(child: subprocess.Popen[bytes], settings: SimulatorSettings) -> str:
    assert child.stdin is not None
    assert child.stdout is not None
    watchdog = threading.Timer(_START_S, child.kill)
    watchdog.start()
    try:
        with contextlib.suppress(OSError):
            child.stdin.write(msgspec.json.encode(settings) + b"\n")
            child.stdin.flush()
        url = child.stdout.readline().decode().strip()
    finally:
        watchdog.cancel()
    if not url:
        raise ServerError(f"the simulator did not start: {_read_last_error(child)}")
    return url


def _read_last_error(child: subprocess.Popen[bytes]) -> str:
    _, errors = child.communicate()
    lines = errors.decode(errors="replace").strip().splitlines()
    return sanitize(lines[-1]) if lines else f"it ended with status {child.returncode} and no word"


def _stop_process(child: subprocess.Popen[bytes]) -> None:
    """Close its standard input, which ends it; then ask, then kill."""
    assert child.stdin is not None
    with contextlib.suppress(OSError):
        child.stdin.close()
    for push in (child.terminate, child.kill):
        try:
            child.wait(_STOP_S)
            break
        except subprocess.TimeoutExpired:
            push()
    child.wait()
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
