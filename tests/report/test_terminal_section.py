"""The section after the run and the header before it, word for word, and never wider than the terminal."""

from __future__ import annotations

import inspect
import math
import unicodedata

import msgspec
from _pytest._io import TerminalWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from report_makers import FINGERPRINT, TEST, WORKLOAD, load, result, row, sample

from pytest_ollama_perf.core.sample import Outcome
from pytest_ollama_perf.core.verdict import Hint, HintCode, Problem, ProblemCode, VerdictStatus
from pytest_ollama_perf.report.tables import count_columns
from pytest_ollama_perf.report.terminal import LineStyle, build_section, format_failure, format_header

BROKEN = "tps 84.1 /s, limit >= 150 /s: 44 % below"


def drawn(*results, verbosity=0, width=80):
    return "\n".join(line.text for line in build_section(results, verbosity=verbosity, width=width))


def test_the_section_reads_as_promised():
    broken = result(
        VerdictStatus.BROKEN,
        BROKEN,
        hints=(Hint(code=HintCode.SLOTS, text="requests ran one at a time; OLLAMA_NUM_PARALLEL is probably 1"),),
    )
    assert drawn(result(), broken) == inspect.cleandoc(
        """
        tests/test_chat.py::test_chat_speed                                           ok
          tps 110 /s, throughput 147 /s, qps 13.3 /s, ttft p50 200 ms / p95 200 ms,
          latency p95 300 ms, queue p50 8 ms
          20 requests, concurrency 4, 4 warm-up dropped, 0 errors
          ollama 0.32.15, llama3.2:3b Q4_K_M, num_ctx 4096, 100 % GPU

        tests/test_chat.py::test_chat_speed                                       broken
          tps 84.1 /s, limit >= 150 /s: 44 % below
          tps 110 /s, throughput 147 /s, qps 13.3 /s, ttft p50 200 ms / p95 200 ms,
          latency p95 300 ms, queue p50 8 ms
          20 requests, concurrency 4, 4 warm-up dropped, 0 errors
          ollama 0.32.15, llama3.2:3b Q4_K_M, num_ctx 4096, 100 % GPU
          hint: requests ran one at a time; OLLAMA_NUM_PARALLEL is probably 1

        1 ok, 1 broken
          rerun with all metrics: pytest --last-failed -v
        """
    )


def test_several_runs_show_the_median_run_once():
    slow = load([msgspec.structs.replace(sample(4), done_ns=sample(4).done_ns + 700_000_000)])
    text = drawn(result(loads=[load(), slow, slow]))
    assert "latency p95 1 s, queue p50 8 ms, each the median run" in text
    assert text.count("tps ") == 1


def test_every_number_stands_in_the_verbose_table():
    rows = (row("tps", op=">=", bound=100.0, value=110.0, low=110.0, high=110.0),)
    failed = [sample(4, outcome=Outcome.BUSY, error="server busy"), *(sample(i) for i in range(5, 24))]
    assert drawn(result(rows=rows, loads=[load(failed)]), verbosity=1) == inspect.cleandoc(
        """
        tests/test_chat.py::test_chat_speed                                           ok
          every limit is met
                       limit       now           95% CI
            tps    >= 100 /s    110 /s    110 .. 110 /s
                                 value   mean    p50    p90    p95    p99    min    max
          tps /s                   110    104    110    110    110    110      0    110
            95% CI from            110   93.5    110
            95% CI to              110    110    110
          throughput /s            139
            95% CI from            125
            95% CI to              147
          throughput_whole /s      139
            95% CI from            125
            95% CI to              147
          qps /s                  12.7
            95% CI from           11.3
            95% CI to             13.3
          ttft ms                         inf    200    200    inf    inf    200    inf
            95% CI from                          200
            95% CI to                            200
          tpot ms                         inf     10     10    inf    inf     10    inf
            95% CI from                           10
            95% CI to                             10
          itl ms                           10     10     10     10     10     10     10
            95% CI from                    10     10     10     10     10
            95% CI to                      10     10     10     10     10
          latency ms                      inf    300    300    inf    inf    300    inf
            95% CI from                          300
            95% CI to                            300
          queue ms                        inf      8      8    inf    inf      8    inf
            95% CI from                            8
            95% CI to                              8
          prefill_tps /s           168    160    168    168    168    168      0    168
            95% CI from            168    143    168
            95% CI to              168    168    168
          load_time ms                    inf      1      1    inf    inf      1    inf
            95% CI from                            1
            95% CI to                              1
          error_rate %               5
            95% CI from          0.127
            95% CI to             24.9
          20 requests, concurrency 4, 1 error
          ollama 0.32.15, llama3.2:3b Q4_K_M, num_ctx 4096, 100 % GPU
          errors: 1 busy, e.g. "server busy"

        1 ok
        """
    )


def test_a_wait_of_many_seconds_is_shown_in_seconds():
    slow = load([msgspec.structs.replace(sample(4), done_ns=sample(4).done_ns + 20_000_000_000)])
    line = next(line for line in drawn(result(loads=[slow]), verbosity=1).splitlines() if "latency" in line)
    assert line.split() == ["latency", "s", *["20.3"] * 7]


def test_each_of_several_loads_has_its_own_table():
    text = drawn(result(loads=[load(), load()]), verbosity=1)
    assert "  load 1 of 2: 20 requests, concurrency 4, 4 warm-up dropped, 0 errors" in text.splitlines()
    assert text.count("95% CI from") == 2 * drawn(result(), verbosity=1).count("95% CI from")


