"""Whoever looks on hears which of several loads one is."""

from __future__ import annotations

from pytest_ollama_perf.harness.evaluation import CaptionedListener
from pytest_ollama_perf.loadgen.recorder import LoadProgress


class Heard:
    def __init__(self):
        self.all = []

    def begin(self, model, duration_s=None, *, captions=()):
        self.all.append((model, duration_s, captions))

    def show_message(self, text, *, time=""):
        self.all.append((text, time))

    def update(self, progress):
        self.all.append(progress)


def test_captions_stand_before_model_and_messages_and_leave_progress_alone():
    heard = Heard()
    listener = CaptionedListener(CaptionedListener(heard, "level 3 of 5"), "run 2 of at most 3")
    progress = LoadProgress(sent=1, done=0, failed=0, tokens=0, elapsed_s=0.0, total=1)
    listener.begin("llama3.2:3b", 60.0)
    listener.show_message("loading llama3.2:3b ...", time="3 s")
    listener.update(progress)
    assert heard.all == [
        ("llama3.2:3b", 60.0, ("level 3 of 5", "run 2 of at most 3")),
        ("level 3 of 5: run 2 of at most 3: loading llama3.2:3b ...", "3 s"),
        progress,
    ]
