"""freezegun: a test that has stopped the clocks still measures with those that run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

REAL_TIME_MODULES = ("pytest_ollama_perf", "anyio", "asyncio", "httpcore", "httpx", "selectors", "trio", "uvloop")
"""Who sees real time while a load runs: we, and the event loops under us."""


@contextlib.contextmanager
def use_real_time() -> Iterator[None]:
    """Let clocks run for a load, also where freezegun has stopped them.

    It asks, at each look at a clock, whether the module that looks is on its list of those to leave alone.
    """
    lists = getattr(sys.modules.get("freezegun.api"), "ignore_lists", None)
    if not lists:
        yield
        return
    extended = (*lists[-1], *REAL_TIME_MODULES)
    lists.append(extended)
    try:
        yield
    finally:
        lists.remove(extended)
