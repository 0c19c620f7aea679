"""Child processes that never outlive their test."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from types import TracebackType


class ChildProcess(subprocess.Popen[str]):
    """A process with text output. Leaving its block kills it if it still runs, so that a test that times out ends."""

    def __init__(self, command: list[str], **options: object) -> None:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "encoding": "utf-8"}
        super().__init__(command, **{**pipes, **options})

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.poll() is None:
            self.kill()
        super().__exit__(kind, value, traceback)


def in_child_process(test: Callable[[], None]) -> Callable[[], None]:
    """Run a test that sends signals to its process in a child process with the default SIGINT handler."""

    @functools.wraps(test)
    def run() -> None:
        code = _CHILD.format(path=sys.path, module=test.__module__, name=test.__name__)
        with ChildProcess([sys.executable, "-c", code]) as process:
            out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, out

    return run


_CHILD = """
import importlib, signal, sys
sys.path[:] = {path!r}
signal.signal(signal.SIGINT, signal.default_int_handler)
importlib.import_module({module!r}).{name}.__wrapped__()
"""
