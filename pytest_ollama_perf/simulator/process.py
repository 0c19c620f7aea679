"""A simulator in a separate process, so that client and server do not share a CPU core.

``python -m pytest_ollama_perf.simulator.process`` is that process. It reads its settings as one line of JSON from
standard input and prints its URL as the first line of output. It ends when standard input is closed, which happens when
the parent process ends for any reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from pytest_ollama_perf.core.errors import ConfigError, ServerError
from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.simulator.job import GroundTruth
from pytest_ollama_perf.simulator.settings import SimulatorSettings

_START_S = 30.0
_STOP_S = 3.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class _RequestListing(msgspec.Struct):
    requests: list[GroundTruth]


class RunningSimulator:
    """A running simulator: its ``url``, its ``settings``, and the ground truth of its requests."""

    def __init__(self, url: str, settings: SimulatorSettings) -> None:
        self.url = url
        self.settings = settings

    def requests(self) -> list[GroundTruth]:
        """Return the ground truth of every request since the start or the last reset, in order of arrival.

        Times are ``time.perf_counter_ns`` of this machine. ``ServerError`` if the simulator no longer runs.
        """
        return msgspec.json.decode(self._fetch("/sim/requests"), type=_RequestListing).requests

    def reset(self) -> None:
        """Clear the ground truth and number requests from 1 again; loaded models stay loaded."""
        self._fetch("/sim/reset", b"{}")

    def _fetch(self, path: str, body: bytes | None = None) -> bytes:
        try:
            with _OPENER.open(urllib.request.Request(self.url + path, data=body), timeout=_START_S) as answer:
                return bytes(answer.read())
        except OSError as error:
            raise ServerError(f"the simulator at {self.url} does not answer: {error}") from error


@contextmanager
def start_simulator(settings: SimulatorSettings | None = None) -> Iterator[RunningSimulator]:
    """Run a simulator on a free port of 127.0.0.1 while the block runs.

    It also ends when this process ends for any reason. ``ServerError`` explains why it could not start.
    """
    settings = SimulatorSettings() if settings is None else settings
    command = [sys.executable, "-P", "-m", "pytest_ollama_perf.simulator.process"]
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
    return sanitize(lines[-1]) if lines else f"it ended with status {child.returncode} without an error message"


def _stop_process(child: subprocess.Popen[bytes]) -> None:
    """Close its standard input, which ends it; after a timeout terminate it, then kill it."""
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


async def _serve_until_stopped(settings: SimulatorSettings) -> None:
    from pytest_ollama_perf.simulator.server import serve

    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # Windows: the end of standard input is enough
        loop.add_signal_handler(signal.SIGTERM, stopped.set)
    threading.Thread(target=_watch_stdin, args=(loop, stopped), daemon=True).start()
    async with serve(settings) as (url, _):
        print(url, flush=True)
        await stopped.wait()


def _watch_stdin(loop: asyncio.AbstractEventLoop, stopped: asyncio.Event) -> None:
    # not sys.stdin: its lock, held by a thread that waits, would break the interpreter's shutdown
    while os.read(0, 4096):
        pass
    with contextlib.suppress(RuntimeError):  # the loop may be closed by now
        loop.call_soon_threadsafe(stopped.set)


def main() -> int:
    """Serve until the parent process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides when to stop
    try:
        settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=SimulatorSettings)
        asyncio.run(_serve_until_stopped(settings))
    except (OSError, msgspec.MsgspecError, ConfigError) as error:
        print(f"cannot start the simulator: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
