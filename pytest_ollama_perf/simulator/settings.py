"""The settings of a simulator, which are passed to another process as JSON."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence

import msgspec

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.simulator.faults import Fault

_VERSION_PATTERN = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:[-+].*)?")


class VersionProfile(msgspec.Struct, frozen=True, kw_only=True):
    """The behaviour of one server version.

    ``default_slots`` is what an unset ``OLLAMA_NUM_PARALLEL`` means; ``single_token_eval_ns`` the ``eval_duration`` at
    an ``eval_count`` of 1 (0 is left out); ``eval_excludes_sampling`` marks the old runners.
    """

    default_slots: int = 1
    single_token_eval_ns: int = 1000
    eval_excludes_sampling: bool = False
    counts_cached_tokens: bool = True
    sends_cached_count: bool = False


def parse_version(version: str) -> tuple[int, int, int]:
    """Return the three numbers of ``version``; ``ConfigError`` if it has another form."""
    found = _VERSION_PATTERN.fullmatch(version)
    if not found:
        raise ConfigError(f"simulator: version {version!r} is not of the form 0.32.15")
    major, minor, patch = (int(part) for part in found.groups())
    return major, minor, patch


def get_profile(version: str) -> VersionProfile:
    """Return the behaviour of ``version``."""
    number = parse_version(version)
    old_runner = number < (0, 25, 0)
    return VersionProfile(
        default_slots=4 if number < (0, 10, 0) else 1,
        single_token_eval_ns=0 if old_runner else 1000,
        eval_excludes_sampling=old_runner,
        counts_cached_tokens=not (0, 30, 0) <= number < (0, 30, 1),
        sends_cached_count=number >= (0, 33, 3),
    )


CAPABILITIES = ("completion", "embedding", "thinking", "tools", "vision")


class SimulatedModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of the simulated server; speeds and load time override those of the server.

    ``size`` is the size of its file in bytes; ``vram_share`` the share in GPU memory, 0..1 (``None``: the server's).
    ``num_ctx`` is the context length that the model file sets, which takes precedence over the server's default.
    """

    name: str
    size: int = 2_019_393_189
    quantization: str = "Q4_K_M"
    parameters: str = "3.2B"
    family: str = "llama"
    digest: str = ""
    capabilities: tuple[str, ...] = ("completion",)
    context_length: int = 131_072
    num_ctx: int | None = None
    embedding_length: int = 3072
    vram_share: float | None = None
    tps: float | None = None
    prefill_tps: float | None = None
    load_time_s: float | None = None

    @property
    def full_name(self) -> str:
        """The name with its tag, which is ``latest`` by default."""
        return qualify_name(self.name)

    @property
    def full_digest(self) -> str:
        """The digest, derived from the name if none is set."""
        return self.digest or hashlib.sha256(self.full_name.encode()).hexdigest()

    def has_capability(self, capability: str) -> bool:
        """Return whether the model has a capability."""
        return capability in self.capabilities


def qualify_name(name: str) -> str:
    """Return a model's name with its tag."""
    return name if not name or ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def _build_tiny_model(
    name: str, parameters: str, size: int, width: int, tps: float, digest: str, **more: object
) -> SimulatedModel:
    fields = {"name": name, "parameters": parameters, "size": size, "embedding_length": width, "digest": digest}
    fields |= {"quantization": "F16", "context_length": 8192, "vram_share": 0.0, "tps": tps, "load_time_s": 0.25}
    return msgspec.convert({**fields, **more}, SimulatedModel)


TRANSCRIPT_MODELS = (
    _build_tiny_model(
        "mid", "25.70M", 51_428_302, 512, 250.0, "24b7dcaab14dd92cf435de5c328135fef396fc27bd4740decacf5ad5bf00d866"
    ),
    _build_tiny_model(
        "embed",
        "918K",
        1_853_843,
        128,
        3840.0,
        "13cd2d48ef8a158e9d41ad11bbd66a784466015f1cebc0492566f5b0e0fe60ee",
        capabilities=("embedding",),
    ),
    _build_tiny_model(
        "tiny", "918K", 1_853_836, 128, 3840.0, "f3f8b41208a29ce025ce5690b4564df1743fd4c74a7417a67f49a9b0dba95477"
    ),
    _build_tiny_model(
        "small", "4.98M", 9_989_037, 256, 1390.0, "359acce1c2a942a7adbc8b23787f415c6d1617c06002a1e86b6c42d2a8fac28c"
    ),
)
"""The models of the recorded transcripts, which ran on a CPU."""

