"""Words as tokens: one for each, some more for the chat template, and a text that walks a word list and never ends."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

_LIST = """
    able acid also army atom back ball band bank base bear bell best bird blue boat body bone book born both
    bowl calm card care case cave city clay club coal coat cold cook cool corn dark dawn deep deer desk door
    down draw drum dust each east easy edge even face fact farm fast fern fire fish five flag flow food foot
    form four free frog full game gate gold good gray grow hall hand hard hawk head help hill home hope horn
    idea iron item jazz join jump keep kind king kite lake lamp land leaf left life
"""

WORDS = tuple(_LIST.split())
"""What the simulated models say, in this order, over and over. The word after ``life`` is ``able``."""

_INDEX = {word: index for index, word in enumerate(WORDS)}


class Tokenizer:
    """Gives every word a number of its own; the same word has the same number as long as the server lives."""

    def __init__(self) -> None:
        self._ids = dict(_INDEX)

    def encode(self, text: str) -> list[int]:
        """Return one number for each word of ``text``."""
        return self._number(text.split())

    def encode_chat(self, messages: Iterable[tuple[str, str]]) -> list[int]:
        """Return the tokens of ``(role, content)`` messages in a ChatML template that asks for the next answer."""
        pieces: list[str] = []
        for role, content in messages:
            pieces += ["<|im_start|>", *role, "\n", *content.split(), "<|im_end|>", "\n"]
        return self._number([*pieces, "<|im_start|>", *"assistant", "\n"])

    def _number(self, pieces: Iterable[str]) -> list[int]:
        ids = self._ids
        return [ids.setdefault(piece, len(ids)) for piece in pieces]


@functools.lru_cache(maxsize=256)
def piece(token: int) -> str:
    """Return the text of an output token, with its leading space."""
    return f" {WORDS[token]}"


def first_output(prompt: Sequence[int]) -> int:
    """Return what a model says first: the word after the prompt's last where that is known, else one it decides."""
    if not prompt:
        return 0
    last = prompt[-1]
    return (last + 1) % len(WORDS) if last < len(WORDS) else sum(prompt) % len(WORDS)


def fit(prompt: list[int], num_ctx: int) -> list[int]:
    """Cut a prompt that is longer than the context as the server does: four tokens, then the last half of the rest."""
    if len(prompt) <= num_ctx:
        return prompt
    kept = min(4, num_ctx)
    tail = (num_ctx - kept) // 2
    return prompt[:kept] + (prompt[-tail:] if tail else [])
