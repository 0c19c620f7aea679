"""What a version of Ollama does differently, as far as a measurement can see it."""

from __future__ import annotations

import re

import msgspec

from pytest_ollama_perf.errors import ConfigError

_NUMBER = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:[-+].*)?")


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """The habits of one version.

    ``default_slots`` is what an unset ``OLLAMA_NUM_PARALLEL`` means; ``single_token_eval_ns`` the ``eval_duration`` at
    an ``eval_count`` of 1 (0 is left out); ``eval_excludes_sampling`` marks the old runners.
    """

    default_slots: int = 1
    single_token_eval_ns: int = 1000
    eval_excludes_sampling: bool = False
    counts_cached_tokens: bool = True
    sends_cached_count: bool = False


def parse(version: str) -> tuple[int, int, int]:
    """Return the three numbers of ``version``; a ``ConfigError`` when it has no such form."""
    found = _NUMBER.fullmatch(version)
    if not found:
        raise ConfigError(f"simulator: version {version!r} is not of the form 0.32.15")
    major, minor, patch = (int(part) for part in found.groups())
    return major, minor, patch


def profile(version: str) -> Profile:
    """Return the habits of ``version``."""
    number = parse(version)
    old_runner = number < (0, 25, 0)
    return Profile(
        default_slots=4 if number < (0, 10, 0) else 1,
        single_token_eval_ns=0 if old_runner else 1000,
        eval_excludes_sampling=old_runner,
        counts_cached_tokens=not (0, 30, 0) <= number < (0, 30, 1),
        sends_cached_count=number >= (0, 33, 3),
    )