DEFAULT_MODELS = (
    SimulatedModel(name="llama3.2:3b"),
    SimulatedModel(name="llama3.2:1b", parameters="1.2B", size=1_321_098_329, embedding_length=2048),
    SimulatedModel(name="qwen3:4b", parameters="4.0B", family="qwen3", capabilities=("completion", "thinking")),
    SimulatedModel(
        name="nomic-embed-text",
        parameters="137M",
        size=274_302_450,
        quantization="F16",
        family="nomic-bert",
        capabilities=("embedding",),
        context_length=2048,
        embedding_length=768,
    ),
    *TRANSCRIPT_MODELS,
)


class SimulatorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One simulated server. ``url.URL_PARAMETERS`` describes the fields and how they are written in a ``sim:`` URL.

    ``aggregate`` gives pairs of streams and their total tokens/s. It replaces ``tps`` and ``scaling``; the total is
    interpolated between the points and constant after the last. Otherwise n streams have ``tps * n**scaling``.
    """

    slots: int | None = None
    tps: float = 80.0
    scaling: float = 0.5
    aggregate: tuple[tuple[int, float], ...] = ()
    prefill_tps: float = 2000.0
    prefill_batch: int = 1024
    load_time_s: float = 0.5
    keep_alive_s: float = 300.0
    models: tuple[SimulatedModel, ...] = DEFAULT_MODELS
    vram_share: float = 1.0
    max_loaded: int = 3
    max_queue: int = 512
    num_ctx: int = 4096
    version: str = "0.32.15"
    cache: bool = True
    cache_tokens: int = 1_000_000
    run_jitter: float = 0.0
    token_jitter: float = 0.0
    eos_after: int = 0
    thinking_tokens: int = 16
    tokens_per_line: int = 1
    warm_load_s: float = 0.001
    overhead_s: float = 0.002
    sampling_share: float = 0.04
    seed: int = 1
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        """Check the values; ``ConfigError`` names the field, its value and the valid values."""
        _check_settings(self)

    @property
    def profile(self) -> VersionProfile:
        """What the simulated version of Ollama does differently."""
        return get_profile(self.version)

    @property
    def slot_count(self) -> int:
        """The number of slots; the default depends on the version."""
        return self.slots if self.slots is not None else self.profile.default_slots

    def find_model(self, name: str) -> SimulatedModel | None:
        """Find a model by its name, with or without ``:latest``."""
        wanted = qualify_name(name)
        return next((model for model in self.models if model.full_name == wanted), None)


_POSITIVE = ("tps", "prefill_tps", "prefill_batch", "max_loaded", "max_queue", "num_ctx", "tokens_per_line")
_NOT_NEGATIVE = (
    *("load_time_s", "run_jitter", "token_jitter", "eos_after", "thinking_tokens"),
    *("warm_load_s", "overhead_s", "cache_tokens"),
)
_SHARES = ("vram_share", "scaling", "sampling_share")
_INFINITY = float("inf")


def _check_settings(settings: SimulatorSettings) -> None:
    _check_range(settings, _POSITIVE, lambda value: 0 < value < _INFINITY, "above 0")
    _check_range(settings, _NOT_NEGATIVE, lambda value: 0 <= value < _INFINITY, "0 or more")
    _check_range(settings, _SHARES, lambda value: 0 <= value <= 1, "between 0 and 1")
    if settings.slots is not None and settings.slots < 1:
        raise ConfigError(f"simulator: slots {settings.slots} must be 1 or more")
    parse_version(settings.version)
    _check_aggregate(settings.aggregate)
    _check_models(settings.models)


def _check_range(
    settings: SimulatorSettings, names: Sequence[str], is_valid: Callable[[float], bool], requirement: str
) -> None:
    for name in names:
        value = getattr(settings, name)
        if not is_valid(value):
            raise ConfigError(f"simulator: {name} {value:g} must be {requirement}")


def _check_aggregate(points: tuple[tuple[int, float], ...]) -> None:
    streams = [count for count, _ in points]
    if streams != sorted(set(streams)) or any(count < 1 or not 0 < total < _INFINITY for count, total in points):
        raise ConfigError("simulator: aggregate must give rising stream counts and tokens/s above 0, as 1:123,2:184")


def _check_models(models: tuple[SimulatedModel, ...]) -> None:
    names = [model.full_name for model in models]
    if not names or "" in names or len(names) != len(set(names)):
        raise ConfigError("simulator: models must be one or more names, each once")
    for model in models:
        for capability in model.capabilities:
            if capability not in CAPABILITIES:
                raise ConfigError(f"simulator: capability {capability!r}; valid: {', '.join(CAPABILITIES)}")
