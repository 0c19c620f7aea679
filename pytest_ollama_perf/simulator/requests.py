"""Request bodies, parsed and checked as Ollama does, with Ollama's error messages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from pytest_ollama_perf.simulator.job import InferenceRequest, ResponseError, Tokenizer
from pytest_ollama_perf.simulator.settings import SimulatedModel

_T = TypeVar("_T")
_UNIT_S = MappingProxyType({"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0})
_DURATION = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)((\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h))*")
_INTEGER_OPTIONS = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "seed", "num_predict", "top_k"}
    | {"repeat_last_n", "draft_num_predict"}
)
_FLOAT_OPTIONS = frozenset(
    {"temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty"}
)
_BOOLEAN_OPTIONS = frozenset({"use_mmap"})
_GO_SYNTAX_ERRORS = MappingProxyType(
    {
        "Expecting property name": "looking for beginning of object key string",
        "Expecting value": "looking for beginning of value",
        "Expecting ':' delimiter": "after object key",
        "Expecting ',' delimiter": "after object key:value pair",
        "Illegal trailing comma": "looking for beginning of object key string",
        "Extra data": "after top-level value",
    }
)


class RequestBody:
    """A decoded request body. The getters raise ``ResponseError`` 400 for a value of the wrong type, as Ollama does."""

    def __init__(self, fields: Mapping[str, Any], kind: str) -> None:
        self.fields = fields
        self._kind = kind

    def get_text(self, name: str) -> str:
        """Return a string field; an empty text without one."""
        return self._get_typed(name, str, "string", "")

    def get_flag(self, name: str, default: bool) -> bool:
        """Return a boolean field."""
        return self._get_typed(name, bool, "bool", default)

    def get_list(self, name: str) -> list[Any]:
        """Return a list field; an empty list without one."""
        empty: list[Any] = []
        return self._get_typed(name, list, "[]interface {}", empty)

    @property
    def stream(self) -> bool:
        """Whether the client wants a stream; the default is true."""
        return self.get_flag("stream", True)

    @property
    def keep_alive_s(self) -> float | None:
        """In seconds; negative means for ever, ``None`` the server's default."""
        return parse_keep_alive(self.fields.get("keep_alive"))

    def _get_typed(self, name: str, wanted: type[_T], go_type: str, default: _T) -> _T:
        value = self.fields.get(name)
        if value is None:
            return default
        if not isinstance(value, wanted):
            raise ResponseError(
                400,
                f"json: cannot unmarshal {_get_go_kind(value)} into Go struct field {self._kind}.{name} of type "
                f"{go_type}",
            )
        return value


def parse_body(raw: bytes, kind: str) -> RequestBody:
    """Decode a request body; ``kind`` is the Go type in Ollama's error messages."""
    if not raw:
        raise ResponseError(400, "missing request body")
    try:
        fields = json.loads(raw)
    except json.JSONDecodeError as error:
        raise ResponseError(400, _translate_syntax_error(error)) from None
    except ValueError:
        raise ResponseError(400, "invalid character '\\ufffd' looking for beginning of value") from None
    if not isinstance(fields, dict):
        raise ResponseError(400, f"json: cannot unmarshal {_get_go_kind(fields)} into Go value of type api.{kind}")
    decoded = RequestBody(fields, kind)
    _ = decoded.stream, decoded.keep_alive_s
    return decoded


def _translate_syntax_error(error: json.JSONDecodeError) -> str:
    if error.pos >= len(error.doc.rstrip()):
        return "unexpected EOF"
    where = next((go for python, go in _GO_SYNTAX_ERRORS.items() if error.msg.startswith(python)), "in string literal")
    return f"invalid character {error.doc[error.pos]!r} {where}"


