"""The pipeline of docs/howto/ci.md: main saves its history in a cache, and pull requests work on a copy of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

FAST, SLOW = "sim:?tps=400&load_time=0", "sim:?tps=200&load_time=0"
TEXT = "2026-11 ollama 0.33: agreed"
SUITE = """
import pytest

@pytest.mark.ollama_load(requests=10, num_predict=16{baseline})
def test_speed():
    pass
"""


class Pipeline:
    """Builds that restore the cache, run pytest, and on main save the cache."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester
        self._cache = pytester.path.parent / "cache"
        self._store = pytester.path / ".ollama-perf"

    def build(self, url: str, *, main: bool, baseline: str = "") -> pytest.RunResult:
        option = f", baseline={baseline!r}" if baseline else ""
        self._pytester.makepyfile(test_perf=SUITE.format(baseline=option))
        shutil.rmtree(self._store, ignore_errors=True)
        if self._cache.exists():
            shutil.copytree(self._cache, self._store)
        # A busy machine delays first tokens; the builds differ in tokens per second by more than a third.
        margins = ["--ollama-margin=ttft=900%", "--ollama-margin=tps=25%"]
        options = ["--ollama-run-spacing=0", *margins, *(["--ollama-save"] if main else [])]
        result = self._pytester.runpytest_subprocess(f"--ollama-url={url}", *options)
        if main:
            shutil.rmtree(self._cache, ignore_errors=True)
            shutil.copytree(self._store, self._cache)
        return result


@pytest.mark.exhaustive
def test_a_regression_is_red_then_accepted_in_the_pull_request_then_green(pytester: pytest.Pytester) -> None:
    pipeline = Pipeline(pytester)
    for _ in range(2):
        assert pipeline.build(FAST, main=True).ret == 0
    red = pipeline.build(SLOW, main=False)
    assert red.ret == 1
    red.stdout.fnmatch_lines(["*regressed*"])
    assert 'baseline="..."' in " ".join(red.stdout.str().split())
    accepted = pipeline.build(SLOW, main=False, baseline=TEXT)
    assert accepted.ret == 0
    assert f"new baseline: {TEXT}" in accepted.stdout.str()
    merged = pipeline.build(SLOW, main=True, baseline=TEXT)
    assert merged.ret == 0
    for main in (True, False):
        assert pipeline.build(SLOW, main=main, baseline=TEXT).ret == 0
    acceptances = list(Path(pytester.path).glob(".ollama-perf/*/epochs/*.json"))
    assert len(acceptances) == 1
    assert TEXT in acceptances[0].read_text()


@pytest.mark.exhaustive
def test_after_the_acceptance_a_new_slowdown_is_red_again(pytester: pytest.Pytester) -> None:
    pipeline = Pipeline(pytester)
    assert pipeline.build(FAST, main=True).ret == 0
    for _ in range(2):
        assert pipeline.build(SLOW, main=True, baseline=TEXT).ret == 0
    assert pipeline.build("sim:?tps=100&load_time=0", main=False, baseline=TEXT).ret == 1
