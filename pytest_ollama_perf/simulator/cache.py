"""The prompt cache: what the slots last held and the older prompts kept in RAM."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

_CHUNK = 64


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many leading tokens both share."""
    limit = min(len(one), len(other))
    start = 0
    while start < limit and one[start : start + _CHUNK] == other[start : start + _CHUNK]:
        start += _CHUNK
    while start < limit and one[start] == other[start]:
        start += 1
    return min(start, limit)


class PromptCache:
    """Token sequences by age, ``capacity`` tokens in all; the oldest leave first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.held = 0
        """Tokens in the cache."""
        self._entries: OrderedDict[int, list[int]] = OrderedDict()
        self._serial = 0

    def reusable(self, prompt: list[int]) -> int:
        """Return how many leading tokens of ``prompt`` need no evaluation; the last one always does."""
        best = 0
        for entry in self._entries.values():
            if prompt and entry and entry[0] == prompt[0]:
                best = max(best, common_prefix(prompt, entry))
        return min(best, max(0, len(prompt) - 1))

    def keep(self, tokens: list[int]) -> None:
        """Remember a finished sequence, prompt and output."""
        self._serial += 1
        self._entries[self._serial] = tokens
        self.held += len(tokens)
        while self.held > self._capacity and self._entries:
            _, oldest = self._entries.popitem(last=False)
            self.held -= len(oldest)
