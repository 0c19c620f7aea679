"""The JSON that Ollama answers: listings, model details, the lines of a stream and the final object."""

from __future__ import annotations

import functools
import json
import random
import time
from typing import Any

from pytest_ollama_perf.sample import Counters
from pytest_ollama_perf.simulator.engine import Answer
from pytest_ollama_perf.simulator.scheduler import Loaded
from pytest_ollama_perf.simulator.settings import Model, SimulatorSettings

_STARTED = time.time_ns()
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_TEMPLATE = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"


def dump(value: object) -> bytes:
    """Encode as Go's ``encoding/json`` does: no spaces, and ``< > &`` escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for char, escape in _ESCAPES.items():
        text = text.replace(char, escape)
    return text.encode()


def error(message: str) -> bytes:
    return dump({"error": message})


def stamp(wall_ns: int | None = None) -> str:
    """Return a time as Go writes it: RFC 3339, UTC, as many digits as it takes."""
    seconds, nanos = divmod(time.time_ns() if wall_ns is None else wall_ns, 1_000_000_000)
    fraction = f".{nanos:09d}".rstrip("0").rstrip(".")
    return f"{_second(seconds)}{fraction}Z"


@functools.lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _details(model: Model) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": [model.family],
        "parameter_size": model.parameters,
        "quantization_level": model.quantization,
    }


def tags(settings: SimulatorSettings) -> dict[str, Any]:
    """Return the body of ``/api/tags``."""
    return {"models": [_tag(model) for model in settings.models]}


def _tag(model: Model) -> dict[str, Any]:
    lengths = {"context_length": model.context_length, "embedding_length": model.embedding_length}
    return {
        "name": model.full_name,
        "model": model.full_name,
        "modified_at": stamp(_STARTED),
        "size": model.size,
        "digest": model.full_digest,
        "details": _details(model) | lengths,
        "capabilities": list(model.capabilities),
    }


def ps(settings: SimulatorSettings, loaded: list[Loaded], now_ns: int) -> dict[str, Any]:
    """Return the body of ``/api/ps``."""
    return {"models": [_running(settings, held, now_ns) for held in loaded]}


def _running(settings: SimulatorSettings, held: Loaded, now_ns: int) -> dict[str, Any]:
    model, num_ctx = held.model, held.runner.num_ctx
    size = model.size + 64 * model.embedding_length * num_ctx // 32
    share = settings.vram_share if model.vram_share is None else model.vram_share
    return {
        "name": model.full_name,
        "model": model.full_name,
        "size": size,
        "digest": model.full_digest,
        "details": _details(model),
        "expires_at": _expiry(held, now_ns),
        "size_vram": round(size * share),
        "context_length": num_ctx,
    }


def _expiry(held: Loaded, now_ns: int) -> str:
    """A model in use has no timer; the server then tells the time that the timer will be set to."""
    if held.keep_s < 0:
        return "2318-11-20T00:00:00Z"
    left = round(held.keep_s * 1e9) if held.users or held.expires_ns is None else held.expires_ns - now_ns
    return stamp(time.time_ns() + left)


def show(settings: SimulatorSettings, model: Model) -> dict[str, Any]:
    """Return the body of ``/api/show``."""
    parameters = f"num_ctx                        {settings.num_ctx}"
    return {
        "modelfile": f"# A simulated model\n\nFROM {model.full_name}\nPARAMETER num_ctx {settings.num_ctx}\n",
        "parameters": parameters,
        "template": _TEMPLATE,
        "details": _details(model),
        "model_info": _model_info(model),
        "tensors": [{"name": "token_embd.weight", "type": "F16", "shape": [model.embedding_length, 510]}],
        "capabilities": list(model.capabilities),
        "modified_at": stamp(_STARTED),
    }


def _model_info(model: Model) -> dict[str, Any]:
    return {
        "general.architecture": model.family,
        "general.file_type": 1,
        "general.parameter_count": _count(model.parameters),
        f"{model.family}.context_length": model.context_length,
        f"{model.family}.embedding_length": model.embedding_length,
    }


def _count(parameters: str) -> int:
    factor = {"K": 10**3, "M": 10**6, "B": 10**9}.get(parameters[-1:], 1)
    return round(float(parameters.rstrip("KMB") or 0) * factor)


def head(model: str) -> dict[str, Any]:
    """Return what every object of a text answer begins with."""
    return {"model": model, "created_at": stamp()}


def text_field(endpoint: str, text: str, thinking: str = "") -> dict[str, Any]:
    """Return the text of an object: ``message`` of a chat, else ``response``."""
    thought = {"thinking": thinking} if thinking else {}
    if endpoint == "chat":
        return {"message": {"role": "assistant", "content": text} | thought}
    return {"response": text} | thought


def done(reason: str) -> dict[str, Any]:
    return {"done": True, "done_reason": reason}


def durations(counters: Counters) -> dict[str, int]:
    """Return the counters of a final object; what is zero is left out."""
    fields = {
        "total_duration": counters.total_duration_ns,
        "load_duration": counters.load_duration_ns,
        "prompt_eval_count": counters.prompt_eval_count,
        "prompt_eval_cached_count": counters.prompt_eval_cached_count,
        "prompt_eval_duration": counters.prompt_eval_duration_ns,
        "eval_count": counters.eval_count,
        "eval_duration": counters.eval_duration_ns,
    }
    return {name: value for name, value in fields.items() if value}


def ending(answer: Answer, with_context: bool) -> dict[str, Any]:
    """Return the part of the final object after its text; ``context`` only where a template was used."""
    context = {"context": list(answer.tokens)} if with_context else {}
    return done(answer.reason) | context | durations(answer.counters)


def embeddings(model: str, vectors: list[tuple[float, ...]]) -> dict[str, object]:
    """Return the body of ``/api/embed`` without its counters."""
    return {"model": model, "embeddings": vectors}


@functools.lru_cache(maxsize=512)
def embedding(text: str, length: int) -> tuple[float, ...]:
    """Return a vector of length 1 that depends on ``text`` alone."""
    drawn = [byte - 127.5 for byte in random.Random(text).randbytes(length)]
    norm = sum(value * value for value in drawn) ** 0.5
    return tuple(round(value / norm, 9) for value in drawn)
