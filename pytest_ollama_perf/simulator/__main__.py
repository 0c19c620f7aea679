"""``python -m pytest_ollama_perf.simulator``: a simulator for the process that started it.

Reads its settings as one line of JSON from standard input, prints its URL as the first line of output, and ends when
its standard input does: whoever started it is gone then, however that came about.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading

import anyio
import msgspec

from pytest_ollama_perf.core.errors import ConfigError
from pytest_ollama_perf.simulator.server import serve
from pytest_ollama_perf.simulator.settings import SimulatorSettings


async def _serve_until_stopped(settings: SimulatorSettings) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # Windows: the end of standard input is enough
        loop.add_signal_handler(signal.SIGTERM, told.set)
    threading.Thread(target=_watch_stdin, args=(loop, told), daemon=True).start()
    async with serve(settings) as (url, _):
        print(url, flush=True)
        await told.wait()


def _watch_stdin(loop: asyncio.AbstractEventLoop, told: asyncio.Event) -> None:
    # not sys.stdin: its lock, held by a thread that waits, would break the interpreter's shutdown
    while os.read(0, 4096):
        pass
    with contextlib.suppress(RuntimeError):  # the loop may be closed by now
        loop.call_soon_threadsafe(told.set)


def main() -> int:
    """Serve until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides when to stop
    try:
        settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=SimulatorSettings)
        anyio.run(_serve_until_stopped, settings)
    except (OSError, msgspec.MsgspecError, ConfigError) as error:
        print(f"cannot start the simulator: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
