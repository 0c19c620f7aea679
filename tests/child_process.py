"""Child processes that never outlive their test."""

from __future__ import annotations

import subprocess
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
