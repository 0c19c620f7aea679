"""Telemetry of a remote server from a command of the user, such as nvidia-smi over ssh.

The command runs without a shell while a load runs. Its output is bounded and checked, and cannot stop the load.
"""

from __future__ import annotations

import contextlib
import csv
import math
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import IO, Any

import msgspec

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.text import sanitize, suggest_match
from pytest_ollama_perf.telemetry.readings import THROTTLE_REASONS, GpuReading, HostReading, TelemetryLog

MAX_LINE_CHARS = 16 * 1024
"""Maximum length of a line in characters."""

MAX_GPUS = 64


class UnreadableLineError(ValueError):
    """A line that is not valid telemetry; the message describes it."""


LineReadings = tuple[GpuReading | None, HostReading | None]


class LineReader:
    """Parses lines in order; ``driver`` is set once a line contains it."""

    def __init__(self) -> None:
        self.driver = ""
        self._head = ""
        self._columns: list[tuple[str, float] | None] | None = None
        self._gpus: set[str] = set()

    def read(self, line: str, at_ns: int) -> LineReadings:
        """Return the reading of a line; ``None`` for a header or an empty line.

        Raises:
            Unreadable: it is neither JSON nor CSV with known columns.
        """
        text = line.strip()
        if not text or text == self._head:
            return None, None
        if text.startswith("{"):
            return self._build_readings(_parse_json(text), at_ns)
        if self._columns is None:
            self._head, self._columns = text, _parse_header(text)
            return None, None
        return self._build_readings(_parse_csv(text, self._columns), at_ns)

    def _build_readings(self, found: Mapping[str, Any], at_ns: int) -> LineReadings:
        self.driver = str(found.get("driver", "")) or self.driver
        gpu = str(found.get("gpu", "0"))
        self._gpus.add(gpu)
        if len(self._gpus) > MAX_GPUS:
            raise UnreadableLineError(f"more than {MAX_GPUS} different GPUs")
        known = {name: found[name] for name in GpuReading._fields if name in found and name != "gpu"}
        host = {name.removeprefix("host_"): found[name] for name in _HOST_FIELDS if name in found}
        return (
            GpuReading(at_ns=at_ns, gpu=gpu, **known) if known.keys() - {"name"} else None,
            HostReading(at_ns=at_ns, **host) if host else None,
        )


_HOST_FIELDS = ("host_cpu_share", "host_memory_bytes", "host_memory_total_bytes")

_JSON_FIELDS: Mapping[str, tuple[str, float]] = MappingProxyType(
    {
        "utilization_percent": ("utilization", 0.01),
        "memory_used_bytes": ("memory_bytes", 1),
        "memory_total_bytes": ("memory_total_bytes", 1),
        "power_w": ("power_w", 1),
        "temperature_c": ("temperature_c", 1),
        "clock_mhz": ("clock_mhz", 1),
        "energy_j": ("energy_j", 1),
        "cpu_percent": ("host_cpu_share", 0.01),
        "host_memory_used_bytes": ("host_memory_bytes", 1),
        "host_memory_total_bytes": ("host_memory_total_bytes", 1),
    }
)
_TEXT_FIELDS = ("gpu", "name", "driver")


def _parse_json(text: str) -> dict[str, Any]:
    try:
        raw = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise UnreadableLineError(f"no JSON object ({sanitize(str(error), 80)})") from error
    found: dict[str, Any] = {
        name: sanitize(str(raw[name]), 100) for name in _TEXT_FIELDS if raw.get(name) not in (None, "")
    }
    for key, (name, scale) in _JSON_FIELDS.items():
        if raw.get(key) is not None:
            found[name] = _scale_number(raw[key], scale, name, key)
    if raw.get("throttle_reasons") is not None:
        found["reasons"] = _parse_reasons(raw["throttle_reasons"])
    if not found.keys() - set(_TEXT_FIELDS):
        raise UnreadableLineError(f"an object without any of {', '.join((*_JSON_FIELDS, 'throttle_reasons'))}")
    return found


def _parse_reasons(given: object) -> int:
    if not isinstance(given, list) or not all(isinstance(reason, str) for reason in given):
        raise UnreadableLineError("throttle_reasons is no list of texts")
    for reason in given:
        if reason not in THROTTLE_REASONS:
            near = suggest_match(reason, THROTTLE_REASONS)
            raise UnreadableLineError(
                f"no throttle reason '{sanitize(reason, 40)}'{near} (valid: {', '.join(THROTTLE_REASONS)})"
            )
    return sum(THROTTLE_REASONS[reason] for reason in set(given))


