"""The one line worth showing of what a server says when something went wrong."""

from __future__ import annotations

import msgspec

from pytest_ollama_perf.text import inert

BODY_LIMIT = 65_536
"""Bytes of an error's body that are kept."""

_NESTING = 4


def error_text(value: object, depth: int = _NESTING) -> str:
    """Return the message inside an ``error`` value: text, an object with ``message`` or ``error``, or JSON as text."""
    if isinstance(value, dict):
        inner = value.get("message", value.get("error"))
        return error_text(inner, depth - 1) if inner is not None and depth else inert(str(value))
    if isinstance(value, str):
        nested = _nested(value) if depth else None
        return inert(value) if nested is None else error_text(nested, depth - 1)
    return inert(str(value))


def _nested(text: str) -> dict[str, object] | None:
    brace = text.find("{")
    if brace < 0:
        return None
    try:
        value = msgspec.json.decode(text[brace:])
    except (msgspec.DecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) and ("error" in value or "message" in value) else None


def body_text(content_type: str, body: bytes) -> str:
    """Return the message of an error answer: JSON ``{"error": ...}``, plain text, or a word on what else it is."""
    if not body.strip():
        return "empty answer"
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = None
    if isinstance(value, dict) and value.get("error") is not None:
        return error_text(value["error"])
    if "html" in content_type.lower() or body.lstrip()[:1] == b"<":
        return "an HTML page"
    return inert(body.decode("utf-8", "replace").strip())


def place_text(location: str) -> str:
    """Return where a redirect leads, on one line, without user, password and query: those may be secrets."""
    scheme, found, rest = location.partition("?")[0].partition("#")[0].partition("://")
    if not found:
        return inert(scheme, 100)
    authority, slash, path = rest.partition("/")
    return inert(f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}", 100)
