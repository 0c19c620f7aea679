"""Progress on a terminal leaves no trace; elsewhere it is silent or brief."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys

import pytest

from pytest_ollama_perf.loadgen.recorder import LoadProgress
from pytest_ollama_perf.report.progress import LiveProgress, compute_share_done, describe_progress


def progress(**changes):
    fields = {"sent": 16, "done": 12, "failed": 0, "tokens": 3100, "elapsed_s": 10.0, "total": 20} | changes
    return LoadProgress(**fields)


class Terminal(io.StringIO):
    """A small terminal: what it shows after all that was written, line feeds and cursor moves done."""

    encoding = "utf-8"

    def __init__(self, rows=4, text=""):
        super().__init__()
        self.screen = [""] * rows
        self.row = self.column = 0
        self.saved = (0, 0)
        self.seen = []
        self.write(text)

    def isatty(self):
        return True

    def write(self, text):
        for piece in re.findall(r"\x1b\[[\d;]*[A-Za-z]|\x1b.|\r|\n|[^\x1b\r\n]+", text):
            self.obey(piece)
        self.seen.append(list(self.screen))
        return len(text)

    def obey(self, piece):
        if piece in {"\n", "\x1bD"}:
            self.down()
            self.column = 0 if piece == "\n" else self.column
        elif piece == "\r":
            self.column = 0
        elif piece == "\x1b7":
            self.saved = self.row, self.column
        elif piece == "\x1b8":
            self.row, self.column = self.saved
        elif piece == "\x1b[2K":
            self.screen[self.row] = ""
        elif piece in {"\x1b[1A", "\x1b[1B"}:
            self.row += 1 if piece[-1] == "B" else -1
            assert 0 <= self.row < len(self.screen)
        elif not re.fullmatch(r"\x1b\[[\d;]*m", piece):
            assert not piece.startswith("\x1b"), ascii(piece)
            self.put(piece)

    def put(self, text):
        line = self.screen[self.row].ljust(self.column)
        self.screen[self.row] = line[: self.column] + text + line[self.column + len(text) :]
        self.column += len(text)

    def down(self):
        if self.row == len(self.screen) - 1:
            self.screen = [*self.screen[1:], ""]
        else:
            self.row += 1


def test_the_line_says_all_there_is_to_say():
    assert describe_progress(progress()) == "12/20 requests, 4 in flight, 310 tokens/s, 0 errors, 7 s left"
    assert (
        describe_progress(progress(total=None, failed=1), 30.0)
        == "12 requests, 4 in flight, 310 tokens/s, 1 error, 20 s left"
    )


def test_what_is_not_known_is_left_out():
    started = progress(sent=4, done=0, tokens=0, elapsed_s=0.0)
    assert describe_progress(started) == "0/20 requests, 4 in flight, 0 errors"
    assert describe_progress(progress(total=None)) == "12 requests, 4 in flight, 310 tokens/s, 0 errors"


def test_a_load_that_overruns_has_nothing_left_and_is_no_more_than_done():
    assert describe_progress(progress(total=None, elapsed_s=31.0), 30.0).endswith("0 s left")
    assert compute_share_done(progress(total=None, elapsed_s=31.0), 30.0) == 1.0


def test_the_share_done_goes_by_requests_or_by_time():
    assert compute_share_done(progress()) == 0.6
    assert compute_share_done(progress(total=None), 40.0) == 0.25
    assert compute_share_done(progress(total=None)) is None


@pytest.mark.parametrize("rows", [1 + 1, 5])
def test_a_terminal_shows_a_bar_below_and_then_stands_as_before(rows):
    terminal = Terminal(rows, "\n" * (rows - 1) + "tests/test_chat.py ")
    with LiveProgress(terminal, width=80) as live:
        live.begin("llama3.2:3b")
        live.update(progress())
        below = terminal.screen[terminal.screen.index("tests/test_chat.py ") + 1]
    assert re.fullmatch(r"━+[╸╺]?━* 12/20 requests, 4 in flight, 310 tokens/s, 0 errors, 7 s left *", below)
    terminal.write(".")
    assert [line for line in terminal.screen if line] == ["tests/test_chat.py ."]


def test_a_wide_terminal_names_the_model():
    terminal = Terminal()
    with LiveProgress(terminal, width=120) as live:
        live.begin("llama3.2:3b")
        live.update(progress())
        assert terminal.screen[1].startswith("llama3.2:3b ━━━")


@pytest.mark.parametrize("width", [10, 40, 80, 200])
def test_the_bar_never_wraps(width):
    terminal = Terminal()
    with LiveProgress(terminal, width=width) as live:
        live.show_message("loading a model with a rather long name " * 3)
        live.begin("registry.example/a-model-with-a-rather-long-name:70b-instruct-q4_K_M")
        live.update(progress(total=None))
        live.update(progress())
    assert all(len(line) < width for screen in terminal.seen for line in screen)
    assert not any(terminal.screen)


def test_a_message_takes_the_place_of_the_bar():
    terminal = Terminal()
    with LiveProgress(terminal, width=80) as live:
        live.show_message("loading llama3.2:3b ...", time="34 s")
        assert terminal.screen[1].rstrip() == "loading llama3.2:3b ... 34 s"


def test_hostile_text_cannot_steer_the_terminal():
    terminal = Terminal()
    with LiveProgress(terminal, width=80) as live:
        live.show_message("\x1b[2J\x1b]0;title\x07 loading \n [bold]x[/bold]")
        assert terminal.screen[1].rstrip() == "[2J]0;title loading   [bold]x[/bold]"


def test_a_load_that_fails_still_cleans_up():
    terminal = Terminal()
    with contextlib.suppress(KeyboardInterrupt), LiveProgress(terminal, width=80) as live:
        live.update(progress())
        raise KeyboardInterrupt
    assert not any(terminal.screen)


def test_no_colour_when_asked(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    written = Written(tty=True)
    with LiveProgress(written, width=80) as live:
        live.update(progress())
    assert not re.search(r"\x1b\[[\d;]*3\d", written.getvalue())


def test_an_ascii_terminal_gets_ascii():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    file.isatty = lambda: True
    with LiveProgress(file, width=80) as live:
        live.begin("模型")
        live.update(progress())
    assert b"12/20 requests" in file.buffer.getvalue()


def test_a_terminal_that_is_gone_does_not_stop_the_load():
    written = Written(tty=True)
    with LiveProgress(written, width=80) as live:
        written.close()
        live.update(progress())


class Written(io.StringIO):
    def __init__(self, tty=False):
        super().__init__()
        self.tty = tty

    def isatty(self):
        return self.tty


def shown(file, verbosity):
    with LiveProgress(file, verbosity=verbosity) as live:
        live.show_message("loading llama3.2:3b ...", time="1 s")
        live.show_message("loading llama3.2:3b ...", time="2 s")
        live.show_message("loading llama3.2:1b ...", time="1 s")
        live.begin("llama3.2:3b")
        for seconds in range(26):
            live.update(progress(elapsed_s=float(seconds), tokens=310 * seconds))
    return file.getvalue()


def test_a_log_is_left_alone():
    assert shown(Written(), 0) == ""


def test_quiet_means_quiet_even_on_a_terminal():
    assert shown(Written(tty=True), -1) == ""


def test_a_dumb_terminal_is_no_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert shown(Written(tty=True), 0) == ""


def test_what_pytest_writes_next_is_not_glued_to_a_line():
    assert shown(Written(), 1).endswith("13 s left\n")


def test_a_verbose_log_gets_a_line_now_and_then():
    assert shown(Written(), 1).splitlines() == [
        "",
        "  loading llama3.2:3b ... 1 s",
        "  loading llama3.2:1b ... 1 s",
        "  llama3.2:3b: 12/20 requests, 4 in flight, 310 tokens/s, 0 errors, 7 s left",
        "  llama3.2:3b: 12/20 requests, 4 in flight, 310 tokens/s, 0 errors, 13 s left",
    ]


def test_rich_is_imported_only_to_draw():
    code = (
        "import io, sys; from pytest_ollama_perf.report.progress import LiveProgress\n"
        "with LiveProgress(io.StringIO(), verbosity=1) as live: live.show_message('loading')\n"
        "sys.exit('rich' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


WHOLE = "12/20 requests, 4 in flight, 310 tokens/s, ttft 182 ms, 0 errors, 7 s left"


def test_the_line_says_how_long_first_tokens_take():
    assert describe_progress(progress(ttft_s=0.1824)) == WHOLE


def bar_at(width, captions, **changes):
    terminal = Terminal()
    with LiveProgress(terminal, width=width) as live:
        live.begin("llama3.2:3b", captions=captions)
        live.update(progress(ttft_s=0.182, **changes))
        return terminal.screen[1].rstrip()


@pytest.mark.parametrize(
    ("width", "captions", "line"),
    [
        (140, ("level 3 of 5",), rf"level 3 of 5, llama3.2:3b ━+[╸╺]?━* {WHOLE}"),
        (100, ("level 3 of 5",), rf"level 3 of 5 ━+[╸╺]?━* {WHOLE}"),
        (80, ("level 3 of 5",), r"level 3 of 5 ━+[╸╺]?━* 12/20 requests, 310 tokens/s, 0 errors, 7 s left"),
        (
            80,
            ("run 2 of at most 3",),
            r"run 2 of at most 3 ━+[╸╺]?━* 12/20 requests, 310 tokens/s, 0 errors, 7 s left",
        ),
        (
            80,
            ("block 4 of 12, candidate",),
            r"block 4 of 12, candidate 12/20 requests, 310 tokens/s, 0 errors, 7 s left",
        ),
        (80, (), r"━+[╸╺]?━* 12/20 requests, 310 tokens/s, ttft 182 ms, 0 errors, 7 s left"),
        (40, ("level 3 of 5",), r"12/20 requests, 310 tokens/s, 0 erro\.\.\."),
    ],
)
def test_a_narrow_terminal_keeps_the_numbers_then_which_load_it_is(width, captions, line):
    shown = bar_at(width, captions)
    assert re.fullmatch(line, shown), shown
    assert len(shown) < width


def test_a_verbose_log_says_which_load_it_is():
    file = Written()
    with LiveProgress(file, verbosity=1) as live:
        live.begin("m", captions=("level 3 of 5",))
        live.update(progress(elapsed_s=11.0))
    assert file.getvalue().strip().startswith("level 3 of 5, m: 12/20 requests, 4 in flight, 282 tokens/s")


def test_a_comma_in_the_name_of_a_model_does_not_make_a_caption_of_it():
    terminal = Terminal()
    with LiveProgress(terminal, width=80) as live:
        live.begin("a, llama3.2:3b")
        live.update(progress(ttft_s=0.182))
        assert terminal.screen[1].startswith("━")


def test_messages_that_end_in_different_seconds_are_different_messages():
    file = Written()
    with LiveProgress(file, verbosity=1) as live:
        live.show_message("interval 1 s")
        live.show_message("interval 2 s")
    assert file.getvalue().split("\n") == ["", "  interval 1 s", "  interval 2 s", ""]


def test_a_line_in_a_log_leaves_out_what_it_has_no_room_for_rather_than_its_end():
    file = Written()
    with LiveProgress(file, verbosity=1) as live:
        live.begin("llama3.2:3b", captions=("level 3 of 5",))
        live.update(progress(elapsed_s=11.0, ttft_s=0.182))
    assert file.getvalue().strip() == "level 3 of 5, llama3.2:3b: 12/20 requests, 282 tokens/s, 0 errors, 7 s left"
