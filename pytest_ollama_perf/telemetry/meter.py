"""Which telemetry belongs to a load: that of this machine, of the user's command, or none."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterable, Iterator
from typing import Protocol

from pytest_ollama_perf.telemetry.command import CommandMeter, parse_command
from pytest_ollama_perf.telemetry.host import this_host
from pytest_ollama_perf.telemetry.nvml import NvmlGpus, installed
from pytest_ollama_perf.telemetry.reading import Log
from pytest_ollama_perf.telemetry.sampler import Sampler

OFF = "off"


class Meter(Protocol):
    """Keeps a log of GPU and machine while a load runs."""

    def reading(self) -> contextlib.AbstractContextManager[Log]: ...


class Elsewhere:
    """Nothing is read; the log says why."""

    def __init__(self, why: str) -> None:
        self._why = why

    @contextlib.contextmanager
    def reading(self) -> Iterator[Log]:
        """Yield a log without readings."""
        yield Log(missing=self._why)


class Meters:
    """The telemetry of one session. Drivers are opened with the first load that needs them, and closed with it.

    ``asked`` is the setting: a command, ``off``, or nothing for this machine's own GPUs.
    """

    def __init__(self, asked: str | None) -> None:
        self._off = asked == OFF
        self._command = CommandMeter(parse_command(asked, "--ollama-telemetry")) if asked and not self._off else None
        self._gpus: NvmlGpus | None = None

    def of(self, hosts: Iterable[str], *, simulated: bool) -> Meter:
        """Return the telemetry of the servers at ``hosts``; a simulator has no GPU of its own."""
        if self._command is not None:
            return self._command
        if self._off:
            return Elsewhere("telemetry is switched off (--ollama-telemetry=off)")
        if simulated:
            return Elsewhere("a simulator has no GPU")
        if not all(map(is_here, hosts)):
            return Elsewhere("the server is not on this machine; give --ollama-telemetry a command that reads it")
        if self._gpus is None:
            self._gpus = NvmlGpus(installed())
        return Sampler(self._gpus, this_host())

    def close(self) -> None:
        """Let go of the driver."""
        if self._gpus is not None:
            self._gpus.close()


def is_here(host: str) -> bool:
    """Tell whether ``host`` can only be this machine: a loopback address, ``localhost`` or its own name."""
    name = host.rstrip(".").lower()
    if name in {"localhost", socket.gethostname().lower()} or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
