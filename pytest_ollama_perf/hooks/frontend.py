"""What a session needs from pytest: a terminal for its progress, and the ways in which a test ends."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from pytest_ollama_perf.harness import ProgressListener


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


class VerdictError(pytest.fail.Exception):  # type: ignore[misc, name-defined]
    """A verdict failed the test; the message is the whole explanation, ``summary`` its reason in one line."""

    summary: str = ""

    # As pytest does for its own outcomes: reports name the class without its module.
    __module__ = "builtins"


_DEFAULT_WIDTH, _MIN_WIDTH = 80, 60
_SECRET_OPTIONS = ("--ollama-header",)


def _redact_arguments(arguments: Iterable[str]) -> Iterator[str]:
    """Yield the arguments of a command line without credentials."""
    previous = ""
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if previous in _SECRET_OPTIONS:
            yield "..."
        elif name in _SECRET_OPTIONS and equals:
            yield f"{name}=..."
        else:
            yield re.sub(r"://[^/\s]*@", "://", argument)
        previous = argument


class PytestFrontend:
    """The frontend of a session that pytest runs."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @property
    def verbosity(self) -> int:
        """pytest's verbosity; -1 without a terminal reporter."""
        return int(self._config.getoption("verbose", default=-1))

    @contextlib.contextmanager
    def open_listener(self) -> Iterator[ProgressListener]:
        """Show progress on the terminal that pytest writes to, with its output capture suspended and clocks running."""
        from pytest_ollama_perf.report.progress import LiveProgress

        plugins = self._config.pluginmanager
        capture = plugins.getplugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext(), use_real_time():
            # Without capture, sys.stdout is the file that the terminal reporter writes to.
            file = sys.stdout if plugins.hasplugin("terminalreporter") else io.StringIO()
            with LiveProgress(file, verbosity=self.verbosity) as progress:
                yield progress

    def collect_facts(self, url: str, model: str) -> dict[str, str]:
        """Return what the hook ``pytest_ollama_fingerprint`` returns; the plugin that is called first wins."""
        found = self._config.hook.pytest_ollama_fingerprint(config=self._config, url=url, model=model)
        return {str(name): str(value) for facts in reversed(found) for name, value in facts.items()}

    def announce(self, text: str) -> None:
        """Write ``text`` as a line, unless the progress shows it already."""
        reporter = self._config.pluginmanager.getplugin("terminalreporter")
        if reporter is None:  # a worker of pytest-xdist: its error output is that of the controller
            print(text, file=sys.stderr, flush=True)
        elif self.verbosity <= 0 and (self.verbosity < 0 or not sys.stdout.isatty()):
            reporter.ensure_newline()
            reporter.write_line(text)

    def skip(self, reason: str) -> NoReturn:
        """Skip the running test."""
        pytest.skip(reason)

    def fail(self, message: str, summary: str = "") -> NoReturn:
        """Fail the running test with ``message`` and no traceback; ``summary`` is its line in the short summary."""
        error = VerdictError(message, pytrace=False)
        error.summary = summary
        raise error

    @property
    def width(self) -> int:
        """Columns of the terminal: those that ``COLUMNS`` sets, also where there is no terminal, else 80."""
        columns = os.environ.get("COLUMNS", "")
        return max(_MIN_WIDTH, int(columns)) if columns.isdecimal() else _DEFAULT_WIDTH

    def format_rerun_command(self) -> str:
        """Return the command that runs the failed tests again with every metric, with the options of this run."""
        given = list(_redact_arguments(map(str, self._config.invocation_params.args)))
        extra = [] if {"-v", "-vv"} & set(given) else ["-v"]
        if self._config.pluginmanager.hasplugin("cacheprovider") and "--lf" not in given:
            extra.insert(0, "--last-failed")
        return shlex.join(["pytest", *given, *(each for each in extra if each not in given)])


_NAMES = ("SIGTERM", "SIGHUP")


class SignalHandler:
    """Turns the first signal into the end of the session, and ignores later ones so that the reports get written.

    Signals that something else handles are left alone. ``handles_interrupt`` adds SIGINT.
    """

    def __init__(self, *, handles_interrupt: bool = False) -> None:
        self._names = (*_NAMES, "SIGINT") if handles_interrupt else _NAMES
        self._previous: dict[int, Callable[..., Any] | int | None] = {}
        self._is_ending = False

    def install(self) -> None:
        """Handle signals from now on; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in [getattr(signal, name) for name in self._names if hasattr(signal, name)]:
            if (previous := signal.getsignal(number)) in {signal.SIG_DFL, signal.default_int_handler}:
                self._previous[number] = previous
                signal.signal(number, self._end)

    def ignore(self) -> None:
        """Ignore signals from now on: the session is ending."""
        self._is_ending = True

    def restore(self) -> None:
        """Handle signals as before, except where something else was installed since."""
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._end:
                signal.signal(number, previous)
        self._previous.clear()

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self._is_ending:
            return
        self._is_ending = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise pytest.exit.Exception(f"terminated ({signal.Signals(number).name})")
