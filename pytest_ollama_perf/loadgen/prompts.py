"""Prompts that are the same in every run with a seed, but never match the server's prompt cache.

The server keeps the beginnings of earlier prompts, in slots and in memory, so only a first token that differs
defeats it. Each request therefore begins with a nonce, made of the run's salt and the request's index; what follows
depends on the seed alone. Every synthetic word is a space and four letters, one token in the vocabularies in use.
"""

from __future__ import annotations

import hashlib
import math
import random
from bisect import bisect
from itertools import accumulate

from pytest_ollama_perf.core.workload import Prefix, Workload

_WORD_LIST = """
able acid also area army atom away baby back ball band bank base bath bear beat been beer bell belt
best bill bird bite blow blue boat body bomb bond bone book boot born boss both bowl bulk burn bush
busy cake call calm came camp card care case cash cast cell chat chip city clay club coal coat code
cold come cook cool cope copy core corn cost crew crop dark data date dawn days dead deal dean dear
debt deep deny desk dial diet disc disk does done door dose down draw drew drop drug dual duke dust
duty each earn ease east easy edge else even ever evil exit face fact fail fair fall farm fast fate
fear feed feel feet fell felt file fill film find fine fire firm fish five flat flow food foot ford
form fort four free from fuel full fund gain game gate gave gear gene gift girl give glad goal goes
gold golf gone good gray grew grey grow gulf hair half hall hand hang hard harm hate have head hear
heat held hell help here hero high hill hire hold hole holy home hope host hour huge hung hunt hurt
idea inch into iron item jack jean join jump jury just keen keep kept kick kill kind king knee knew
know lack lady laid lake land lane last late lead left less life lift like line link list live load
loan lock logo long look lord lose loss lost love luck made mail main make many
"""

WORDS = tuple(_WORD_LIST.split())
"""256 common four-letter words: each byte selects one word."""

NONCE_WORDS = 8
"""Words of a nonce: the first differs within any 256 requests, the first two within 65536; six identify the run."""

_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
_WORD_CHARS = 5
_RING_WORDS = 8192
_STRIDE = 1009  # coprime with the ring, so that a text repeats after 8192 prompts only
_MASK = (1 << 48) - 1


class PromptGenerator:
    """The prompts of one load, by request index. Equal workloads give equal bytes, in any process."""

    def __init__(self, workload: Workload) -> None:
        self._given = workload.prompts
        self._picker = PromptPicker(workload)
        self._unique = workload.prefix == Prefix.UNIQUE
        self._words = workload.prompt_words - (NONCE_WORDS if self._unique else 0)
        self._run = f"{workload.random_seed}\0{workload.salt}"
        self._offsets = hashlib.blake2b(self._run.encode(), digest_size=2).digest()
        self._ring = "" if self._given else _build_word_ring(workload.random_seed, self._words)

    def build_prompt(self, index: int) -> str:
        """Return the whole prompt of a request, nonce included."""
        if not self._given:
            return self.build_nonce(index) + self._build_synthetic(index)
        given = self.build_text(index)
        return f"{self.build_nonce(index)}\n{given}" if self._unique else given

    def build_text(self, index: int) -> str:
        """Return the prompt of a request without its nonce: a later question of a chat needs none."""
        return self._given[self._picker.pick(index)] if self._given else self._build_synthetic(index)

    def build_nonce(self, index: int) -> str:
        """Return the request's ``NONCE_WORDS`` words; empty with a warm prefix."""
        if not self._unique:
            return ""
        near = ((index >> shift) + self._offsets[shift // 8] & 0xFF for shift in (0, 8))
        run = hashlib.blake2b(f"{self._run}\0{index >> 24}".encode(), digest_size=5).digest()
        far = _scramble_bits(int.from_bytes(run, "big") << 8 | index >> 16 & 0xFF)
        return "".join(f" {WORDS[byte]}" for byte in (*near, *far.to_bytes(6, "big")))

    def _build_synthetic(self, index: int) -> str:
        # a warm load repeats one text: only that is certain to be cached
        start = index * _STRIDE % _RING_WORDS * _WORD_CHARS if self._unique else 0
        return self._ring[start : start + self._words * _WORD_CHARS]


class PromptPicker:
    """Selects the prompt or chat of a request: in turn, or by weight.

    With weights the golden ratio's multiples, which are spread evenly over 0..1, decide: among any n requests the share
    of each prompt is its weight to within a few in n, and the same in every run of a seed (Weyl 1916).
    """

    def __init__(self, workload: Workload) -> None:
        self._count = len(workload.messages) or len(workload.prompts)
        total = math.fsum(workload.weights)
        self._ends = [part / total for part in accumulate(workload.weights)]
        self._offset = random.Random(f"mix:{workload.random_seed}").random()

    def pick(self, index: int) -> int:
        """Return the index of the prompt or chat."""
        if not self._ends:
            return index % self._count
        return min(bisect(self._ends, (self._offset + index * _GOLDEN_RATIO) % 1.0), self._count - 1)


def _build_word_ring(seed: int, words: int) -> str:
    """Return seeded words, enough for a slice of ``words`` that starts anywhere in the first ``_RING_WORDS``."""
    chance = random.Random(f"prompts:{seed}")
    return "".join(f" {word}" for word in chance.choices(WORDS, k=_RING_WORDS + words))


def _scramble_bits(number: int) -> int:
    """Mix 48 bits one to one, so that numbers close to each other look unlike (an odd factor is invertible)."""
    number = number * 0x9E3779B97F4B & _MASK
    number ^= number >> 24
    return number * 0xBF58476D1CE5 & _MASK
