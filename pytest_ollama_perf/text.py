"""Text from a server or a file, made harmless before anybody sees it."""

from __future__ import annotations

import unicodedata

_BREAKS = "\n\t\r"


def inert(text: str, limit: int = 300) -> str:
    """Return ``text`` on one line, at most ``limit`` long, without control, format or unassigned characters.

    Every kind of space becomes the usual one. Escape sequences lose their ESC and so their meaning. A cut text ends in
    an ellipsis.
    """
    kept = "".join(
        " " if char in _BREAKS or unicodedata.category(char) == "Zs" else char
        for char in text[: 4 * limit]
        if char in _BREAKS or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    )
    return kept if len(kept) <= limit and len(text) <= 4 * limit else kept[: limit - 1] + "…"
