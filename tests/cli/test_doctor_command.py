"""The command itself, against a simulator; the generator and the client against each other."""

from __future__ import annotations

import json

import pytest
from doctor_makers import HEALTHY

from pytest_ollama_perf.cli import doctor, main
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.simulator.generator import GeneratorSettings, start_generator

FAST = "sim:?slots=4&tps=2000&prefill_tps=100000&load_time=1ms"
SMALL = ("--model", "llama3.2:3b", "--sessions", "3", "--requests", "4", "--num-predict", "8")


@pytest.fixture(autouse=True)
def _known_client(monkeypatch):
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    monkeypatch.setattr(doctor, "measure_client", lambda connections: HEALTHY)


def test_a_campaign_on_a_simulator_is_reported_as_json(capsys):
    status = main(["doctor", "--url", FAST, *SMALL, "--json"])
    body = json.loads(capsys.readouterr().out)
    campaign = body["campaign"]
    assert campaign["sessions"] == 3
    assert campaign["fingerprint"]["model"] == "llama3.2:3b"
    assert campaign["workload"]["requests"] == 4
    assert status == (0 if body["healthy"] else 1)


def test_sessions_are_told_while_they_run(capsys):
    main(["doctor", "--url", FAST, *SMALL])
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("session")]
    assert [line.split(":")[0] for line in told] == [f"session {number} of 3" for number in (1, 2, 3)]


def test_a_model_that_is_partly_on_the_cpu_is_put_right_first(capsys):
    assert main(["doctor", "--url", f"{FAST}&vram=0.88", *SMALL]) == 1
    assert "the model is partly on the CPU: 88 % of it is in GPU memory" in " ".join(capsys.readouterr().out.split())


def test_failed_requests_are_put_right_first(capsys):
    assert main(["doctor", "--url", f"{FAST}&fault=http_500@3", *SMALL]) == 1
    assert "1 of 4 requests failed" in " ".join(capsys.readouterr().out.split())


def test_ctrl_c_prints_what_is_known(capsys, monkeypatch):
    real, runs = doctor._run_session, []

    def session(*arguments):
        if len(runs) == 3:
            raise KeyboardInterrupt
        runs.append(real(*arguments))
        return runs[-1]

    monkeypatch.setattr(doctor, "_run_session", session)
    assert main(["doctor", "--url", FAST, *SMALL[:2], "--sessions", "9", *SMALL[4:]]) == 130
    text = " ".join(capsys.readouterr().out.split())
    assert "stopped by Ctrl-C in session 4 of 9" in text
    assert "tps" in text


def test_without_a_server_the_client_is_measured_all_the_same(capsys):
    assert main(["doctor", "--url", "http://127.0.0.1:1"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("this machine's client, 8 cores")
    assert "nothing answers at http://127.0.0.1:1" in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--sessions", "2"], "--sessions 2: expected 3 or more"),
        (["--num-predict", "0"], "num_predict=0"),
        (["--url", "sim:?tpss=1"], "did you mean 'tps'?"),
        (["--url", FAST, "--model", "nope"], "model 'nope' is not on"),
        (["--concurrency", "2", "--rate", "3"], "exclude each other"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(capsys, arguments, text):
    assert main(["doctor", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert text in line


@pytest.mark.parametrize(
    "pace", [GeneratorSettings(tokens=50), GeneratorSettings(tokens=5, gap_s=0.002, first_s=0.002)]
)
def test_the_client_reads_all_that_the_generator_sends(pace):
    workload = Workload(model="generator", concurrency=4, requests=8, warmup=4, num_predict=pace.tokens)
    fired = doctor._fire_workload(workload, pace)
    assert [len(sample.chunk_ns) for sample in fired.samples] == [pace.tokens] * 12
    assert {sample.counters.eval_count for sample in fired.samples} == {pace.tokens}


def test_the_generator_knows_when_its_first_token_left():
    workload = Workload(model="generator", concurrency=2, requests=4, warmup=2, num_predict=3)
    fired = doctor._fire_workload(workload, GeneratorSettings(tokens=3, gap_s=0.002, first_s=0.01))
    assert all((sample.counters.prompt_eval_duration_ns or 0) >= 10_000_000 for sample in fired.samples)
    assert all(doctor._compute_ttft_error_s(sample) > 0 for sample in fired.samples)


def test_the_generator_ends_with_its_block():
    with start_generator(GeneratorSettings(tokens=1)) as url:
        port = int(url.rpartition(":")[2])
    import socket

    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
