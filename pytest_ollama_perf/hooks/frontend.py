"""What a session needs from pytest: a terminal for its progress, and the ways in which a test ends."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NoReturn

import pytest

from pytest_ollama_perf.integrations.freezegun import use_real_time

if TYPE_CHECKING:
    from pytest_ollama_perf.harness.harness import ProgressListener


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
