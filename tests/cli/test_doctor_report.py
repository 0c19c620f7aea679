"""What doctor says, whole, and what it makes of what it measured."""

from __future__ import annotations

import json

import pytest
from doctor_makers import HEALTHY, campaign, client

from pytest_ollama_perf.analysis.client_checks import find_client_problems
from pytest_ollama_perf.cli.doctor_report import DoctorReport, print_client, print_server_report, to_json
from pytest_ollama_perf.core.verdict import Problem, ProblemCode

SPOILT = Problem(
    code=ProblemCode.PARTIAL_OFFLOAD,
    text="the model is partly on the CPU: 88 % of it is in GPU memory",
    invalidates=True,
)


def printed(capsys):
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_the_client_is_told_in_80_columns(capsys):
    print_client(HEALTHY)
    assert printed(capsys) == [
        "this machine's client, 8 cores",
        "  follows       700 streams of 50 tokens/s on one core, 30 % of it spare",
        "  chunks        50 000 /s one by one, 2.34 million /s when they pile up",
        "  first token   looks 0.04 ms late (p50), 0.4 ms (p99), with the kernel's",
        "                receive stamps",
        "  event loop    uvloop, wakes 0.4 ms late when idle (p99)",
        "  clock         steps of 50 ns",
        "  open files    1024 allowed, this load needs 65",
        "  load average  0.3",
    ]


def test_a_healthy_campaign_is_told_whole(capsys):
    print_server_report(DoctorReport(HEALTHY, campaign()))
    assert printed(capsys) == [
        "",
        "the noise of m:latest (3.2B Q4_K_M, on the GPU), ollama 0.32.15 on",
        "http://box:11434",
        "  6 sessions x 20 requests, concurrency 1, 1 warm-up dropped; the model reloaded",
        "for each",
        "",
        "                       differ         seen in                  margin",
        "  metric      typical      by  usual    1 run  2 runs  3 runs     now  worth",
        "  tps          110 /s     0 %    2 %    5.1 %   3.9 %   3.3 %     5 %    4 %",
        "  ttft         100 ms     0 %    5 %     13 %   9.9 %   8.5 %    20 %    9 %",
        "  latency      200 ms     0 %    2 %    5.1 %   3.9 %   3.3 %     5 %    4 %",
        "  throughput    55 /s     0 %    3 %    7.8 %   5.8 %     5 %    10 %    6 %",
        "  load_time    500 ms     0 %    5 %     13 %   9.9 %   8.5 %    25 %    9 %",
        "Detectable in N runs: the change found with 80 % power with these runs as the",
        "history. From 6 sessions a deviation is known to a factor of 2.5. Can gate only:",
        "throughput from 50 requests a run.",
        "",
        "margins as small as tps=4% and ttft=9% would hold here",
        "healthy",
    ]


def test_a_blunt_margin_comes_with_what_to_type(capsys):
    found = DoctorReport(HEALTHY, campaign((100, 106, 95, 103, 97, 104)))
    assert found.is_healthy
    print_server_report(found)
    assert "recommended margins for this machine: pytest --ollama-margin tps=13%" in printed(capsys)


def test_a_machine_too_noisy_to_gate_is_not_healthy(capsys):
    found = DoctorReport(HEALTHY, campaign((100, 140, 80, 130, 90, 150)))
    assert not found.is_healthy
    print_server_report(found)
    lines = printed(capsys)
    assert any(line.startswith("x tps is too noisy to gate: runs differ by 26 %") for line in lines)
    assert lines[-1].startswith("1 problem found")


def test_a_session_that_cannot_be_trusted_is_named_and_left_out():
    found = DoctorReport(HEALTHY, campaign((10, 10, 50, 10), invalid_runs={"run 2": (SPOILT,)}))
    assert not found.is_healthy
    assert [problem.text for problem in found.problems if problem.invalidates] == [f"1 of 4 sessions: {SPOILT.text}"]
    assert all(noise.sd == pytest.approx(0.0, abs=1e-9) for noise in found.campaign.noises)


def test_too_few_sessions_are_said_not_to_show_noise(capsys):
    print_server_report(
        DoctorReport(HEALTHY, campaign((10, 10), stopped="stopped by Ctrl-C in session 3 of 6", interrupted=True))
    )
    text = " ".join(printed(capsys))
    assert text.endswith("so far healthy")
    assert "stopped by Ctrl-C in session 3 of 6" in text
    assert "2 valid sessions cannot show noise: 3 or more can" in text


def test_a_campaign_that_the_server_ended_is_not_healthy():
    found = DoctorReport(HEALTHY, campaign(stopped="session 7 of 9 could not be run: nothing answers"))
    assert [problem.text for problem in found.problems if problem.invalidates] == [
        "session 7 of 9 could not be run: nothing answers"
    ]


def test_a_server_that_nobody_named_may_be_away(capsys):
    found = DoctorReport(HEALTHY, None, unreachable_reason="nothing answers at http://127.0.0.1:11434")
    assert found.is_healthy
    print_server_report(found)
    assert printed(capsys)[1] == "no campaign: nothing answers at http://127.0.0.1:11434"


def test_a_server_that_somebody_named_may_not():
    assert not DoctorReport(
        HEALTHY, None, unreachable_reason="nothing answers at http://box:11434", is_server_named=True
    ).is_healthy


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"open_files": 64}, "the load needs 65 open files, this process may have 64: raise the limit (ulimit -n)"),
        ({"idle_lag_p99_s": 0.03}, "an idle event loop wakes 30 ms late (p99): this machine is overloaded"),
        ({"ttft_error_p50_s": 0.011}, "times to the first token look 11 ms longer than they are (p50)"),
    ],
)
def test_what_keeps_a_client_from_the_truth_is_named(fields, text):
    [problem] = find_client_problems(client(**fields))
    assert (problem.text, problem.invalidates) == (text, True)


@pytest.mark.parametrize("fields", [{"load_average": 9.0}, {"timer_resolution_s": 0.015}])
def test_what_only_disturbs_a_client_is_a_warning(fields):
    [problem] = find_client_problems(client(**fields))
    assert not problem.invalidates


def test_a_client_that_can_do_everything_has_no_problems():
    assert find_client_problems(client(open_files=None, load_average=None), streams=100, tps=50.0) == ()


def test_a_load_above_the_ceiling_is_named():
    [problem] = find_client_problems(HEALTHY, streams=1000, tps=40.0)
    assert problem.text == "1000 streams of 40 tokens/s would take 80 % of a core of this client: use fewer at once"
    assert problem.invalidates


def test_json_says_the_same_and_knows_no_nan():
    body = json.loads(json.dumps(to_json(DoctorReport(HEALTHY, campaign())), allow_nan=False))
    assert body["schema"] == 1
    assert body["healthy"] is True
    assert body["client"]["streams_of_50_tps"] == 700
    tps = body["campaign"]["metrics"]["tps"]
    assert (tps["typical"], tps["sd"], tps["margin_worth"]) == (
        pytest.approx(110.0),
        pytest.approx(0.0, abs=1e-9),
        0.04,
    )
    assert tps["autocorrelation"] is None
    assert len(tps["detectable"]) == 3
