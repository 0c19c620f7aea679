"""Telemetry from a server on this machine to a run, and from a command to the verdict on a test."""

from __future__ import annotations

import sys

import pytest
from fake_nvml import FakeNvml

from pytest_ollama_perf import telemetry
from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.harness import Harness
from pytest_ollama_perf.simulator.process import start_simulator
from pytest_ollama_perf.simulator.url import read_settings

WORDS = {"slots": 2, "tps": 4000, "prefill_tps": 100_000, "load_time": 0, "overhead": 0, "models": "llama3.2:3b,tiny"}
LOAD = Workload(model="llama3.2:3b", requests=4, num_predict=8)


@pytest.fixture(scope="module")
def url():
    with start_simulator(read_settings(WORDS)) as running:
        yield running.url


class Silent:
    def __init__(self, stop=False):
        self.stop = stop
        self.messages = []

    def begin(self, model, duration_s=None, *, captions=()): ...

    def show_message(self, text, *, time=""):
        self.messages.append(f"{text} {time}".rstrip())

    def update(self, progress):
        if self.stop:
            raise KeyboardInterrupt


@pytest.fixture
def bench(url, tmp_path, monkeypatch):
    opened = []

    def make(nvml=None, **settings):
        monkeypatch.setattr(telemetry, "import_nvml", lambda: nvml)
        opened.append(Harness(Settings(urls=(url,), **settings), root=tmp_path))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def test_a_server_on_this_machine_is_read_and_its_gpu_is_part_of_the_fingerprint(bench):
    nvml = FakeNvml(gpus=2)
    used = bench(nvml)
    run = used.measure(LOAD, listener=Silent())
    assert [gpu.name for gpu in run.telemetry.gpus] == ["NVIDIA H200"] * 2
    assert run.telemetry.memory_bytes == 36 * 2**30
    assert run.telemetry.is_complete
    assert (run.fingerprint.gpu, run.fingerprint.driver) == ("2 x NVIDIA H200", "570.86.15")
    assert run.watch.telemetry_cpu_share > 0
    used.close()
    assert nvml.open == 0


def test_a_cold_load_knows_its_gpu_too(bench):
    run = bench(FakeNvml()).measure(Workload(model="llama3.2:3b", requests=1, warmup=0, cold=True), listener=Silent())
    assert run.fingerprint.gpu == "NVIDIA H200"


def test_a_model_that_runs_on_the_cpu_is_told_by_no_gpu(bench):
    run = bench(FakeNvml()).measure(Workload(model="tiny", requests=1, num_predict=8), listener=Silent())
    assert run.fingerprint.vram_share == 0
    assert (run.fingerprint.gpu, run.fingerprint.driver) == ("", "")


@pytest.mark.parametrize("nvml", [None, FakeNvml(errors={"nvmlInit": 9})], ids=["no extra", "no driver"])
def test_without_a_gpu_the_load_is_measured_all_the_same(bench, nvml):
    onlooker = Silent()
    run = bench(nvml).measure(LOAD, listener=onlooker)
    assert len(run.measured) == 4
    assert run.telemetry.gpus == ()
    assert run.telemetry.missing
    assert (run.fingerprint.gpu, run.fingerprint.driver) == ("", "")
    assert not any("telemetry" in message for message in onlooker.messages)


def test_an_interrupted_load_keeps_what_was_read(bench):
    used = bench(FakeNvml())
    with pytest.raises(KeyboardInterrupt):
        used.measure(LOAD, listener=Silent(stop=True))
    assert used.partial_run.telemetry.gpus[0].name == "NVIDIA H200"


SMI = """
import time
print("index, name, memory.used [MiB], power.draw [W], clocks_event_reasons.active")
while True:
    print("0, NVIDIA H200, 18432 MiB, 400 W, 0x0000000000000000", flush=True)
    time.sleep(0.05)
"""

TESTS = """
import pytest

@pytest.mark.ollama_load(model="tiny", requests=4, num_predict=8, max_gpu_memory="20GiB", max_joules_per_token=1e6)
def test_kept(ollama_load):
    assert ollama_load.gpu_memory == 18 * 2**30
    assert ollama_load.joules_per_token > 0

@pytest.mark.ollama_load(model="tiny", requests=4, num_predict=8, limits={"gpu_memory": "<= 16GiB"})
def test_broken():
    pass

@pytest.mark.ollama_load(model="tiny", requests=4, num_predict=8, max_gpu_temperature=90)
def test_unknown():
    pass
"""


def session(pytester, url, *options):
    plugin = ("-p", "pytest_ollama_perf.plugin")
    return pytester.runpytest_subprocess(*plugin, f"--ollama-url={url}", "-p", "no:randomly", *options)


def test_a_command_feeds_limits_and_report(pytester, url, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    smi = pytester.makefile(".txt", smi=SMI)
    pytester.makepyfile(test_it=TESTS)
    result = session(pytester, url, f"--ollama-telemetry='{sys.executable}' '{smi}'")
    result.assert_outcomes(passed=1, failed=2)
    out = result.stdout.str()
    assert "gpu_memory 18 GiB, limit <= 16 GiB: 12.5 % above" in out
    assert "gpu_temperature was not measured: the GPU driver does not report it" in out
    assert "  GPU memory 18 GiB, 400 W, " in out


def test_a_command_that_cannot_be_one_is_refused_before_the_first_test(pytester, url, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(test_it=TESTS)
    result = session(pytester, url, "--ollama-telemetry=ssh 'box")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --ollama-telemetry: cannot be split into words*check its quotes"])
