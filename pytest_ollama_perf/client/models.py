"""Models as the control plane names and describes them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from pytest_ollama_perf.core.text import sanitize

_MAX_PARAMETERS = 100
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


def canonicalize_model(model: str) -> str:
    """Return ``model`` with its tag; without one Ollama means ``latest``."""
    name = model.strip()
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def is_same_model(one: str, other: str) -> bool:
    """Return whether both names mean one model."""
    return canonicalize_model(one).casefold() == canonicalize_model(other).casefold()


def find_similar_models(model: str, installed: Iterable[str], count: int = 3) -> list[str]:
    """Return the ``count`` names most like ``model``, the nearest first; any where none is like it."""
    names = sorted(installed)
    close = sorted(
        (name for name in names if _compute_similarity(model, name) >= _SIMILARITY_CUTOFF),
        key=lambda name: -_compute_similarity(model, name),
    )
    return close[:count] or names[:count]


_SIMILARITY_CUTOFF = 0.5


def _compute_similarity(one: str, other: str) -> float:
    """Return 0..1; names count without their tags, too, for every second model has the tag ``latest``."""
    whole = one.casefold(), other.casefold()
    bare = one.casefold().partition(":")[0], other.casefold().partition(":")[0]
    return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in (whole, bare))


class ModelDetails(msgspec.Struct, frozen=True):
    """What a model is made of; empty where the server does not say."""

    family: str = ""
    parameter_size: str = ""
    quantization_level: str = ""


class InstalledModel(msgspec.Struct, frozen=True):
    """A model of ``/api/tags``; ``size`` in bytes."""

    name: str
    digest: str = ""
    size: _Size = 0
    details: ModelDetails = ModelDetails()


class RunningModel(msgspec.Struct, frozen=True):
    """A model of ``/api/ps``; sizes in bytes, ``context_length`` in tokens."""

    name: str
    digest: str = ""
    size: _Size | None = None
    size_vram: _Size | None = None
    context_length: _Size | None = None
    details: ModelDetails = ModelDetails()
    expires_at: str = ""


class ModelInfo(msgspec.Struct, frozen=True):
    """What ``/api/show`` says; ``model_info`` is the model file's own metadata."""

    details: ModelDetails = ModelDetails()
    model_info: dict[str, Any] = {}
    capabilities: tuple[str, ...] = ()
    parameters: str = ""

    @property
    def default_options(self) -> dict[str, str]:
        """The options that the model file sets, as text; an option that is set several times has all its values."""
        found: dict[str, str] = {}
        for line in self.parameters.splitlines()[:_MAX_PARAMETERS]:
            name, _, value = line.strip().partition(" ")
            if name and value:
                found[name] = f"{found[name]}, {value.strip()}" if name in found else value.strip()
        return {sanitize(name, 40): sanitize(value, 100) for name, value in found.items()}

    @property
    def context_length(self) -> int | None:
        """The longest context that the model was made for, in tokens."""
        lengths = (value for key, value in self.model_info.items() if key.endswith(".context_length"))
        return next((length for length in lengths if type(length) is int and length > 0), None)
