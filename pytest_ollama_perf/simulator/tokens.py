"""A tokenizer with one token per word, the text that the models generate, and the prompt cache."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterable, Sequence

_WORD_LIST = (
    "able:acid:also:army:atom:back:ball:band:bank:base:bear:bell:best:bird:blue:boat:body:bone:book:born:"
    "both:bowl:calm:card:care:case:cave:city:clay:club:coal:coat:cold:cook:cool:corn:dark:dawn:deep:deer:"
    "desk:door:down:draw:drum:dust:each:east:easy:edge:even:face:fact:farm:fast:fern:fire:fish:five:flag:"
    "flow:food:foot:form:four:free:frog:full:game:gate:gold:good:gray:grow:hall:hand:hard:hawk:head:help:"
    "hill:home:hope:horn:idea:iron:item:jazz:join:jump:keep:kind:king:kite:lake:lamp:land:leaf:left:life"
)

VOCABULARY = tuple(_WORD_LIST.split(":"))
"""The words that the simulated models generate, in this order and repeated."""

_VOCABULARY_INDEX = {word: index for index, word in enumerate(VOCABULARY)}


class Tokenizer:
    """Assigns every word its number; a word keeps its number as long as the server runs."""

    def __init__(self) -> None:
        self._ids = dict(_VOCABULARY_INDEX)

    def encode(self, text: str) -> list[int]:
        """Return one token per word of ``text``."""
        return self._assign_ids(text.split())

    def encode_chat(self, messages: Iterable[tuple[str, str]]) -> list[int]:
        """Return the tokens of ``(role, content)`` messages in a ChatML template, up to where the answer starts."""
        pieces: list[str] = []
        for role, content in messages:
            pieces += ["<|im_start|>", *role, "\n", *content.split(), "<|im_end|>", "\n"]
        return self._assign_ids([*pieces, "<|im_start|>", *"assistant", "\n"])

    def _assign_ids(self, pieces: Iterable[str]) -> list[int]:
        ids = self._ids
        return [ids.setdefault(piece, len(ids)) for piece in pieces]


@functools.lru_cache(maxsize=256)
def decode_token(token: int) -> str:
    """Return the text of an output token, with its leading space."""
    return f" {VOCABULARY[token]}"


def pick_first_token(prompt: Sequence[int]) -> int:
    """Return the first output token: the word after the prompt's last one if it is in the list."""
    if not prompt:
        return 0
    last = prompt[-1]
    return (last + 1) % len(VOCABULARY) if last < len(VOCABULARY) else sum(prompt) % len(VOCABULARY)


def truncate_prompt(prompt: list[int], num_ctx: int) -> list[int]:
    """Truncate a prompt to the context as the server does: its first four tokens and the last half of the rest."""
    if len(prompt) <= num_ctx:
        return prompt
    kept = min(4, num_ctx)
    tail = (num_ctx - kept) // 2
    return prompt[:kept] + (prompt[-tail:] if tail else [])


_COMPARE_CHUNK = 64


def count_common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many leading tokens both share."""
    limit = min(len(one), len(other))
    start = 0
    while start < limit and one[start : start + _COMPARE_CHUNK] == other[start : start + _COMPARE_CHUNK]:
        start += _COMPARE_CHUNK
    while start < limit and one[start] == other[start]:
        start += 1
    return min(start, limit)


class PromptCache:
    """Token sequences of at most ``capacity`` tokens in total; the oldest are dropped first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.token_count = 0
        """The number of tokens in the cache."""
        self._entries: OrderedDict[int, list[int]] = OrderedDict()
        self._serial = 0

    def count_reusable(self, prompt: list[int]) -> int:
        """Return how many leading tokens of ``prompt`` need no evaluation; the last token always does."""
        best = 0
        for entry in self._entries.values():
            if prompt and entry and entry[0] == prompt[0]:
                best = max(best, count_common_prefix(prompt, entry))
        return min(best, max(0, len(prompt) - 1))

    def add(self, tokens: list[int]) -> None:
        """Add the tokens of a finished request, prompt and output."""
        self._serial += 1
        self._entries[self._serial] = tokens
        self.token_count += len(tokens)
        while self.token_count > self._capacity and self._entries:
            _, oldest = self._entries.popitem(last=False)
            self.token_count -= len(oldest)
