"""A run: every sample of one load on one loaded model, and what identifies server, model and client."""

from __future__ import annotations

import msgspec

from pytest_ollama_perf.core.sample import Phase, Sample
from pytest_ollama_perf.core.workload import Endpoint, Workload

SCHEMA = 1


class ModelState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What ``/api/ps`` says of the model; ``loaded`` is false where it lists none."""

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
    """One of several servers of a load: what it is, its share by weight, and why it did not answer before the load."""

    fingerprint: Fingerprint = Fingerprint()
    weight: float = 1.0
    down: str = ""


class ClientStats(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the client noticed of itself while it measured."""

    loop_lag_p90_s: float = 0.0
    loop_lag_p99_s: float = 0.0
    loop_lag_max_s: float = 0.0
    cpu_share: float = 0.0  # of one core, over the measured window
    read_lag_p99_s: float = 0.0
    telemetry_cpu_share: float = 0.0  # of one core: what reading GPU and machine cost, in a thread of its own


class GpuStats(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One GPU over the measured window; ``None`` stands for what its driver does not tell.

    Means, but for what is called ``max`` or ``min``; memory is the most that was in use, by whatever program.
    ``throttled`` has the share of readings in which a reason slowed the clocks.
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
    """The server's machine over the measured window: busy share of all its cores, most memory in use."""

    cpu_share: float | None = None
    max_cpu_share: float | None = None
    memory_bytes: int | None = None
    memory_total_bytes: int | None = None


class Telemetry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was read of GPUs and machine beside the load.

    ``source`` is ``nvml`` or ``command``; ``missing`` says why nothing, or not all, is known of the GPUs.
    ``memory_bytes`` is the most in use at once on all of them.
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
        """Whether GPUs were read from the window's beginning to its end."""
        return bool(self.gpus) and not self.missing

    @property
    def energy_j(self) -> float | None:
        """Joules of all GPUs together; ``None`` where one of them does not tell."""
        found = [gpu.energy_j for gpu in self.gpus if gpu.energy_j is not None]
        return sum(found) if found and len(found) == len(self.gpus) else None


class Run(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One load as it happened. Derived numbers are never stored here: ``summary.summarise`` computes them.

    ``loads`` holds the seconds that loading the model took where this run loaded it itself; ``before`` and ``after``
    are the model's state around the load, per URL. ``servers`` says what each of several servers is, per URL; the
    fingerprint is that of all of them. ``telemetry`` is ``None`` where nobody read the GPU and the machine.
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
    aborted: str = ""  # why the load was stopped early; empty when it was not

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
        return tuple(sample for sample in self.samples if sample.stage is Phase.MEASURED)

    @property
    def warmup(self) -> tuple[Sample, ...]:
        return tuple(sample for sample in self.samples if sample.stage is Phase.WARMUP)
