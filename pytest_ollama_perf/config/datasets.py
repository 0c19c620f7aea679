"""Load shapes as people write them: stages, prompt mixes, datasets, images. Files are read here, once and bounded."""

from __future__ import annotations

import base64
import codecs
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.text import parse_seconds, safe_repr, sanitize, suggest_match
from pytest_ollama_perf.core.workload import ChatMessage, Endpoint, Stage

MAX_DATASET_BYTES = 64 * 1024 * 1024
MAX_DATASET_LINES = 100_000
MAX_IMAGE_BYTES = 20 * 1024 * 1024
MAX_IMAGES_BYTES = 64 * 1024 * 1024
ROLES = ("system", "user", "assistant", "tool")

_LEVEL_KEYS = ("concurrency", "rate")
_TIME_KEYS = ("for", "ramp")
_STAGES_EXAMPLE = "[{'concurrency': 8, 'ramp': '30s'}, {'concurrency': 8, 'for': '5m'}]"
_IMAGE_FORMATS = ((b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"RIFF", "WebP"), (b"GIF8", "GIF"))


def parse_stages(name: str, value: object) -> dict[str, Any]:
    """Read a list of stages: ``{"concurrency": 8, "ramp": "30s"}`` climbs evenly, ``{"rate": 5, "for": 60}`` holds."""
    if not isinstance(value, (list, tuple)) or not value:
        raise ConfigError(f"{name}={safe_repr(value)}: expected a list such as {_STAGES_EXAMPLE}")
    read = [_parse_stage(f"{name}[{number}]", given) for number, given in enumerate(value)]
    kinds = {kind for kind, _ in read}
    if len(kinds) > 1:
        raise ConfigError(f"{name}: concurrency and rate contradict each other: give one of them in every stage")
    levels = tuple(level for _, level in read)
    peak = max(level.level for level in levels)
    closed = kinds == {"concurrency"}
    return {
        "stages": levels,
        "concurrency": max(1, int(peak)) if closed else None,
        "rate": None if closed else peak,
        "requests": None,
        "duration_s": sum(level.seconds for level in levels),
    }


def _parse_stage(where: str, given: object) -> tuple[str, Stage]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}={safe_repr(given)}: expected a mapping such as {{'concurrency': 8, 'for': '5m'}}")
    for key in given:
        if key not in (*_LEVEL_KEYS, *_TIME_KEYS):
            near = suggest_match(key, (*_LEVEL_KEYS, *_TIME_KEYS)) if isinstance(key, str) else ""
            raise ConfigError(f"{where}: unknown key {safe_repr(key)}{near or '; valid: concurrency, rate, for, ramp'}")
    kinds, times = [key for key in _LEVEL_KEYS if key in given], [key for key in _TIME_KEYS if key in given]
    if len(kinds) != 1 or len(times) != 1:
        raise ConfigError(f"{where}={safe_repr(given)}: expected one of concurrency and rate, and one of for and ramp")
    level = given[kinds[0]]
    whole = isinstance(level, int) or (kinds[0] == "rate" and isinstance(level, float))
    if isinstance(level, bool) or not whole or not 0 <= level < 2**31:
        what = "a whole number of clients" if kinds[0] == "concurrency" else "requests a second"
        raise ConfigError(f"{where}: {kinds[0]}={safe_repr(level)}: expected {what}, from 0")
    lasts = parse_seconds(given[times[0]], f"{where}: {times[0]}")
    if not lasts:
        raise ConfigError(f"{where}: {times[0]}={safe_repr(given[times[0]])}: must be more than 0")
    return kinds[0], Stage(level=float(level), seconds=lasts, ramp=times[0] == "ramp")


def parse_prompt_mix(name: str, value: Mapping[Any, Any]) -> dict[str, Any]:
    """Read ``{"short question": 3, "long question": 1}``: prompts with their weights."""
    if not value or not all(isinstance(text, str) and text for text in value):
        raise ConfigError(
            f"{name}={safe_repr(value)}: expected texts and their weights, such as {{'Why?': 3, 'How?': 1}}"
        )
    for text, weight in value.items():
        _check_weight(f"{name}[{safe_repr(text, 40)}]", weight)
    return {"prompts": tuple(value), "weights": tuple(float(weight) for weight in value.values())}


def _check_weight(where: str, weight: object) -> None:
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not number or not 0 < weight < 2**31:  # type: ignore[operator]
        raise ConfigError(f"{where}: weight {safe_repr(weight)}: expected a number above 0")


