"""What must be so before a load says anything: a broken precondition makes a measurement invalid, not slow."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pytest_ollama_perf.config import parse_percent
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.run import ModelState, Run
from pytest_ollama_perf.core.text import safe_repr
from pytest_ollama_perf.metrics import format_percent

_OPS: Mapping[str, Callable[[Any, Any], bool]] = MappingProxyType(
    {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt}
)
_BOUND = re.compile(r"(<=|>=|==|!=|<|>)?\s*(.+)")
_VERSION = re.compile(r"v?(\d{1,6}(?:\.\d{1,6}){0,2})")


@dataclass(frozen=True)
class Precondition:
    """One precondition. ``broken`` says of a run that is about to begin what is not as required, or nothing."""

    name: str
    wanted: str
    find_violation: Callable[[Run], str]

    def explain_violation(self, run: Run) -> str:
        """Return why ``run`` must not count; empty where the precondition holds."""
        found = self.find_violation(run)
        return f"precondition {self.name} = {self.wanted!r} is broken: {found}" if found else ""


def explain_violations(requirements: Iterable[Precondition], run: Run) -> str:
    """Return every broken precondition of ``run`` in one line; empty where all hold."""
    return "; ".join(filter(None, (requirement.explain_violation(run) for requirement in requirements)))


def parse_precondition(name: str, value: object) -> Precondition:
    """Read one line of ``require``; ``ConfigError`` says what is wrong with it."""
    return PRECONDITIONS[name].parse(name, value)


def _parse_gpu_offload(name: str, value: object) -> Precondition:
    op, share = _parse_bound(name, value, "'100%', '>= 80%' or '0%'")
    wanted = 0.0 if share.rstrip("%").strip() in {"0", "0.0"} else parse_percent(share, f"{name} = {safe_repr(value)}")
    if wanted > 1:
        raise ConfigError(f"{name} = {safe_repr(value)}: no more than 100% of a model can be in GPU memory")

    def broken(run: Run) -> str:
        states = _list_known_states(run)
        wrong = [share for share in (state.vram_share for state in states) if not _is_within(share, op, wanted)]
        if not wrong and (states or run.workload.cold):
            return ""
        known = wrong[0] if wrong else None
        return "the server does not say" if known is None else f"{format_percent(known)} of the model is in GPU memory"

    return Precondition(name, str(value), broken)


def _list_known_states(run: Run) -> list[ModelState]:
    """Return the model's states before the load; a cold load begins without one, and its warm sister shows it."""
    return [state for state in run.before.values() if state.loaded or not run.workload.cold]


def _is_within(share: float | None, op: str, wanted: float) -> bool:
    return share is not None and _OPS[op](round(share, 4), wanted)


def _parse_context_length(name: str, value: object) -> Precondition:
    number = value if isinstance(value, int) and not isinstance(value, bool) else None
    op, text = ("==", str(number)) if number is not None else _parse_bound(name, value, "4096 or '>= 8192'")
    if not text.isdigit():
        raise ConfigError(f"{name} = {safe_repr(value)}: expected 4096 or '>= 8192'")

    def broken(run: Run) -> str:
        lengths = [state.context_length for state in _list_known_states(run)]
        wrong = [length for length in lengths if length is None or not _OPS[op](length, int(text))]
        if not wrong:
            return ""
        return "the server does not say" if wrong[0] is None else f"the model is loaded with num_ctx {wrong[0]}"

    return Precondition(name, str(value), broken)


def _parse_version(name: str, value: object) -> Precondition:
    """Read ``">= 0.30"`` or ``">= 0.30, < 0.34"``: a comparison counts as many numbers as it names."""
    parts = [_parse_bound(name, part, "'0.32.15', '>= 0.30' or '>= 0.30, < 0.34'") for part in _split_parts(value)]
    if not all(_VERSION.fullmatch(text) for _, text in parts):
        raise ConfigError(f"{name} = {safe_repr(value)}: expected '0.32.15', '>= 0.30' or '>= 0.30, < 0.34'")

    def broken(run: Run) -> str:
        seen = _VERSION.match(run.fingerprint.server_version)
        if seen is None:
            return f"the server calls itself {run.fingerprint.server_version or 'nothing'!r}"
        held = all(_OPS[op](*_align_versions(seen[1], text.lstrip("v"))) for op, text in parts)
        return "" if held else f"the server is {run.fingerprint.server_version}"

    return Precondition(name, str(value), broken)


