"""A load along its time, from the samples alone."""

from __future__ import annotations

import math

import msgspec
import pytest
from run_makers import failure, run_of, sample

from pytest_ollama_perf.analysis.load_profile import Timeline, TimelineWindow, build_timeline
from pytest_ollama_perf.core.workload import Stage
from pytest_ollama_perf.report.experiments import render_findings


def every(seconds: float, count: int, **fields):
    """One request after another, each 100 ms to its first token and then 10 tokens in 100 ms more."""
    return [sample(number, sent=round(number * seconds * 1000), **fields) for number in range(count)]


def course(*samples, **workload) -> Timeline:
    words = {"requests": None, "duration_s": 12.0, **workload}
    (found,) = build_timeline(run_of(*samples, workload=words))
    return found


def test_windows_count_what_ended_in_them() -> None:
    found = course(*every(1, 12))
    assert (found.window_s, len(found.spans)) == (1.0, 12)
    first = found.spans[0]
    assert (first.begin_s, first.end_s, first.requests, first.failed) == (0.0, 1.0, 1, 0)
    # 11 tokens in a window of one second
    assert first.throughput == pytest.approx(11.0)
    assert (first.ttft_p50_s, first.ttft_p95_s, first.level) == (0.1, 0.1, None)
    assert sum(span.requests for span in found.spans) == 12
    assert found.change == pytest.approx(0.0)


def test_failures_are_counted_and_infinitely_slow() -> None:
    found = course(*every(1, 11), failure(11, sent=11_100))
    last = found.spans[-1]
    assert (last.requests, last.failed, last.ttft_p50_s, last.throughput) == (1, 1, math.inf, 0.0)


def test_a_slowdown_is_told_as_the_last_third_against_the_first() -> None:
    slow = [sample(20 + number, sent=6000 + number * 2000, tokens=11) for number in range(3)]
    assert course(*every(1, 6), *slow).change == pytest.approx(4 / 6 - 1 - 0.0, abs=0.34)
    assert course(*every(0.5, 12), *slow).change < -0.5


def test_windows_are_few_and_of_round_lengths() -> None:
    for duration, width in ((10, 1), (12, 1), (13, 2), (60, 5), (600, 60), (3600, 300), (86_400, 7200)):
        found = course(*every(duration / 10, 10), duration_s=float(duration))
        assert found.window_s == width
        assert len(found.spans) <= 12


def test_stages_show_their_level() -> None:
    stages = (Stage(level=4, seconds=4, ramp=True), Stage(level=4, seconds=4))
    # the first client joins after a second: there is room for it when the ramp has reached 1
    found = course(*every(1, 7), stages=stages, duration_s=8.0, concurrency=4)
    assert found.window_s == 1.0
    assert [span.level for span in found.spans] == pytest.approx([0.5, 1.5, 2.5, 3.5, 4, 4, 4, 4])
    assert [span.requests for span in found.spans] == [0, 1, 1, 1, 1, 1, 1, 1]
    assert found.change is None


@pytest.mark.parametrize("words", [{"requests": 12, "duration_s": None}, {"requests": None, "duration_s": 9.9}])
def test_a_load_that_is_short_or_ends_by_count_has_no_course(words: dict) -> None:
    assert build_timeline(run_of(*every(1, 12), workload=words)) == ()
    assert build_timeline(run_of(workload={"requests": None, "duration_s": 60.0})) == ()


def test_a_course_of_any_kind_is_shown_in_eighty_columns() -> None:
    spans = tuple(
        TimelineWindow(
            begin_s=number * 7200.0,
            end_s=number * 7200.0 + 7200,
            requests=123_456,
            failed=number,
            throughput=98_765.4,
            ttft_p50_s=None if number == 1 else 0.1234,
            ttft_p95_s=math.inf,
            level=12.5,
        )
        for number in range(3)
    )
    lines = render_findings([Timeline(window_s=7200.0, spans=spans, change=-0.25)], 80)
    assert lines == [
        "",
        "  from       load    requests    tokens/s    ttft p50    p95    errors",
        "  0:00         12      123456       98765      123 ms    inf         0",
        "  2:00:00      12      123456       98765           -    inf         1",
        "  4:00:00      12      123456       98765      123 ms    inf         2",
        "  throughput in the last third: -25 % against the first",
    ]
    assert msgspec.to_builtins(Timeline(window_s=1.0, spans=spans))["kind"] == "timeline"
