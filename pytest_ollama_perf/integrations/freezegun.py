"""freezegun: a test that stops the clocks still measures in real time."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

REAL_TIME_MODULES = ("pytest_ollama_perf", "anyio", "asyncio", "httpcore", "httpx", "selectors", "trio", "uvloop")
"""The modules that see real time while a load runs: this package and the event loops that it uses."""


@contextlib.contextmanager
def use_real_time() -> Iterator[None]:
    """Let the modules of a load see real time, also if freezegun has stopped the clocks.

    On each call, freezegun checks whether the calling module is on its list of modules to ignore.
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