_CSV_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "index": "gpu",
        "uuid": "gpu",
        "gpu_uuid": "gpu",
        "name": "name",
        "gpu_name": "name",
        "driver_version": "driver",
        "utilization.gpu": "utilization",
        "memory.used": "memory_bytes",
        "memory.total": "memory_total_bytes",
        "power.draw": "power_w",
        "power.draw.average": "power_w",
        "temperature.gpu": "temperature_c",
        "clocks.sm": "clock_mhz",
        "clocks.current.sm": "clock_mhz",
        "clocks.gr": "clock_mhz",
        "clocks.current.graphics": "clock_mhz",
        "clocks_event_reasons.active": "reasons",
        "clocks_throttle_reasons.active": "reasons",
    }
)
_UNITS: Mapping[str, float] = MappingProxyType(
    {"": 1, "%": 0.01, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "W": 1, "mW": 1e-3, "MHz": 1}
)
_QUANTITY = re.compile(r"([-+]?\d+(?:\.\d+)?)\s*([A-Za-z%]*)")


def _split_cells(text: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([text], skipinitialspace=True))]
    except (csv.Error, StopIteration) as error:
        raise UnreadableLineError("neither JSON nor CSV") from error


def _parse_header(text: str) -> list[tuple[str, float] | None]:
    """Return the field and unit of each column, ``None`` for columns that are not needed."""
    columns: list[tuple[str, float] | None] = []
    for cell in _split_cells(text):
        column, _, unit = cell.partition(" [")
        name = _CSV_COLUMNS.get(column)
        columns.append(None if name is None else (name, _UNITS.get(unit.rstrip("]"), 1)))
    if not {column[0] for column in columns if column} - set(_TEXT_FIELDS):
        raise UnreadableLineError(
            f"'{sanitize(text, 60)}' is no JSON object and no header of nvidia-smi --format=csv "
            "(columns such as index, name, memory.used, power.draw; noheader leaves out what is needed)"
        )
    return columns


def _parse_csv(text: str, columns: list[tuple[str, float] | None]) -> dict[str, Any]:
    cells = _split_cells(text)
    if len(cells) != len(columns):
        raise UnreadableLineError(f"{len(cells)} columns where the header has {len(columns)}")
    found: dict[str, Any] = {}
    for cell, column in zip(cells, columns, strict=True):
        if column is not None and cell and not cell.startswith("["):  # "[N/A]", "[Not Supported]"
            value = _CELL_PARSERS.get(column[0], _parse_quantity)(cell, *column)
            if value is not None:
                found.setdefault(column[0], value)
    return found


def _parse_quantity(cell: str, name: str, scale: float) -> float | None:
    """Parse ``93 %`` or, with the unit in the header, ``93``; ``None`` for text such as ``N/A``."""
    match = _QUANTITY.fullmatch(cell)
    if match is None or match[2] not in _UNITS:
        return None
    return _scale_number(float(match[1]), _UNITS[match[2]] if match[2] else scale, name, cell)


def _parse_hexadecimal(cell: str, name: str, scale: float) -> int | None:
    try:
        return int(cell, 16)
    except ValueError:
        return None


def _clean_text(cell: str, name: str, scale: float) -> str:
    return sanitize(cell, 100)


_CELL_PARSERS: Mapping[str, Callable[[str, str, float], Any]] = MappingProxyType(
    {"gpu": _clean_text, "name": _clean_text, "driver": _clean_text, "reasons": _parse_hexadecimal}
)


