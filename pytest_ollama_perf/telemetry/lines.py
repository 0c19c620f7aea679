"""What a telemetry command prints, line by line: JSON objects, or CSV as ``nvidia-smi --format=csv`` writes it.

A JSON line is about one GPU, or about the machine, or both. Its keys: ``gpu`` (which of several), ``name``, ``driver``,
``utilization_percent``, ``memory_used_bytes``, ``memory_total_bytes``, ``power_w``, ``temperature_c``, ``clock_mhz``,
``energy_j`` (a counter), ``throttle_reasons`` (a list of ``reading.REASONS``), ``cpu_percent``,
``host_memory_used_bytes``, ``host_memory_total_bytes``. What is not known is left out or null; other keys are passed
over. CSV needs its header line, and ``index`` or ``uuid`` where there are several GPUs.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from pytest_ollama_perf.telemetry.reading import REASONS, GpuReading, HostReading
from pytest_ollama_perf.text import inert
from pytest_ollama_perf.words import did_you_mean

LONGEST = 16 * 1024
"""Characters of a line; nothing that was asked for is longer."""

MOST_GPUS = 64


class Unreadable(ValueError):
    """A line that is none of what a telemetry command may print; the message says what it is."""


Reading = tuple[GpuReading | None, HostReading | None]


class LineReader:
    """Reads lines one after another; ``driver`` is known once a line has named it."""

    def __init__(self) -> None:
        self.driver = ""
        self._head = ""
        self._columns: list[tuple[str, float] | None] | None = None
        self._gpus: set[str] = set()

    def read(self, line: str, at_ns: int) -> Reading:
        """Return what a line says; nothing of a header or an empty line.

        Raises:
            Unreadable: it is neither JSON nor CSV of the kind that is understood.
        """
        text = line.strip()
        if not text or text == self._head:
            return None, None
        if text.startswith("{"):
            return self._known(_of_json(text), at_ns)
        if self._columns is None:
            self._head, self._columns = text, _header(text)
            return None, None
        return self._known(_of_csv(text, self._columns), at_ns)

    def _known(self, found: Mapping[str, Any], at_ns: int) -> Reading:
        self.driver = str(found.get("driver", "")) or self.driver
        gpu = str(found.get("gpu", "0"))
        self._gpus.add(gpu)
        if len(self._gpus) > MOST_GPUS:
            raise Unreadable(f"more than {MOST_GPUS} different GPUs")
        told = {name: found[name] for name in GpuReading._fields if name in found and name != "gpu"}
        host = {name.removeprefix("host_"): found[name] for name in _HOST if name in found}
        return (
            GpuReading(at_ns=at_ns, gpu=gpu, **told) if told.keys() - {"name"} else None,
            HostReading(at_ns=at_ns, **host) if host else None,
        )


_HOST = ("host_cpu_share", "host_memory_bytes", "host_memory_total_bytes")

_JSON: Mapping[str, tuple[str, float]] = MappingProxyType(
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
_TEXTS = ("gpu", "name", "driver")


def _of_json(text: str) -> dict[str, Any]:
    try:
        raw = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise Unreadable(f"no JSON object ({inert(str(error), 80)})") from error
    found: dict[str, Any] = {name: inert(str(raw[name]), 100) for name in _TEXTS if raw.get(name) not in (None, "")}
    for key, (name, scale) in _JSON.items():
        if raw.get(key) is not None:
            found[name] = _number(raw[key], scale, name, key)
    if raw.get("throttle_reasons") is not None:
        found["reasons"] = _mask(raw["throttle_reasons"])
    if not found.keys() - set(_TEXTS):
        raise Unreadable(f"an object without any of {', '.join((*_JSON, 'throttle_reasons'))}")
    return found


def _mask(given: object) -> int:
    if not isinstance(given, list) or not all(isinstance(reason, str) for reason in given):
        raise Unreadable("throttle_reasons is no list of texts")
    for reason in given:
        if reason not in REASONS:
            near = did_you_mean(reason, REASONS)
            raise Unreadable(f"no throttle reason '{inert(reason, 40)}'{near} (valid: {', '.join(REASONS)})")
    return sum(REASONS[reason] for reason in set(given))


_COLUMNS: Mapping[str, str] = MappingProxyType(
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


def _cells(text: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([text], skipinitialspace=True))]
    except (csv.Error, StopIteration) as error:
        raise Unreadable("neither JSON nor CSV") from error


def _header(text: str) -> list[tuple[str, float] | None]:
    """Return for each column what it is and the unit its header names, ``None`` for one that is not needed."""
    columns: list[tuple[str, float] | None] = []
    for cell in _cells(text):
        column, _, unit = cell.partition(" [")
        name = _COLUMNS.get(column)
        columns.append(None if name is None else (name, _UNITS.get(unit.rstrip("]"), 1)))
    if not {column[0] for column in columns if column} - set(_TEXTS):
        raise Unreadable(
            f"'{inert(text, 60)}' is no JSON object and no header of nvidia-smi --format=csv "
            "(columns such as index, name, memory.used, power.draw; noheader leaves out what is needed)"
        )
    return columns


def _of_csv(text: str, columns: list[tuple[str, float] | None]) -> dict[str, Any]:
    cells = _cells(text)
    if len(cells) != len(columns):
        raise Unreadable(f"{len(cells)} columns where the header has {len(columns)}")
    found: dict[str, Any] = {}
    for cell, column in zip(cells, columns, strict=True):
        if column is not None and cell and not cell.startswith("["):  # "[N/A]", "[Not Supported]"
            value = _CELLS.get(column[0], _quantity)(cell, *column)
            if value is not None:
                found.setdefault(column[0], value)
    return found


def _quantity(cell: str, name: str, scale: float) -> float | None:
    """Read ``93 %`` or, with the unit in the header, ``93``; nothing where the driver writes a word: ``N/A``."""
    match = _QUANTITY.fullmatch(cell)
    if match is None or match[2] not in _UNITS:
        return None
    return _number(float(match[1]), _UNITS[match[2]] if match[2] else scale, name, cell)


def _hexadecimal(cell: str, name: str, scale: float) -> int | None:
    try:
        return int(cell, 16)
    except ValueError:
        return None


def _word(cell: str, name: str, scale: float) -> str:
    return inert(cell, 100)


_CELLS: Mapping[str, Callable[[str, str, float], Any]] = MappingProxyType(
    {"gpu": _word, "name": _word, "driver": _word, "reasons": _hexadecimal}
)


def _number(value: object, scale: float, name: str, said: str) -> float:
    """Return a measured number in the unit it is kept in; nothing that is measured here is negative, but cold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unreadable(f"{said} is no number")
    if not (-100 if name == "temperature_c" else 0) <= value <= 1e18:
        raise Unreadable(f"{said} cannot be {value}")
    scaled = value * scale
    return int(scaled) if name.endswith("_bytes") else min(scaled, 1.0) if scale == 0.01 else float(scaled)
