"""One line of progress drawn with rich: model, bar, numbers. Imported only once something is drawn on a terminal."""

from __future__ import annotations

import io

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pytest_ollama_perf.report.layout import cells, cut, cut_middle

_BAR = 20
_LEAST = 6


class _Memory(io.StringIO):
    encoding = ""  # the base has one that cannot be set

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self.encoding = encoding


class BarPainter:
    """Draws for one terminal, with its width and colours (``NO_COLOR`` is heeded), in characters of ``encoding``.

    It draws in memory: rich writes even where it only captures, which a terminal that is gone refuses.
    """

    def __init__(self, encoding: str, width: int | None = None) -> None:
        self._console = Console(file=_Memory(encoding), width=width, force_terminal=True, legacy_windows=False)

    def line(self, model: str, text: str, share: float | None) -> str:
        """Return one line that never wraps; without ``share`` it is ``text`` alone."""
        width = self._console.width - 1
        row = [Text(cut(text, width))] if share is None else _with_bar(model, text, share, width)
        grid = Table.grid(padding=(0, 1))
        for _ in row:
            grid.add_column(no_wrap=True, overflow="crop")
        grid.add_row(*row)
        with self._console.capture() as drawn:
            self._console.print(grid, end="", width=width, no_wrap=True, overflow="crop", crop=True)
        return drawn.get().partition("\n")[0]


def _with_bar(model: str, text: str, share: float, width: int) -> list[Text | ProgressBar]:
    """Keep what matters most: the numbers, then the bar, then the model's name."""
    room = width - cells(text) - 1
    if room < _LEAST:
        return [Text(cut(text, width))]
    bar = min(_BAR, room)
    row: list[Text | ProgressBar] = [ProgressBar(total=1.0, completed=share, width=bar), Text(text)]
    room -= bar + 1
    return [Text(cut_middle(model, room)), *row] if model and room >= _LEAST else row
