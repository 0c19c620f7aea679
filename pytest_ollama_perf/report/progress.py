"""Progress while a load runs: one line below pytest's own on a terminal, occasional lines where there is none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from pytest_ollama_perf.loadgen.recorder import LoadProgress
from pytest_ollama_perf.metrics import format_count, format_number, format_seconds
from pytest_ollama_perf.report.tables import DEFAULT_WIDTH, clean, count_columns, truncate

if TYPE_CHECKING:
    from pytest_ollama_perf.report.progress_bar import BarPainter


LINE_EVERY_S = 10.0
"""How often a plain line is written."""

_MAKE_ROOM_BELOW = "\x1bD\x1b[1A\x1b7"
_MOVE_BELOW = "\x1b[1B\r\x1b[2K"
_RESTORE_CURSOR = "\x1b8"


class LiveProgress:
    """Shows how far a load has come, as a context manager.

    On a terminal: a bar on the line below the cursor, removed at the end, so that pytest's own line continues
    where it was. Elsewhere: nothing, or with ``verbosity`` above 0 a line now and then. Below 0: nothing at all.
    ``file`` is what pytest's terminal reporter writes to, never the captured ``sys.stdout``.
    """

    def __init__(self, file: TextIO, *, verbosity: int = 0, width: int | None = None) -> None:
        self._file = file
        self._encoding = getattr(file, "encoding", None) or "utf-8"
        self._live = verbosity >= 0 and _is_terminal(file)
        self._plain = verbosity > 0 and not self._live
        self._width = width
        self._painter: BarPainter | None = None
        self._duration_s: float | None = None
        self._model, self._caption = "", ""
        self._next_line_s = LINE_EVERY_S
        self._last_message = ""
        self._lines = 0

    def __enter__(self) -> LiveProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._painter is not None:
            self._write(_MOVE_BELOW + _RESTORE_CURSOR)
            self._painter = None
        if self._lines:
            self._write("\n")

    def begin(self, model: str, duration_s: float | None = None, *, captions: Sequence[str] = ()) -> None:
        """Set what the next updates are about: the model, and ``captions``, which say which of several loads it is.

        ``duration_s`` is the length of the load if time ends it.
        """
        self._model, self._caption = clean(model, 100), clean(", ".join(captions), 100)
        self._duration_s = duration_s
        self._next_line_s = LINE_EVERY_S

    def show_message(self, text: str, *, time: str = "") -> None:
        """Show ``text`` and ``time`` instead of the bar, such as ``loading model x ... 34 s``.

        Where there is no terminal, a message that differs from the last in ``time`` only is not repeated.
        """
        shown = clean(f"{text} {time}" if time else text)
        if self._live:
            self._draw([shown], None)
        elif self._plain and text != self._last_message:
            self._last_message = text
            self._write_line(shown)

    def update(self, progress: LoadProgress) -> None:
        """Show how far the load is; made to be called several times a second."""
        if self._live:
            self._draw(list_progress_texts(progress, self._duration_s), compute_share_done(progress, self._duration_s))
        elif self._plain and progress.elapsed_s >= self._next_line_s:
            self._next_line_s = progress.elapsed_s + LINE_EVERY_S
            label = ", ".join(filter(None, [self._caption, self._model]))
            texts = list_progress_texts(progress, self._duration_s)
            lines = [f"{label}: {text}" if label else text for text in texts]
            self._write_line(next((line for line in lines if count_columns(line) <= DEFAULT_WIDTH - 2), lines[-1]))

    def _write_line(self, text: str) -> None:
        self._lines += 1
        self._write(f"\n  {truncate(text, DEFAULT_WIDTH - 2)}")

    def _draw(self, texts: Sequence[str], share: float | None) -> None:
        """Draw one line below the cursor, with the first of ``texts`` that has room, and come back."""
        if self._painter is None:
            from pytest_ollama_perf.report.progress_bar import BarPainter

            self._painter = BarPainter(self._encoding, self._width)
            self._write(_MAKE_ROOM_BELOW)
        self._write(_MOVE_BELOW + self._painter.render_line(self._model, texts, share, self._caption) + _RESTORE_CURSOR)

    def _write(self, text: str) -> None:
        """Write in one piece what the file's encoding has; a terminal that is gone is no reason to lose a load."""
        with contextlib.suppress(OSError, ValueError):
            self._file.write(text.encode(self._encoding, "replace").decode(self._encoding))
            self._file.flush()


def compute_share_done(progress: LoadProgress, duration_s: float | None = None) -> float | None:
    """Return how much of the load is done, 0..1; ``None`` where its end is not known."""
    if progress.total:
        return min(1.0, progress.done / progress.total)
    return min(1.0, progress.elapsed_s / duration_s) if duration_s else None


def describe_progress(progress: LoadProgress, duration_s: float | None = None) -> str:
    """Return ``12/20 requests, 4 in flight, 310 tokens/s, ttft 182 ms, 0 errors, 3 s left``."""
    return list_progress_texts(progress, duration_s)[0]


def list_progress_texts(progress: LoadProgress, duration_s: float | None = None) -> list[str]:
    """Return what there is to say, whole and then with less and less of what can be missed on a narrow terminal."""
    of = f"/{progress.total}" if progress.total is not None else ""
    flying = f"{progress.in_flight} in flight"
    speed = (
        f"{format_number(progress.tokens / progress.elapsed_s)} tokens/s"
        if progress.tokens and progress.elapsed_s
        else ""
    )
    first = f"ttft {format_seconds(progress.ttft_s)}" if progress.ttft_s is not None else ""
    left = _estimate_remaining_s(progress, duration_s)
    ending = [format_count(progress.failed, "error"), f"{left:.0f} s left" if left is not None else ""]
    middles = [[flying, speed, first], [speed, first], [speed]]
    return [", ".join(filter(None, [f"{progress.done}{of} requests", *middle, *ending])) for middle in middles]


def _estimate_remaining_s(progress: LoadProgress, duration_s: float | None) -> float | None:
    if progress.total is not None:
        rest = progress.total - progress.done
        return progress.elapsed_s / progress.done * rest if progress.done else None
    return max(0.0, duration_s - progress.elapsed_s) if duration_s is not None else None


def _is_terminal(file: TextIO) -> bool:
    return file.isatty() and os.environ.get("TERM") != "dumb"