def _get_go_kind(value: object) -> str:
    kinds: tuple[tuple[type, str], ...] = (
        *((bool, "bool"), (int, "number"), (float, "number")),
        *((str, "string"), (list, "array"), (dict, "object")),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")


def parse_keep_alive(value: object) -> float | None:
    """Parse ``keep_alive``: a number of seconds or a Go duration; negative means for ever."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ResponseError(400, f"json: cannot unmarshal {_get_go_kind(value)} into Go value of type api.Duration")
    return _parse_go_duration(value) if isinstance(value, str) else float(value)


def _parse_go_duration(text: str) -> float:
    if text in {"0", "+0", "-0"}:
        return 0.0
    if not _DURATION.fullmatch(text):
        wrong = "missing unit in" if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", text) else "invalid"
        raise ResponseError(400, f'time: {wrong} duration "{text}"')
    sign = -1 if text.startswith("-") else 1
    parts = re.findall(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)", text)
    return sign * sum(float(number) * _UNIT_S[unit] for number, unit in parts)


def check_options(given: object) -> dict[str, Any]:
    """Check the types of a request's ``options``; unknown options are ignored, as in Ollama."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ResponseError(
            400,
            f"json: cannot unmarshal {_get_go_kind(given)} into Go struct field .options "
            "of type map[string]interface {}",
        )
    for name, value in given.items():
        if (wanted := _find_expected_type(name, value)) and value is not None:
            raise ResponseError(500, f'option "{name}" must be of type {wanted}')
    return given


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _find_expected_type(name: str, value: object) -> str:
    checks: tuple[tuple[frozenset[str], Callable[[object], bool], str], ...] = (
        (_INTEGER_OPTIONS, _is_number, "integer"),
        (_FLOAT_OPTIONS, _is_number, "float32"),
        (_BOOLEAN_OPTIONS, lambda given: isinstance(given, bool), "boolean"),
        (frozenset({"stop"}), lambda given: isinstance(given, list), "array"),
    )
    return next((go_type for names, fits, go_type in checks if name in names and not fits(value)), "")


def resolve_think(given: RequestBody, model: SimulatedModel) -> bool:
    """Return whether the model thinks: as the request says, by default if it can and the template is used."""
    wanted = given.fields.get("think")
    if wanted is None:
        return model.has_capability("thinking") and not given.get_flag("raw", False)
    if wanted and not model.has_capability("thinking"):
        raise ResponseError(400, f'"{given.get_text("model")}" does not support thinking')
    return bool(wanted)


def build_completion_request(
    given: RequestBody, model: SimulatedModel, prompt: list[int], endpoint: str, request_id: str
) -> InferenceRequest:
    """Return the request for a text; the model exists and has the capability."""
    thinks = resolve_think(given, model)
    chosen = check_options(given.fields.get("options"))
    limit = chosen.get("num_predict")
    return InferenceRequest(
        model=given.get_text("model"),
        prompt=tuple(prompt),
        request_id=request_id,
        endpoint=endpoint,
        limit=int(limit) if limit is not None and limit > 0 else None,
        stop=tuple(str(each) for each in chosen.get("stop") or ()),
        think=thinks,
        keep_alive_s=given.keep_alive_s,
        options=merge_shift_option(given, chosen),
        truncate=given.get_flag("truncate", True),
        images=bool(given.get_list("images")),
    )


def merge_shift_option(given: RequestBody, chosen: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options together with ``shift``, a separate field that also forces a reload."""
    shift = given.fields.get("shift")
    return chosen if shift is None else {**chosen, "shift": shift}


def tokenize_prompt(given: RequestBody, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens of a generate request: without the template if ``raw``, else with it."""
    context = [token for token in given.get_list("context") if isinstance(token, int)]
    text = given.get_text("prompt")
    if given.get_flag("raw", False):
        return context + tokenizer.encode(text)
    system = given.get_text("system")
    messages = [("system", system)] if system else []
    return context + tokenizer.encode_chat([*messages, ("user", text)])


def tokenize_chat(given: RequestBody, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens of a chat's messages in the template."""
    messages = [each for each in given.get_list("messages") if isinstance(each, dict)]
    return tokenizer.encode_chat((str(each.get("role", "")), str(each.get("content", ""))) for each in messages)


def require_capability(model: SimulatedModel, name: str, capability: str, what: str) -> None:
    """Raise ``ResponseError`` if the model lacks the capability."""
    if not model.has_capability(capability):
        raise ResponseError(400, f'"{name}" does not support {what}')


def build_embed_request(
    given: RequestBody, tokenizer: Tokenizer, request_id: str
) -> tuple[InferenceRequest, list[str]]:
    """Return the request for embeddings; the texts are evaluated one after another in one slot."""
    given_input = given.fields.get("input")
    texts = [given_input] if isinstance(given_input, str) else given_input
    if texts is None:
        texts = []
    if not isinstance(texts, list) or any(not isinstance(text, str) for text in texts):
        raise ResponseError(400, "invalid input type")
    chosen = check_options(given.fields.get("options"))
    ask = InferenceRequest(
        model=given.get_text("model"),
        prompt=tuple(token for text in texts for token in tokenizer.encode(text)),
        request_id=request_id,
        endpoint="embed",
        keep_alive_s=given.keep_alive_s,
        options=merge_shift_option(given, chosen),
        truncate=given.get_flag("truncate", True),
    )
    return ask, texts
