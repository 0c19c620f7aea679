"""One line of progress drawn with rich: model, bar, numbers. Imported only once something is drawn on a terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pytest_ollama_perf.report.tables import count_columns, truncate, truncate_middle

_MAX_BAR_WIDTH = 20
_MIN_BAR_WIDTH = 6


class _EncodedStringIO(io.StringIO):
    encoding = ""  # the base has one that cannot be set

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self.encoding = encoding


class BarPainter:
    """Draws for one terminal, with its width and colours (``NO_COLOR`` is heeded), in characters of ``encoding``.

    It draws in memory: rich writes even where it only captures, which a terminal that is gone refuses.
    """

    def __init__(self, encoding: str, width: int | None = None) -> None:
        self._console = Console(file=_EncodedStringIO(encoding), width=width, force_terminal=True, legacy_windows=False)

    def render_line(self, model: str, texts: Sequence[str], share: float | None, caption: str = "") -> str:
        """Return one line that never wraps, with the first of ``texts`` that leaves enough columns, else the last.

        ``caption`` says which of several loads it is. Without ``share`` the line is a text alone.
        """
        width = self._console.width - 1
        taken = count_columns(caption) + 1 if caption else 0
        text = next((each for each in texts if count_columns(each) + 1 + taken + _MIN_BAR_WIDTH <= width), texts[-1])
        row = [Text(truncate(text, width))] if share is None else _build_bar_row(model, caption, text, share, width)
        grid = Table.grid(padding=(0, 1))
        for _ in row:
            grid.add_column(no_wrap=True, overflow="crop")
        grid.add_row(*row)
        with self._console.capture() as drawn:
            self._console.print(grid, end="", width=width, no_wrap=True, overflow="crop", crop=True)
        return drawn.get().partition("\n")[0]


def _build_bar_row(model: str, caption: str, text: str, share: float, width: int) -> list[Text | ProgressBar]:
    """Keep what matters most: the numbers, then which of several loads it is, then the bar, then the model's name."""
    free = width - count_columns(text) - 1
    if free < _MIN_BAR_WIDTH:
        return [Text(truncate(text, width))]
    label = f"{caption}, {model}" if caption else model
    fits = [each for each in (label, caption) if each and count_columns(each) + 1 + _MIN_BAR_WIDTH <= free]
    if caption and not fits and count_columns(caption) <= free:
        return [Text(caption), Text(text)]
    named = fits[0] if fits else ""
    bar = min(_MAX_BAR_WIDTH, free - count_columns(named) - 1 if named else free)
    row: list[Text | ProgressBar] = [ProgressBar(total=1.0, completed=share, width=bar), Text(text)]
    free -= bar + 1
    if not named and free >= _MIN_BAR_WIDTH:
        named = truncate_middle(label, free)
    return [Text(named), *row] if named else row
