"""NVIDIA GPUs of this machine, read through nvidia-ml-py (the extra ``gpu``).

Queries that a GPU or driver does not support are tried once. A lost GPU ends its readings and is reported.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from pytest_ollama_perf.core.text import sanitize
from pytest_ollama_perf.telemetry.readings import GpuReading

MISSING_EXTRA = "nvidia-ml-py is not installed: pip install 'pytest-ollama-perf[gpu]'"

_UNSUPPORTED_CODES = frozenset({3, 4, 13, 25, 26})
"""NVML's codes for not supported, no permission, function not found, argument version mismatch, deprecated."""

_LOST_CODES = frozenset({1, 9, 15, 16, 28})
"""NVML's codes for uninitialized, driver not loaded, GPU is lost, reset required, GPU not found."""


class Nvml(Protocol):
    """The used part of the module ``pynvml``. Every function raises ``NVMLError``, which has a ``value``."""

    NVMLError: type[Exception]
    NVML_TEMPERATURE_GPU: int
    NVML_CLOCK_SM: int

    def nvmlInit(self) -> object:
        """Open the library."""

    def nvmlShutdown(self) -> object:
        """Close the library."""

    def nvmlSystemGetDriverVersion(self) -> str | bytes:
        """Return the version of the driver."""

    def nvmlDeviceGetCount(self) -> int:
        """Return the number of GPUs."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        """Return the handle of a GPU."""

    def nvmlDeviceGetName(self, handle: Any) -> str | bytes:
        """Return the name of a GPU."""


def import_nvml() -> Nvml | None:
    """Return the module, ``None`` if the extra is not installed or cannot be imported."""
    if importlib.util.find_spec("pynvml") is None:
        return None
    try:
        return cast(Nvml, importlib.import_module("pynvml"))
    except Exception:  # another package of that name, or a broken one
        return None


@dataclass
class _Device:
    handle: Any
    gpu: str
    name: str
    unsupported: set[str] = field(default_factory=set)


class NvmlGpus:
    """The GPUs that the driver reports.

    ``missing`` explains why there are none, and names a GPU that stops answering.
    """

    name = "nvml"

    def __init__(self, nvml: Nvml | None) -> None:
        self.driver = ""
        self.missing = ""
        self._devices: list[_Device] = []
        self._opened = False
        if nvml is None:
            self.missing = MISSING_EXTRA
            return
        self._nvml = nvml
        try:
            self._open()
        except nvml.NVMLError as error:
            self.missing = f"no NVIDIA GPU to be read: {sanitize(str(error), 100)}"
        except (OSError, AttributeError) as error:
            self.missing = f"no NVIDIA GPU to be read: {type(error).__name__}: {sanitize(str(error), 100)}"

    def _open(self) -> None:
        self._nvml.nvmlInit()
        self._opened = True
        self.driver = _decode_text(self._nvml.nvmlSystemGetDriverVersion())
        for index in range(self._nvml.nvmlDeviceGetCount()):
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            self._devices.append(_Device(handle, str(index), _decode_text(self._nvml.nvmlDeviceGetName(handle))))
        if not self._devices:
            self.missing = "no NVIDIA GPU to be read: the driver shows none"

    def __bool__(self) -> bool:
        return bool(self._devices)

    def read(self, at_ns: int) -> Iterator[GpuReading]:
        """Yield one reading of each GPU that still answers."""
        for device in list(self._devices):
            try:
                yield self._read_device(device, at_ns)
            except _GpuLostError as error:
                self._devices.remove(device)
                self.missing = f"GPU {device.gpu} stopped answering: {error}"

    def _read_device(self, device: _Device, at_ns: int) -> GpuReading:
        memory = self._query(device, "nvmlDeviceGetMemoryInfo")
        rates = self._query(device, "nvmlDeviceGetUtilizationRates")
        return GpuReading(
            at_ns=at_ns,
            gpu=device.gpu,
            name=device.name,
            utilization=None if rates is None else rates.gpu / 100,
            memory_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            power_w=_from_thousandths(self._query(device, "nvmlDeviceGetPowerUsage")),
            temperature_c=self._query(device, "nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU),
            clock_mhz=self._query(device, "nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM),
            energy_j=_from_thousandths(self._query(device, "nvmlDeviceGetTotalEnergyConsumption")),
            reasons=self._read_reasons(device),
        )

    def _read_reasons(self, device: _Device) -> int | None:
        """The function has two names; drivers before 535 only have the second one."""
        found = self._query(device, "nvmlDeviceGetCurrentClocksEventReasons")
        if found is None:
            found = self._query(device, "nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if found is None else int(found)

    def _query(self, device: _Device, function: str, *arguments: object) -> Any:
        """Return the result of an NVML function, ``None`` if it is unsupported; raise an error if the GPU is lost."""
        ask = getattr(self._nvml, function, None)
        if ask is None or function in device.unsupported:
            return None
        try:
            return ask(device.handle, *arguments)
        except self._nvml.NVMLError as error:
            code = getattr(error, "value", None)
            if code in _LOST_CODES:
                raise _GpuLostError(sanitize(str(error), 100)) from error
            if code in _UNSUPPORTED_CODES:
                device.unsupported.add(function)
            return None

    def close(self) -> None:
        """Release the driver."""
        if self._opened:
            self._opened = False
            self._devices.clear()
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError:
                return


class _GpuLostError(Exception):
    """The GPU is lost; querying it again is useless."""


def _from_thousandths(thousandths: float | None) -> float | None:
    """Convert NVML's milliwatts and millijoules."""
    return None if thousandths is None else thousandths / 1000


def _decode_text(value: str | bytes) -> str:
    return sanitize(value.decode("utf-8", "replace") if isinstance(value, bytes) else value, 100)
