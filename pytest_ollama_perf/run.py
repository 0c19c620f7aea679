"""A run: every sample of one load on one loaded model, and what identifies server, model and client."""

from __future__ import annotations

import msgspec

from pytest_ollama_perf.sample import Sample, Stage
from pytest_ollama_perf.workload import Workload

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
    """What two comparable runs share. ``server_env`` is what the user declares: the API does not tell."""

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
    server_env: dict[str, str] = {}
    servers: str = ""  # how many, or their weights as in "2:1:1"; empty for one
    client: dict[str, str] = {}


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One of several servers of a load: what it is, its share by weight, and why it did not answer before the load."""

    fingerprint: Fingerprint = Fingerprint()
    weight: float = 1.0
    down: str = ""


class Watch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the client noticed of itself while it measured."""

    loop_lag_p90_s: float = 0.0
    loop_lag_p99_s: float = 0.0
    loop_lag_max_s: float = 0.0
    cpu_share: float = 0.0  # of one core, over the measured window
    read_lag_p99_s: float = 0.0


class Run(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One load as it happened. Derived numbers are never stored here: ``summary.summarise`` computes them.

    ``loads`` holds the seconds that loading the model took where this run loaded it itself; ``before`` and ``after``
    are the model's state around the load, per URL. ``servers`` says what each of several servers is, per URL; the
    fingerprint is that of all of them.
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
    servers: dict[str, ServerFacts] = {}
    watch: Watch = Watch()
    aborted: str = ""  # why the load was stopped early; empty when it was not

    @property
    def measured(self) -> tuple[Sample, ...]:
        return tuple(sample for sample in self.samples if sample.stage is Stage.MEASURED)

    @property
    def warmup(self) -> tuple[Sample, ...]:
        return tuple(sample for sample in self.samples if sample.stage is Stage.WARMUP)
