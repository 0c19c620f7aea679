"""The text of a failing test, word for word."""

from __future__ import annotations

import inspect
import math

import msgspec
import pytest
from report_makers import FINGERPRINT, WORKLOAD, load, result, row, sample

from pytest_ollama_perf.core.run import Fingerprint
from pytest_ollama_perf.core.sample import Outcome, Phase
from pytest_ollama_perf.core.verdict import Hint, HintCode, Problem, ProblemCode, VerdictStatus
from pytest_ollama_perf.report.facts import redact_url
from pytest_ollama_perf.report.terminal import format_failure

LIMITS = (
    row("tps", status=VerdictStatus.BROKEN, op=">=", bound=150.0, value=84.1, low=82.0, high=86.0),
    row("latency", "p95", op="<=", bound=2.5, value=1.2, low=1.1, high=1.4),
)
HISTORY = (
    row(
        "ttft",
        "p50",
        VerdictStatus.REGRESSED,
        baseline=0.182,
        value=0.231,
        change=0.269,
        low=0.21,
        high=0.33,
        margin=0.2,
    ),
    row("tps", baseline=84.1, value=83.7, change=-0.005, low=-0.03, high=0.02, margin=-0.05),
)
REASON = "tps 84.1 /s, limit >= 150 /s: 44 % below"


def timed_out(index):
    return sample(index, outcome=Outcome.FIRST_TOKEN_TIMEOUT, error="no token within 2 s")


def text(expected):
    return inspect.cleandoc(expected)


def test_a_broken_limit_reads_as_promised():
    loads = [
        load(
            [
                *(sample(i, stage=Phase.WARMUP) for i in range(4)),
                *map(sample, range(4, 21)),
                *map(timed_out, (21, 22, 23)),
            ]
        )
    ]
    hint = "requests ran one at a time; OLLAMA_NUM_PARALLEL is probably 1"
    assert format_failure(
        result(VerdictStatus.BROKEN, REASON, loads, rows=LIMITS, hints=(Hint(code=HintCode.SLOTS, text=hint),))
    ) == text(
        """
        tps 84.1 /s, limit >= 150 /s: 44 % below

                               limit        now          95% CI
          x tps            >= 150 /s    84.1 /s     82 .. 86 /s
            latency p95     <= 2.5 s      1.2 s    1.1 .. 1.4 s
          20 requests, concurrency 4, 4 warm-up dropped, 3 errors
          ollama 0.32.15, llama3.2:3b Q4_K_M, num_ctx 4096, 100 % GPU
          errors: 3 first_token_timeout, e.g. "no token within 2 s"
          hint: requests ran one at a time; OLLAMA_NUM_PARALLEL is probably 1
        """
    )


def test_a_regression_reads_as_promised():
    made = result(
        VerdictStatus.REGRESSED,
        "ttft p50 +26.9 % (182 -> 231 ms), margin +20 %: the server's queue grew",
        [load()] * 3,
        rows=HISTORY,
        stored=12,
        changed=("ollama 0.32.10 -> 0.32.15",),
        accept='pytest-ollama-perf accept test_chat_speed --why "..."',
    )
    assert format_failure(made) == text(
        """
        ttft p50 +26.9 % (182 -> 231 ms), margin +20 %: the server's queue grew

                        baseline        now    change         95% CI    margin
          x ttft p50      182 ms     231 ms    +26.9%    +21 .. +33%      +20%
            tps          84.1 /s    83.7 /s     -0.5%     -3 ..  +2%       -5%
          3 runs x 20 requests, concurrency 4, 12 warm-up dropped,
          0 errors; 12 stored runs
          ollama 0.32.15, llama3.2:3b Q4_K_M, num_ctx 4096, 100 % GPU
          changed since the baseline: ollama 0.32.10 -> 0.32.15
          to accept: pytest-ollama-perf accept test_chat_speed --why "..."
        """
    )


def test_limits_and_history_are_both_drawn():
    drawn = format_failure(result(VerdictStatus.BROKEN, REASON, rows=(*HISTORY, *LIMITS))).splitlines()
    assert [line.split() for line in drawn if "95% CI" in line] == [
        ["limit", "now", "95%", "CI"],
        ["baseline", "now", "change", "95%", "CI", "margin"],
    ]