def test_a_quiet_run_has_one_line():
    results = [result(), result(), result(VerdictStatus.BROKEN, BROKEN), result(VerdictStatus.FASTER, "12 % faster")]
    expected = "ollama: 2 ok, 1 faster, 1 broken; test_chat_speed: tps 84.1 /s, limit >= 150 ..."
    assert drawn(*results, verbosity=-1) == expected


def test_a_quiet_good_run_says_no_more_than_its_counts():
    assert drawn(result(), result(), verbosity=-1) == "ollama: 2 ok"


def test_no_loads_no_section():
    assert build_section([], verbosity=1) == []


def test_a_good_run_ends_without_a_command():
    assert drawn(result()).splitlines()[-1] == "1 ok"


def test_an_unsure_test_gives_its_reason():
    assert "\n  tps 149 /s: too few requests to tell\n" in drawn(
        result(VerdictStatus.UNSURE, "tps 149 /s: too few requests to tell")
    )


def test_a_long_test_name_is_cut_in_the_middle():
    name = f"tests/{'deep/' * 20}test_chat.py::test_chat_speed[llama3.2:3b]"
    first = drawn(result(test=name)).splitlines()[0]
    assert first.startswith("tests/deep/deep/")
    assert first.endswith("::test_chat_speed[llama3.2:3b]  ok")
    assert len(first) == 80


def test_the_style_follows_the_verdict():
    lines = build_section(
        [result(), result(VerdictStatus.UNSURE, "?"), result(VerdictStatus.INVALID, "!")], verbosity=0
    )
    titles = [line.style for line in lines if line.text.startswith(TEST)]
    assert titles == [LineStyle.GOOD, LineStyle.DOUBTFUL, LineStyle.BAD]
    assert lines[-2].style is LineStyle.BAD


def test_styles_are_words_that_the_terminal_writer_knows():
    known = TerminalWriter._esctable
    assert all(word in known for style in LineStyle for word in style.markup)


def test_the_header_is_one_line():
    assert (
        format_header("0.32.15", ["http://gpu-box:11434"], ["llama3.2:3b"])
        == "ollama 0.32.15 at http://gpu-box:11434: llama3.2:3b"
    )
    assert (
        format_header("0.32.15", ["a:1", "b:2", "c:3"], list("vwxyz"))
        == "ollama 0.32.15 at a:1, b:2 and 1 more: v, w, x and 2 more"
    )
    assert format_header("", [], []) == "ollama"


def test_credentials_never_reach_the_header():
    shown = format_header("0.32.15", ["https://user:secret@gpu-box/v?key=secret"], [])
    assert shown == "ollama 0.32.15 at https://gpu-box/v"


def test_the_settings_of_a_simulator_stay_in_the_header():
    assert format_header("0.32.15", ["sim:?slots=4"], []) == "ollama 0.32.15 at sim:?slots=4"


nasty = st.text(st.characters(exclude_categories=()), max_size=60) | st.sampled_from(
    ["\x1b[31mred\x1b[0m", "a\nb\r\nc", "\u202eabc", "漢字" * 60, "e\u0301" * 90, "\ud800", "x" * 400, "👩‍👩‍👧" * 40]
)
words = st.sampled_from(VerdictStatus)
finite = st.floats(0, 1e30)
numbers = finite | st.sampled_from([math.inf, None])


@st.composite
def results(draw):
    model = draw(nasty)
    errors = draw(st.lists(st.tuples(st.sampled_from(Outcome), nasty), min_size=1, max_size=4))
    samples = [sample(index, outcome=outcome, error=error) for index, (outcome, error) in enumerate(errors)]
    fingerprint = msgspec.structs.replace(FINGERPRINT, model=model, quantization=draw(nasty), gpu=draw(nasty))
    made = load(samples, workload=msgspec.structs.replace(WORKLOAD, model=model), fingerprint=fingerprint)
    keys = st.sampled_from(["tps", "throughput_whole", "prefill_tps", "latency", "error_rate"])
    ends = dict.fromkeys(("bound", "baseline", "change", "low", "high", "margin"), numbers)
    one_row = st.builds(row, keys, st.sampled_from(["", "p95"]), words, value=finite, op=st.just(">="), **ends)
    quoted = st.text("ab ", max_size=28).map(lambda text: f"'{text}'")
    command_words = st.text("ab-", max_size=30) | quoted
    rows = draw(st.lists(one_row, max_size=3))
    return result(
        draw(words),
        draw(nasty),
        [made],
        draw(nasty),
        rows=tuple(rows),
        problems=(Problem(code=draw(st.sampled_from(ProblemCode)), text=draw(nasty), invalidates=draw(st.booleans())),),
        hints=(Hint(code=draw(st.sampled_from(HintCode)), text=draw(nasty)),),
        changed=(draw(nasty),),
        accept=draw(st.lists(command_words, max_size=9).map(" ".join)),
        stored=draw(st.none() | st.integers(0, 20)),
    )


def harmful(char):
    return unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@given(results(), st.integers(-1, 1), st.integers(60, 120))
@settings(max_examples=100, deadline=None)
def test_no_line_is_too_wide_or_harmful(made, verbosity, width):
    lines = [line.text for line in build_section([made], verbosity=verbosity, width=width)]
    for line in [*lines, *format_failure(made, width=width).split("\n")]:
        assert count_columns(line) <= width, line
        assert not any(map(harmful, line)), ascii(line)


@given(nasty, st.lists(nasty, max_size=4), st.lists(nasty, max_size=4))
@settings(max_examples=100, deadline=None)
def test_no_header_is_too_wide_or_harmful(version, urls, models):
    line = format_header(version, urls, models)
    assert count_columns(line) <= 80
    assert not any(map(harmful, line))