def _align_versions(seen: str, wanted: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    numbers = tuple(int(part) for part in wanted.split("."))
    return tuple(int(part) for part in seen.split("."))[: len(numbers)], numbers


def _build_text_parser(field: str) -> Callable[[str, object], Precondition]:
    """Read a text, or a list of those that will do."""

    def read(name: str, value: object) -> Precondition:
        texts: list[Any] = list(value) if isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ConfigError(f"{name} = {safe_repr(value)}: expected a text, or a list of texts of which one will do")

        def broken(run: Run) -> str:
            seen = str(getattr(run.fingerprint, field))
            return "" if any(_is_same_text(field, seen, text) for text in texts) else f"it is {seen or 'not known'}"

        return Precondition(name, " or ".join(texts), broken)

    return read


def _is_same_text(field: str, seen: str, wanted: str) -> bool:
    if field != "model_digest":
        return seen.casefold() == wanted.strip().casefold()
    return bool(seen) and seen.removeprefix("sha256:").startswith(wanted.strip().removeprefix("sha256:"))


def _parse_server_env(name: str, value: object) -> Precondition:
    if not isinstance(value, dict) or not value or not all(isinstance(each, str) for each in value.values()):
        raise ConfigError(
            f"{name} = {safe_repr(value)}: expected a table of texts such as {{OLLAMA_NUM_PARALLEL = '4'}}"
        )

    def broken(run: Run) -> str:
        declared = run.fingerprint.server_env
        wrong = [key for key, wanted in value.items() if declared.get(key) != wanted]
        return "" if not wrong else f"{wrong[0]} is {declared.get(wrong[0], 'not declared; see --ollama-server-env')}"

    return Precondition(name, ", ".join(f"{key}={wanted}" for key, wanted in value.items()), broken)


def _parse_bound(name: str, value: object, expected: str) -> tuple[str, str]:
    match = _BOUND.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(f"{name} = {safe_repr(value)}: expected {expected}")
    return match[1] or "==", match[2].strip()


def _split_parts(value: object) -> list[object]:
    return list(value.split(",")) if isinstance(value, str) else [value]


@dataclass(frozen=True)
class PreconditionKind:
    """One key of ``require``: its description, and the function that parses its value."""

    help: str
    parse: Callable[[str, object], Precondition]


PRECONDITIONS: Mapping[str, PreconditionKind] = MappingProxyType(
    {
        "gpu_offload": PreconditionKind(
            "share of the model in GPU memory: `'100%'`, `'>= 80%'`, `'0%'`", _parse_gpu_offload
        ),
        "context_length": PreconditionKind(
            "context length of the loaded model: `8192`, `'>= 8192'`", _parse_context_length
        ),
        "version": PreconditionKind("version of Ollama: `'>= 0.30'`, `'>= 0.30, < 0.33'`", _parse_version),
        "quantization": PreconditionKind(
            "quantization, or a list of accepted ones: `'Q4_K_M'`", _build_text_parser("quantization")
        ),
        "family": PreconditionKind("model family", _build_text_parser("family")),
        "parameter_size": PreconditionKind("size in parameters: `'3.2B'`", _build_text_parser("parameter_size")),
        "digest": PreconditionKind("digest of the model, or its beginning", _build_text_parser("model_digest")),
        "server_env": PreconditionKind(
            "declared settings of the server: `{OLLAMA_NUM_PARALLEL = '4'}`", _parse_server_env
        ),
    }
)
"""Every key of ``require``."""