def test_a_row_without_baseline_shows_what_there_is():
    drawn = format_failure(
        result(VerdictStatus.NEW, "no baseline", rows=(row("tps", status=VerdictStatus.NEW, value=84.1),))
    )
    assert "    tps           -    84.1 /s         -         -         -" in drawn.splitlines()


def test_an_unsure_row_is_marked_and_one_that_does_not_gate_is_not():
    rows = (
        row("tps", status=VerdictStatus.UNSURE, op=">=", bound=1.0, value=1.0),
        row("qps", status=VerdictStatus.BROKEN, op=">=", bound=1.0, value=0.5, gating=False),
    )
    marks = [line[2] for line in format_failure(result(rows=rows)).splitlines() if "/s" in line and ">=" in line]
    assert marks == ["?", " "]


def test_the_ends_of_an_interval_keep_their_units_where_they_differ():
    rows = (row("latency", "p95", op="<=", bound=1.0, value=1.0, low=0.95, high=1.2),)
    assert "950 ms .. 1.2 s" in format_failure(result(rows=rows))


def test_an_infinite_percentile_is_drawn():
    rows = (row("latency", "p95", VerdictStatus.BROKEN, op="<=", bound=2.5, value=math.inf, low=1.5, high=math.inf),)
    assert (
        "  x latency p95    <= 2.5 s    inf    1.5 s .. inf"
        in format_failure(result(VerdictStatus.BROKEN, rows=rows)).splitlines()
    )


def test_an_infinite_change_is_drawn():
    rows = (
        row(
            "ttft",
            "p50",
            VerdictStatus.REGRESSED,
            baseline=0.1,
            value=math.inf,
            change=math.inf,
            low=math.inf,
            high=math.inf,
        ),
    )
    assert "+inf%    +inf .. +inf%" in format_failure(result(VerdictStatus.REGRESSED, rows=rows))


def test_problems_are_listed_with_what_to_do():
    found = (
        Problem(
            code=ProblemCode.MODEL_RELOADED,
            text="3 requests loaded the model again; keep the server for the measurement",
            invalidates=True,
        ),
        Problem(code=ProblemCode.SHORT_OUTPUTS, text="2 answers ended early", invalidates=False),
    )
    assert format_failure(result(VerdictStatus.INVALID, "the model was reloaded", problems=found)) == text(
        """
        the model was reloaded

          x model reloaded: 3 requests loaded the model again; keep the server for the
            measurement
          - short outputs: 2 answers ended early
          20 requests, concurrency 4, 4 warm-up dropped, 0 errors
          ollama 0.32.15, llama3.2:3b Q4_K_M, num_ctx 4096, 100 % GPU
        """
    )


def test_an_aborted_load_says_what_was_measured_until_then():
    drawn = format_failure(result(VerdictStatus.ABORTED, "stopped after 12 s (Ctrl-C)", [load([sample(4), sample(5)])]))
    assert drawn == text(
        """
        stopped after 12 s (Ctrl-C)
          measured until then:
          2 requests, concurrency 4, 0 errors
          ollama 0.32.15, llama3.2:3b Q4_K_M, num_ctx 4096, 100 % GPU
        """
    )


def test_a_load_that_never_began_says_so():
    assert (
        format_failure(result(VerdictStatus.INVALID, "nothing answers", []))
        == "nothing answers\n  nothing was measured"
    )


def test_errors_are_grouped_by_outcome_with_one_harmless_example():
    busy = [sample(i, outcome=Outcome.BUSY, error="server busy\x1b[2J\n\u202eplease" if i else "") for i in (0, 1, 2)]
    drawn = format_failure(result(VerdictStatus.BROKEN, REASON, [load([timed_out(3), *busy])])).splitlines()
    assert drawn[-2:] == [
        '  errors: 3 busy, e.g. "server busy[2J please"',
        '  errors: 1 first_token_timeout, e.g. "no token within 2 s"',
    ]


def test_whatever_was_left_out_is_counted():
    changed = msgspec.structs.replace
    short = changed(sample(4), counters=changed(sample(4).counters, eval_count=3, prompt_eval_cached_count=7))
    late = sample(5, outcome=Outcome.LATE, attempt=2)
    cancelled = sample(6, outcome=Outcome.CANCELLED)
    drawn = format_failure(result(VerdictStatus.BROKEN, REASON, [load([short, late, cancelled])]))
    assert "  2 requests, concurrency 4, 1 late, 1 cancelled, 1 retried, 1 cached, 1 short," in drawn.splitlines()
    assert "  1 error" in drawn.splitlines()


