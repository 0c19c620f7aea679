"""A run: all samples of one load on one loaded model, and what identifies server, model and client."""

from __future__ import annotations

import msgspec

from pytest_ollama_perf.core.sample import Phase, Sample
from pytest_ollama_perf.core.workload import Endpoint, Workload

SCHEMA = 1


class ModelState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The state of a model in ``/api/ps``; ``loaded`` is false if it is not listed."""

    loaded: bool = False
    size: int | None = None
    size_vram: int | None = None
    context_length: int | None = None
    digest: str = ""

    @property
    def vram_share(self) -> float | None:
        """Share of the model in GPU memory, 0..1; ``None`` while not loaded."""
        return self.size_vram / self.size if self.size and self.size_vram is not None else None


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What identifies the server and the model of a run.

    ``context_length`` is the context that the model is loaded with, in tokens. ``parameters`` are the options that the
    model file sets and ``capabilities`` what the model can do, both from ``/api/show``. ``server_env`` is what the user
    declares, because the API does not report it. ``servers`` is the number of servers, or their weights.
    """

    server_version: str = ""
    model: str = ""
    model_digest: str = ""
    quantization: str = ""
    family: str = ""
    parameter_size: str = ""
    context_length: int | None = None
    vram_share: float | None = None
    gpu: str = ""
    driver: str = ""
    parameters: dict[str, str] = {}
    capabilities: tuple[str, ...] = ()
    server_env: dict[str, str] = {}
    servers: str = ""  # how many, or their weights as in "2:1:1"; empty for one
    client: dict[str, str] = {}


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One of several servers of a load: its fingerprint, its weight, and why it did not answer before the load."""

    fingerprint: Fingerprint = Fingerprint()
    weight: float = 1.0
    down: str = ""


class ClientStats(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The client's monitoring of itself during the load."""

    loop_lag_p90_s: float = 0.0
    loop_lag_p99_s: float = 0.0
    loop_lag_max_s: float = 0.0
    cpu_share: float = 0.0  # of one core, over the measured window
    read_lag_p99_s: float = 0.0
    telemetry_cpu_share: float = 0.0  # of one core: CPU time of the telemetry thread


class GpuStats(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One GPU over the measured window; ``None`` means that the driver does not report the value.

    Values are means unless their name has ``max`` or ``min``. Memory is the highest use, by all programs.
    ``throttled`` maps reasons to the share of readings in which they lowered the clocks.
    """

    name: str = ""
    utilization: float | None = None
    memory_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_w: float | None = None
    max_power_w: float | None = None
    max_temperature_c: float | None = None
    clock_mhz: float | None = None
    min_clock_mhz: float | None = None
    energy_j: float | None = None
    throttled: dict[str, float] = {}


class HostStats(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The server's machine over the measured window: busy share of all cores, highest memory in use."""

    cpu_share: float | None = None
    max_cpu_share: float | None = None
    memory_bytes: int | None = None
    memory_total_bytes: int | None = None


class Telemetry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Readings of GPUs and machine during the load.

    ``source`` is ``nvml`` or ``command``; ``missing`` explains missing or incomplete GPU readings. ``memory_bytes`` is
    the highest total of all GPUs.
    """

    source: str = ""
    driver: str = ""
    missing: str = ""
    readings: int = 0
    gpus: tuple[GpuStats, ...] = ()
    memory_bytes: int | None = None
    host: HostStats | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the GPU readings cover the whole window."""
        return bool(self.gpus) and not self.missing

    @property
    def energy_j(self) -> float | None:
        """Joules of all GPUs together; ``None`` if one of them does not report them."""
        found = [gpu.energy_j for gpu in self.gpus if gpu.energy_j is not None]
        return sum(found) if found and len(found) == len(self.gpus) else None


class Run(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One measured load. Derived numbers are not stored here: ``summary.summarise`` computes them.

    ``load_time_s`` is how long loading the model took if this run loaded it. ``before`` and ``after`` are the model's
    state around the load, per URL. ``servers`` describes each of several servers, per URL; ``fingerprint`` combines
    them. ``telemetry`` is ``None`` if none was collected.
    """

    schema: int = SCHEMA
    id: str
    test: str = ""
    session: str = ""
    started_at: float = 0.0  # Unix seconds
    git_commit: str = ""
    plugin_version: str = ""
    workload: Workload
    fingerprint: Fingerprint = Fingerprint()
    samples: tuple[Sample, ...] = ()
    load_time_s: float | None = None
    before: dict[str, ModelState] = {}
    after: dict[str, ModelState] = {}
    servers: dict[str, ServerInfo] = {}
    watch: ClientStats = ClientStats()
    telemetry: Telemetry | None = None
    aborted: str = ""  # why the load was stopped early; empty if it was not

    @property
    def is_thinking(self) -> bool:
        """Whether the model thinks before it answers: as the workload says, else wherever the model can.

        Raw prompts bypass the template, which turns thinking on.
        """
        if self.workload.think is not None:
            return bool(self.workload.think)
        can_think = "thinking" in self.fingerprint.capabilities and self.workload.endpoint is not Endpoint.EMBED
        return can_think and not self.workload.sends_raw_prompt

    @property
    def measured(self) -> tuple[Sample, ...]:
        """The samples of the measured phase."""
        return tuple(sample for sample in self.samples if sample.stage is Phase.MEASURED)

    @property
    def warmup(self) -> tuple[Sample, ...]:
        """The warm-up samples."""
        return tuple(sample for sample in self.samples if sample.stage is Phase.WARMUP)