def _scale_number(value: object, scale: float, name: str, text: str) -> float:
    """Return a value in the unit of its field; only temperatures may be negative."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UnreadableLineError(f"{text} is no number")
    if not (-100 if name == "temperature_c" else 0) <= value <= 1e18:
        raise UnreadableLineError(f"{text} cannot be {value}")
    scaled = value * scale
    return int(scaled) if name.endswith("_bytes") else min(scaled, 1.0) if scale == 0.01 else float(scaled)


FIRST_READING_TIMEOUT_S = 10.0
"""How long the load waits for the first reading, which includes the time that ssh takes to connect."""

MAX_LINES_PER_SECOND = 200
"""Maximum lines per second; reading more would take CPU time from the load."""

_STOP_TIMEOUT_S = 2.0
_STDERR_TAIL_BYTES = 2000


def parse_command(text: str, flag: str) -> tuple[str, ...]:
    """Split a command into arguments; ``ConfigError`` names ``flag``."""
    try:
        arguments = tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"{flag}: cannot be split into words ({error}); check its quotes") from None
    if not arguments or not arguments[0]:
        raise ConfigError(f"{flag} is empty; give a command that prints readings, or 'off'")
    return arguments


class CommandMeter:
    """Runs the command while a load runs, and logs its readings."""

    def __init__(self, arguments: tuple[str, ...], *, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._arguments = arguments
        self._clock = clock

    @contextlib.contextmanager
    def record(self) -> Iterator[TelemetryLog]:
        """Read while the block runs, which starts with the first reading; the log is complete after the block."""
        log = TelemetryLog(source="command")
        try:
            process = subprocess.Popen(
                self._arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            log.missing = f"the telemetry command cannot be started: {sanitize(why, 100)}"
            yield log
            return
        began, follower = self._clock(), _CommandReader(process, log, self._clock)
        try:
            follower.started.wait(FIRST_READING_TIMEOUT_S)
            yield log
        finally:
            follower.stop()
            log.cpu_share = follower.spent_ns / max(1, self._clock() - began)


class _CommandReader:
    """Follows one process, with a thread for standard output and one for standard error."""

    def __init__(self, process: subprocess.Popen[bytes], log: TelemetryLog, clock: Callable[[], int]) -> None:
        self.started = threading.Event()
        self.spent_ns = 0
        self._process = process
        self._log = log
        self._clock = clock
        self._complaint = b""
        self._output_error = ""
        self._silent = False
        self._threads = [self._start_thread(self._read_output), self._start_thread(self._read_errors)]

    def _start_thread(self, run: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=run, name="ollama-perf-telemetry", daemon=True)
        thread.start()
        return thread

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        lines, began = LineReader(), self._clock()
        try:
            for number, line in enumerate(_iter_lines(self._process.stdout)):
                at_ns = self._clock()
                if number > MAX_LINES_PER_SECOND * (1 + (at_ns - began) / 1e9):
                    raise UnreadableLineError(f"more than {MAX_LINES_PER_SECOND} lines a second")
                self._record_line(line, at_ns, lines)
                self.spent_ns = time.thread_time_ns()
            self._silent = True
        except UnreadableLineError as error:
            self._output_error = f"the telemetry command printed what cannot be read: {error}"
        except (OSError, ValueError):  # the pipe was closed by another thread
            return
        finally:
            self.started.set()

    def _record_line(self, line: str, at_ns: int, lines: LineReader) -> None:
        gpu, host = lines.read(line, at_ns)
        self._log.driver = lines.driver
        if gpu is not None:
            self._log.gpus.append(gpu)
        if host is not None:
            self._log.host.append(host)
        if gpu is not None or host is not None:
            self._log.thin()
            self.started.set()

    def _read_errors(self) -> None:
        """Keep the end of standard error. Reading it also prevents a full pipe from blocking the command."""
        assert self._process.stderr is not None
        with contextlib.suppress(OSError, ValueError):
            while piece := self._process.stderr.read1(_STDERR_TAIL_BYTES):  # type: ignore[attr-defined]
                self._complaint = (self._complaint + piece)[-_STDERR_TAIL_BYTES:]

    def stop(self) -> None:
        """End the command and return what went wrong."""
        ended = self._wait_for_exit()
        if ended is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for thread in self._threads:
            thread.join(_STOP_TIMEOUT_S)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None and not any(thread.is_alive() for thread in self._threads):
                pipe.close()
        self._log.missing = self._output_error or self._explain_missing(ended)

    def _wait_for_exit(self) -> int | None:
        """Return the status with which the command ended by itself, ``None`` while it runs."""
        if self._silent:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(_STOP_TIMEOUT_S)
        return self._process.poll()

    def _explain_missing(self, ended: int | None) -> str:
        if ended is not None:
            text = sanitize(self._complaint.decode("utf-8", "replace").strip().rpartition("\n")[2], 150)
            return f"the telemetry command ended by itself with {ended}{f': {text}' if text else ''}"
        return "" if self._log.gpus else "the telemetry command printed no reading of a GPU"


def _iter_lines(pipe: IO[bytes]) -> Iterator[str]:
    """Yield lines as they arrive; raise an error for a line that is too long to be a reading."""
    while line := pipe.readline(MAX_LINE_CHARS):
        if len(line) == MAX_LINE_CHARS and not line.endswith(b"\n"):
            raise UnreadableLineError(f"a line of more than {MAX_LINE_CHARS} bytes")
        yield line.decode("utf-8", "replace")
