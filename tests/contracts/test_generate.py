"""``pytest-ollama-perf init``: a contract written from measured values, kept by the server it was measured on."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from contract_runs import Contracts
from run_makers import one_after_another, run_of, slower

from pytest_ollama_perf.cli import main
from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.contracts.generate import MeasuredRuns, generate_contract
from pytest_ollama_perf.contracts.parse import parse_contract
from pytest_ollama_perf.core.run import Fingerprint, ModelState
from pytest_ollama_perf.metrics.summary import summarise
from pytest_ollama_perf.simulator.process import start_simulator
from pytest_ollama_perf.simulator.url import read_settings


def measured(*speeds: float, requests: int = 20, before: ModelState | None = None) -> MeasuredRuns:
    """Runs of ``requests`` that decode at ``speeds`` tokens/s each."""
    runs = tuple(
        run_of(
            *(slower(one, 110 / speed) for one in one_after_another(requests)),
            fingerprint=Fingerprint(server_version="0.32.15", model="tiny", quantization="F16"),
            before={"u": before or ModelState(loaded=True, size=10, size_vram=10)},
        )
        for speed in speeds
    )
    return MeasuredRuns({"concurrency": 1}, runs, tuple(map(summarise, runs)))


def written(*loads: MeasuredRuns) -> str:
    text = generate_contract("tiny", {"num_predict": 64}, loads)
    parse_contract(text, "c", settings=Settings(), folder=Path())
    return text


def bound(text: str, metric: str) -> float:
    found = re.search(rf"^{metric} = .*?[<>]= ([\d.]+)", text, re.MULTILINE)
    assert found
    return float(found[1])


def test_quiet_runs_get_the_usual_margin() -> None:
    text = written(measured(100.0, 100.0, 100.0))
    # 3 quiet runs, prior sd 2 % with 3 degrees: s = .02 sqrt(3/5), one more run at 99 %: t(5) 3.365 s sqrt(4/3) = 6 %
    assert 100 * math.exp(-3.365 * 0.02 * math.sqrt(3 / 5 * 4 / 3)) == pytest.approx(94.1, abs=0.1)
    assert bound(text, "tps") == 94.0
    assert '"regression <= 6%"' in text


def test_noisy_runs_get_limits_that_one_more_run_keeps() -> None:
    text = written(measured(100.0, 85.0, 115.0))
    # sd of the logarithms .151; s^2 = (3 x .02^2 + 2 x .151^2) / 5; one more run: t(5) 3.365 s sqrt(4/3) = .377
    assert bound(text, "tps") == 68.0
    assert '"regression' not in text.partition("tps =")[2].partition("\n")[0]
    assert "too noisy for a regression clause" in text


def test_a_percentile_is_limited_only_where_the_requests_can_settle_it() -> None:
    for requests, stat in ((20, "p50"), (29, "p90"), (59, "p95")):
        text = written(measured(100.0, 100.0, 100.0, requests=requests))
        assert re.search(rf'^ttft = \["{stat} <= ', text, re.MULTILINE)


@pytest.mark.parametrize(("vram", "said"), [(10, 'gpu_offload = "100%"'), (0, 'gpu_offload = "0%"'), (5, "")])
def test_what_must_be_as_it_was_is_required(vram: int, said: str) -> None:
    text = written(measured(100.0, 100.0, before=ModelState(loaded=True, size=10, size_vram=vram)))
    assert 'quantization = "F16"' in text
    assert ("gpu_offload" in text) is bool(said)
    assert said in text


def test_the_file_it_writes_passes_on_the_same_server(
    contracts: Contracts, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(contracts.path)
    # slow enough that a busy machine is no large part of it
    with start_simulator(
        read_settings({"slots": 2, "tps": 120, "prefill_tps": 200, "load_time": 0, "models": "tiny"})
    ) as running:
        check_written(contracts, running.url, capsys)


def check_written(contracts: Contracts, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["init", "--url", url, "--concurrency", "1", "2", "--requests", "4", "--num-predict", "12"]
    assert main(asked) == 0
    said = capsys.readouterr()
    name = "tiny-latest.ollama.toml"
    assert said.out == f"{name}: 2 loads, 14 clauses; check it: pytest {name} --ollama-url={url}\n"
    shown = [line for line in said.err.splitlines() if ", run " in line]
    assert [line.partition(":")[0] for line in shown] == [
        f"{place}, run {number} of 3" for place in ("concurrency 1", "concurrency 2") for number in (1, 2, 3)
    ]
    first = (contracts.path / name).read_text(encoding="utf-8")
    contracts.run(name, url=url).assert_outcomes(passed=14)
    assert main([*asked, "-o", name]) == 2
    assert "the file exists; overwrite it with --force" in capsys.readouterr().err
    assert (contracts.path / name).read_text(encoding="utf-8") == first
    assert main(["init", "--url", url, "--requests", "2", "--runs", "1", "-o", name, "--force"]) == 0
    assert (contracts.path / name).read_text(encoding="utf-8") != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x.toml"], "-o x.toml: pytest collects contracts by their name; give NAME.ollama.toml"),
        (["--runs", "0"], "--runs 0: expected 1 or more"),
        (["--concurrency", "2", "2"], "--concurrency 2 2: duplicate value"),
        (["--concurrency", "0"], "concurrency=0: expected a whole number from 1 to 2147483647"),
        (["--num-predict", "0"], "num_predict=0: expected a whole number from 1 to 2147483647"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_measured(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "--url", "http://127.0.0.1:9", *arguments]) == 2
    assert capsys.readouterr().err == f"pytest-ollama-perf: {message}\n"


def test_a_run_that_says_nothing_of_the_server_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.ollama.toml"
    failing = "sim:?tps=4000&load_time=0&models=tiny&fault=error:2@5"
    assert main(["init", "--url", failing, "--requests", "6", "--num-predict", "4", "-o", str(path)]) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert not path.exists()
