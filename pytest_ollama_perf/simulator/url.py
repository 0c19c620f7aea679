"""The parameters of ``sim:`` URLs and of keyword settings: their meaning and how they are parsed.

``sim:`` is a simulator with default settings, ``sim:?slots=4&tps=80&fault=error:12@3`` one with custom settings.
``fault`` may be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.text import parse_seconds, suggest_match
from pytest_ollama_perf.simulator.faults import Fault, parse_fault
from pytest_ollama_perf.simulator.settings import DEFAULT_MODELS, SimulatedModel, SimulatorSettings

SIM_SCHEME = "sim:"
_MODEL_FIELDS = MappingProxyType(
    {name: name for name in ("tps", "prefill_tps", "load_time_s", "vram_share")} | {"aggregate": "tps"}
)
_SWITCH_VALUES = MappingProxyType(
    {"on": True, "yes": True, "true": True, "1": True, "off": False, "no": False, "false": False, "0": False}
)


@dataclass(frozen=True)
class UrlParameter:
    """One parameter of a ``sim:`` URL: the field it sets, its parser, an example and its meaning."""

    field: str
    parse: Callable[[str, Any], Any]
    example: str
    help: str


def is_sim_url(url: str) -> bool:
    """Return whether ``url`` names the built-in simulator."""
    return url.strip().lower().startswith(SIM_SCHEME)


def parse_sim_url(url: str) -> SimulatorSettings:
    """Parse a ``sim:`` URL; ``ConfigError`` names the wrong parameter or value and the valid ones."""
    rest = url.strip()[len(SIM_SCHEME) :]
    if not is_sim_url(url) or (rest and not rest.startswith("?")):
        raise ConfigError(f"{url!r}: a simulator is written as sim: or sim:?slots=4&tps=80")
    return _build_settings(_split_query(rest[1:], url), f"{url}: ")


def _split_query(query: str, url: str) -> list[tuple[str, Any]]:
    # parse_qsl would read the + of "3+7" as a space
    try:
        pairs = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise ConfigError(f"{url!r}: settings are written as sim:?slots=4&tps=80") from None
    return [(unquote(name), value) for name, value in pairs]


def read_settings(parameters: Mapping[str, Any]) -> SimulatorSettings:
    """Return settings from the parameters of a ``sim:`` URL as keywords; ``fault`` may be a list."""
    pairs: list[tuple[str, Any]] = []
    for name, value in parameters.items():
        several = name == "fault" and not isinstance(value, str | Fault)
        pairs += [(name, each) for each in value] if several else [(name, value)]
    return _build_settings(pairs, "simulator: ")


def _build_settings(pairs: Iterable[tuple[str, Any]], where: str) -> SimulatorSettings:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        key = URL_PARAMETERS.get(name.removesuffix("_s"))
        if key is None:
            raise ConfigError(
                f"{where}unknown setting {name!r}{suggest_match(name, URL_PARAMETERS)}; valid: "
                f"{', '.join(URL_PARAMETERS)}"
            )
        if key.field == "faults":
            fields["faults"] = (*fields.get("faults", ()), key.parse(name, value))
        elif key.field in fields:
            raise ConfigError(f"{where}{name} is given twice")
        else:
            fields[key.field] = key.parse(name, value)
    return SimulatorSettings(**fields | {"models": _override_models(fields)})


def _override_models(fields: Mapping[str, Any]) -> tuple[SimulatedModel, ...]:
    """Return the models, with speeds that were set for the server instead of the built-in ones."""
    overridden = {_MODEL_FIELDS[name]: None for name in fields if name in _MODEL_FIELDS}
    given: tuple[SimulatedModel, ...] = fields.get("models", DEFAULT_MODELS)
    return tuple(msgspec.structs.replace(each, **overridden) if each in DEFAULT_MODELS else each for each in given)


def describe_settings(settings: SimulatorSettings) -> str:
    """Return a one-line description of a simulator."""
    parts = [f"Ollama {settings.version}", f"{settings.slot_count} slot{'s' * (settings.slot_count != 1)}"]
    speed = ", ".join(f"{count}: {total:g}" for count, total in settings.aggregate)
    parts.append(f"tokens/s by streams {speed}" if speed else f"{settings.tps:g} tokens/s")
    parts += [f"fault {fault.kind.value}" for fault in settings.faults]
    return f"{', '.join(parts)}; models {', '.join(model.name for model in settings.models)}"


def _parse_integer(name: str, value: object) -> int:
    number = _parse_number(name, value)
    if number != int(number):
        raise ConfigError(f"simulator: {name}={value!r}: expected a whole number")
    return int(number)


def _parse_number(name: str, value: object) -> float:
    try:
        number = float(str(value))
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not abs(number) < float("inf"):
        raise ConfigError(f"simulator: {name}={value!r}: expected a number")
    return number


def _parse_duration(name: str, value: object) -> float:
    return parse_seconds(value, f"simulator: {name}")


def _parse_keep_alive(name: str, value: object) -> float:
    """Return seconds; ``-1`` means for ever, as in Ollama."""
    return -1.0 if str(value) in {"-1", "-1.0"} else _parse_duration(name, value)


def _parse_switch(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() not in _SWITCH_VALUES:
        raise ConfigError(f"simulator: {name}={value!r}: expected on or off")
    return _SWITCH_VALUES[str(value).lower()]


def _parse_text(name: str, value: object) -> str:
    return str(value)


def _parse_points(name: str, value: object) -> tuple[tuple[int, float], ...]:
    """Parse ``1:123,2:184``, or a mapping or list of pairs."""
    pairs: list[Any] = []
    if isinstance(value, str):
        pairs = [part.split(":") for part in value.split(",")]
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, Sequence):
        pairs = list(value)
    if not pairs or any(not isinstance(pair, Sequence) or len(pair) != 2 for pair in pairs):
        raise ConfigError(f"simulator: {name}={value!r}: expected streams:tokens/s, as in 1:123,2:184")
    return tuple((_parse_integer(name, count), _parse_number(name, total)) for count, total in pairs)


def _parse_models(name: str, value: object) -> tuple[SimulatedModel, ...]:
    """Parse ``a,b``; built-in models keep their properties."""
    given = value if isinstance(value, Sequence) and not isinstance(value, str) else str(value).split(",")
    return tuple(each if isinstance(each, SimulatedModel) else _find_model(str(each).strip()) for each in given)


def _find_model(name: str) -> SimulatedModel:
    return SimulatorSettings().find_model(name) or SimulatedModel(name=name)


def _parse_fault_value(name: str, value: object) -> Fault:
    return value if isinstance(value, Fault) else parse_fault(str(value))


URL_PARAMETERS: Mapping[str, UrlParameter] = MappingProxyType(
    {
        "slots": UrlParameter("slots", _parse_integer, "4", "requests decoded at the same time (OLLAMA_NUM_PARALLEL)"),
        "tps": UrlParameter("tps", _parse_number, "80", "tokens/s of one stream alone"),
        "scaling": UrlParameter(
            "scaling", _parse_number, "0.5", "n streams together reach tps * n**scaling: 0 as a CPU, 1 ideal"
        ),
        "aggregate": UrlParameter(
            "aggregate", _parse_points, "1:123,2:184", "tokens/s of all streams together, by streams"
        ),
        "prefill_tps": UrlParameter("prefill_tps", _parse_number, "2000", "prompt tokens/s"),
        "prefill_batch": UrlParameter(
            "prefill_batch", _parse_integer, "1024", "prompt tokens read between two tokens of other streams"
        ),
        "load_time": UrlParameter(
            "load_time_s", _parse_duration, "500ms", "loading a model, rounded up to whole polls of 250 ms"
        ),
        "keep_alive": UrlParameter(
            "keep_alive_s", _parse_keep_alive, "5m", "how long an idle model stays loaded; -1 for ever"
        ),
        "models": UrlParameter("models", _parse_models, "llama3.2:3b,tiny", "the models that the server has"),
        "vram": UrlParameter("vram_share", _parse_number, "1", "share of a model in GPU memory, 0..1"),
        "max_loaded": UrlParameter(
            "max_loaded", _parse_integer, "3", "maximum number of models in memory (OLLAMA_MAX_LOADED_MODELS)"
        ),
        "max_queue": UrlParameter(
            "max_queue", _parse_integer, "512", "requests that may wait for a load (OLLAMA_MAX_QUEUE)"
        ),
        "num_ctx": UrlParameter(
            "num_ctx", _parse_integer, "4096", "default context length, for requests that do not set one"
        ),
        "version": UrlParameter("version", _parse_text, "0.32.15", "the version of Ollama to simulate"),
        "cache": UrlParameter("cache", _parse_switch, "on", "prompt cache"),
        "cache_tokens": UrlParameter("cache_tokens", _parse_integer, "1000000", "tokens that the prompt cache holds"),
        "run_jitter": UrlParameter(
            "run_jitter", _parse_number, "0.03", "noise between loads of a model (sd of the logarithm)"
        ),
        "token_jitter": UrlParameter(
            "token_jitter", _parse_number, "0.05", "noise between tokens (sd of the logarithm)"
        ),
        "eos_after": UrlParameter("eos_after", _parse_integer, "0", "the token that ends a text; 0: no token does"),
        "thinking_tokens": UrlParameter("thinking_tokens", _parse_integer, "16", "tokens a thinking model thinks"),
        "tokens_per_line": UrlParameter("tokens_per_line", _parse_integer, "1", "tokens in a line of the stream"),
        "warm_load": UrlParameter("warm_load_s", _parse_duration, "1ms", "load_duration of a loaded model"),
        "overhead": UrlParameter(
            "overhead_s", _parse_duration, "2ms", "template and tokenising, before a request waits for a slot"
        ),
        "sampling_share": UrlParameter(
            "sampling_share", _parse_number, "0.04", "what old versions leave out of eval_duration, 0..1"
        ),
        "seed": UrlParameter("seed", _parse_integer, "1", "seed of the noise and of faults by probability"),
        "fault": UrlParameter("faults", _parse_fault_value, "error:12@3", "a scripted fault, repeatable"),
    }
)
"""Every parameter of a ``sim:`` URL."""