class _DatasetRow(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str | None = None
    messages: tuple[ChatMessage, ...] | None = None
    weight: float | None = None


def read_dataset(name: str, value: object) -> dict[str, Any]:
    """Read a file of JSON lines, ``{"prompt": ...}`` or ``{"messages": [...]}``, each with a ``weight`` if wanted.

    Where one line has messages the load is a chat, and a prompt is its only question.
    """
    rows = [_parse_row(path, number, line) for path, number, line in _read_lines(name, value)]
    if not rows:
        raise ConfigError(f"{name}={safe_repr(value)}: the file has no lines")
    weights = tuple(1.0 if row.weight is None else row.weight for row in rows)
    fields: dict[str, Any] = {"weights": weights} if any(row.weight is not None for row in rows) else {}
    if all(row.prompt is not None for row in rows):
        return fields | {"prompts": tuple(row.prompt for row in rows)}
    chats = tuple(row.messages or (ChatMessage(role="user", content=row.prompt or ""),) for row in rows)
    return fields | {"messages": chats, "endpoint": Endpoint.CHAT}


def _read_lines(name: str, value: object) -> list[tuple[str, int, bytes]]:
    content = _read_file(name, value, MAX_DATASET_BYTES).removeprefix(codecs.BOM_UTF8)
    found = [(str(value), number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    if len(found) > MAX_DATASET_LINES:
        raise ConfigError(f"{name}={safe_repr(value)}: {len(found)} lines; at most {MAX_DATASET_LINES} are sent")
    return found


def _parse_row(path: str, number: int, line: bytes) -> _DatasetRow:
    where = f"{sanitize(path, 200)}:{number}"
    try:
        row = msgspec.json.decode(line, type=_DatasetRow)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        text = sanitize(str(error), 150)
        raise ConfigError(f'{where}: {text}; expected {{"prompt": ...}} or {{"messages": [...]}}') from None
    if (row.prompt is None) == (row.messages is None):
        raise ConfigError(f'{where}: expected one of "prompt" and "messages"')
    if row.prompt is not None and not row.prompt.strip():
        raise ConfigError(f"{where}: the prompt is empty, and an empty prompt only loads the model")
    if row.messages is not None:
        _check_chat(where, row.messages)
    if row.weight is not None:
        _check_weight(where, row.weight)
    return row


def _check_chat(where: str, messages: Sequence[ChatMessage]) -> None:
    if not any(each.role == "user" for each in messages):
        raise ConfigError(f"{where}: the chat has no message of the user")
    for each in messages:
        if each.role not in ROLES:
            near = suggest_match(each.role, ROLES) or f"; valid: {', '.join(ROLES)}"
            raise ConfigError(f"{where}: no role {safe_repr(each.role, 40)}{near}")


def read_images(name: str, value: object) -> dict[str, Any]:
    """Read image files into base64, as Ollama takes them; every request carries the next of them."""
    paths = [value] if isinstance(value, (str, Path)) else value
    if not isinstance(paths, (list, tuple)) or not paths:
        raise ConfigError(
            f"{name}={safe_repr(value)}: expected a path, or a list of paths, of PNG, JPEG, WebP or GIF files"
        )
    contents = [_read_file(name, path, MAX_IMAGE_BYTES) for path in paths]
    for path, content in zip(paths, contents, strict=True):
        if not any(content.startswith(magic) for magic, _ in _IMAGE_FORMATS):
            raise ConfigError(f"{name}: {sanitize(str(path), 200)} is no PNG, JPEG, WebP or GIF image")
    if sum(map(len, contents)) > MAX_IMAGES_BYTES:
        raise ConfigError(f"{name}: the images have more than {MAX_IMAGES_BYTES // 2**20} MiB together")
    return {"images": tuple(base64.b64encode(content).decode() for content in contents)}


def _read_file(name: str, value: object, most: int) -> bytes:
    if not isinstance(value, (str, Path)) or not str(value):
        raise ConfigError(f"{name}={safe_repr(value)}: expected the path of a file")
    try:
        # opening a FIFO would wait for its writer
        if not stat.S_ISREG(os.stat(value).st_mode):
            raise ConfigError(f"{name}: {sanitize(str(value), 200)} is not a regular file")
        with open(value, "rb") as file:
            content = file.read(most + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{name}: cannot read {sanitize(str(value), 200)}: {sanitize(why)}") from None
    if len(content) > most:
        raise ConfigError(f"{name}: {sanitize(str(value), 200)} has more than {most // 2**20} MiB")
    return content
