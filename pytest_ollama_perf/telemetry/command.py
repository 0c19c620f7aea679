"""Telemetry of a server elsewhere: a command of the user's that prints it, such as nvidia-smi behind ssh.

It runs without a shell for as long as a load does. What it prints is bounded and checked, and cannot stop the load.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO

from pytest_ollama_perf.errors import ConfigError
from pytest_ollama_perf.telemetry.lines import LONGEST, LineReader, Unreadable
from pytest_ollama_perf.telemetry.reading import Log
from pytest_ollama_perf.text import inert

FIRST_WITHIN_S = 10.0
"""How long the load waits for the first reading: what ssh may need to connect."""

MOST_A_SECOND = 200
"""Lines a second; more say nothing, and reading them would keep the load from its core."""

_STOP_WITHIN_S = 2.0
_COMPLAINT = 2000


def parse_command(text: str, flag: str) -> tuple[str, ...]:
    """Return the words of a command; ``ConfigError`` names ``flag``."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"{flag}: cannot be split into words ({error}); check its quotes") from None
    if not words or not words[0]:
        raise ConfigError(f"{flag} is empty; give a command that prints readings, or 'off'")
    return words


class CommandMeter:
    """Runs the command while a load runs, and keeps a log of what it prints."""

    def __init__(self, words: tuple[str, ...], *, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._words = words
        self._clock = clock

    @contextlib.contextmanager
    def reading(self) -> Iterator[Log]:
        """Read while the block runs, which begins with the first reading; the log is whole once it has been left."""
        log = Log(source="command")
        try:
            process = subprocess.Popen(
                self._words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            log.missing = f"the telemetry command cannot be started: {inert(why, 100)}"
            yield log
            return
        began, follower = self._clock(), _Follower(process, log, self._clock)
        try:
            follower.started.wait(FIRST_WITHIN_S)
            yield log
        finally:
            follower.stop()
            log.cpu_share = follower.spent_ns / max(1, self._clock() - began)


class _Follower:
    """Follows one process: a thread for what it prints, one for its complaints."""

    def __init__(self, process: subprocess.Popen[bytes], log: Log, clock: Callable[[], int]) -> None:
        self.started = threading.Event()
        self.spent_ns = 0
        self._process = process
        self._log = log
        self._clock = clock
        self._complaint = b""
        self._unread = ""
        self._silent = False
        self._threads = [self._thread(self._follow), self._thread(self._listen)]

    def _thread(self, run: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=run, name="ollama-perf-telemetry", daemon=True)
        thread.start()
        return thread

    def _follow(self) -> None:
        assert self._process.stdout is not None
        lines, began = LineReader(), self._clock()
        try:
            for number, line in enumerate(_lines(self._process.stdout)):
                at_ns = self._clock()
                if number > MOST_A_SECOND * (1 + (at_ns - began) / 1e9):
                    raise Unreadable(f"more than {MOST_A_SECOND} lines a second")
                self._take(line, at_ns, lines)
                self.spent_ns = time.thread_time_ns()
            self._silent = True
        except Unreadable as error:
            self._unread = f"the telemetry command printed what cannot be read: {error}"
        except (OSError, ValueError):  # the pipe was closed under us
            return
        finally:
            self.started.set()

    def _take(self, line: str, at_ns: int, lines: LineReader) -> None:
        gpu, host = lines.read(line, at_ns)
        self._log.driver = lines.driver
        if gpu is not None:
            self._log.gpus.append(gpu)
        if host is not None:
            self._log.host.append(host)
        if gpu is not None or host is not None:
            self._log.thin()
            self.started.set()

    def _listen(self) -> None:
        """Keep the end of what it complains of; a pipe that nobody reads would stop the command."""
        assert self._process.stderr is not None
        with contextlib.suppress(OSError, ValueError):
            while piece := self._process.stderr.read1(_COMPLAINT):  # type: ignore[attr-defined]
                self._complaint = (self._complaint + piece)[-_COMPLAINT:]

    def stop(self) -> None:
        """End the command and say what went wrong."""
        ended = self._ended()
        if ended is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for thread in self._threads:
            thread.join(_STOP_WITHIN_S)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None and not any(thread.is_alive() for thread in self._threads):
                pipe.close()
        self._log.missing = self._unread or self._why_missing(ended)

    def _ended(self) -> int | None:
        """Return with what the command ended by itself, ``None`` while it runs; the end of its output comes first."""
        if self._silent:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(_STOP_WITHIN_S)
        return self._process.poll()

    def _why_missing(self, ended: int | None) -> str:
        if ended is not None:
            said = inert(self._complaint.decode("utf-8", "replace").strip().rpartition("\n")[2], 150)
            return f"the telemetry command ended by itself with {ended}{f': {said}' if said else ''}"
        return "" if self._log.gpus else "the telemetry command printed no reading of a GPU"


def _lines(pipe: IO[bytes]) -> Iterator[str]:
    """Yield lines as they come; ``Unreadable`` where one is too long to be a reading."""
    while line := pipe.readline(LONGEST):
        if len(line) == LONGEST and not line.endswith(b"\n"):
            raise Unreadable(f"a line of more than {LONGEST} bytes")
        yield line.decode("utf-8", "replace")