def test_loads_of_different_size_have_their_own_lines_and_one_environment():
    wider = msgspec.structs.replace(WORKLOAD, concurrency=8)
    assert format_failure(result(VerdictStatus.BROKEN, REASON, [load(), load(workload=wider)])).splitlines()[1:] == [
        "  20 requests, concurrency 4, 4 warm-up dropped, 0 errors",
        "  ollama 0.32.15, llama3.2:3b Q4_K_M, num_ctx 4096, 100 % GPU",
        "  20 requests, concurrency 8, 4 warm-up dropped, 0 errors",
    ]


def test_many_loads_are_counted_not_listed():
    loads = [load(workload=msgspec.structs.replace(WORKLOAD, concurrency=n)) for n in range(1, 8)]
    drawn = format_failure(result(VerdictStatus.BROKEN, REASON, loads)).splitlines()
    assert drawn[-1] == "  and 3 more loads; the JSON report has all"
    assert sum("requests" in line for line in drawn) == 4


def test_an_open_loop_and_a_duration_are_named():
    timed = msgspec.structs.replace(WORKLOAD, concurrency=None, rate=2.5, requests=None, duration_s=30.0, cold=True)
    drawn = format_failure(result(VerdictStatus.BROKEN, REASON, [load(workload=timed)])).splitlines()
    assert drawn[1] == "  20 requests, 2.5 requests/s (poisson), for 30 s, on a cold model,"


def test_a_partly_offloaded_model_and_one_on_the_cpu_are_told_apart():
    def line(share):
        changed = msgspec.structs.replace(FINGERPRINT, vram_share=share, gpu="RTX 4090")
        return format_failure(result(VerdictStatus.BROKEN, REASON, [load(fingerprint=changed)])).splitlines()[-1]

    assert line(0.571).endswith("num_ctx 4096, 57.1 % GPU, RTX 4090")
    assert line(0.0).endswith("num_ctx 4096, CPU, RTX 4090")
    assert line(None).endswith("num_ctx 4096, RTX 4090")


def test_an_empty_fingerprint_leaves_no_line():
    drawn = format_failure(result(VerdictStatus.BROKEN, REASON, [load(fingerprint=Fingerprint())]))
    assert drawn.splitlines()[-1] == "  20 requests, concurrency 4, 4 warm-up dropped, 0 errors"


def test_a_long_command_breaks_between_words_and_can_be_copied():
    name = "tests/perf/test_chat.py::TestChat::test_chat_speed[llama3.2:3b]"
    accept = f"pytest-ollama-perf accept '{name}' --why \"a newer server with a slower prefill\""
    drawn = format_failure(result(VerdictStatus.REGRESSED, REASON, accept=accept)).splitlines()
    at = drawn.index("  to accept:")
    assert drawn[at + 1 :] == [
        "    pytest-ollama-perf accept \\",
        f"    '{name}' --why \\",
        '    "a newer server with a slower prefill"',
    ]


def test_a_word_of_a_command_is_never_cut():
    word = f"'tests/{'x' * 90}.py::test_it'"
    assert (
        f"    {word}" in format_failure(result(VerdictStatus.REGRESSED, REASON, accept=f"accept {word}")).splitlines()
    )


def test_a_reason_too_long_for_a_line_is_wrapped_not_lost():
    reason = (
        "the model was loaded again while it was measured by three of twenty requests, so nothing here can be trusted"
    )
    assert format_failure(result(VerdictStatus.INVALID, reason, [])).splitlines()[:2] == [
        "the model was loaded again while it was measured by three of twenty requests, so",
        "  nothing here can be trusted",
    ]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sim:?models=tiny&fault=hold:0.62@p0.5", "sim:?models=tiny&fault=hold:0.62@p0.5"),
        ("http://user:secret@host:1/path?token=secret", "http://host:1/path"),
        ("user:secret@host:1", "host:1"),
    ],
)
def test_a_url_is_shown_without_credentials_and_a_simulator_as_it_was_given(url, shown):
    assert redact_url(url) == shown
