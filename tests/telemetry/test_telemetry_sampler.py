"""The thread that reads beside a load: before it, during it, after it, and never in its way."""

from __future__ import annotations

import sys
import threading
from itertools import pairwise

import pytest
from fake_nvml import FakeNvml

from pytest_ollama_perf import telemetry
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.telemetry import (
    HostMeter,
    LocalSampler,
    TelemetryProvider,
    command,
    is_local_host,
    make_host_meter,
    read_cpu_times,
    read_memory,
)
from pytest_ollama_perf.telemetry.command import CommandMeter, parse_command
from pytest_ollama_perf.telemetry.nvml import MISSING_EXTRA, NvmlGpus
from pytest_ollama_perf.telemetry.readings import HostReading


def sampled(gpus, during=lambda: None, machine=None):
    with LocalSampler(gpus, machine).record() as log:
        during()
    return log


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "ollama-perf-telemetry"]


def test_a_load_shorter_than_a_moment_lies_between_two_readings():
    log = sampled(NvmlGpus(FakeNvml()))
    assert len(log.gpus) == 2
    assert log.gpus[0].at_ns < log.gpus[1].at_ns
    assert (log.source, log.driver, log.missing) == ("nvml", "570.86.15", "")
    assert not threads()


def test_readings_are_taken_while_the_load_runs(monkeypatch):
    monkeypatch.setattr(telemetry, "SAMPLE_INTERVAL_S", 0.001)
    gpus, enough = NvmlGpus(nvml := FakeNvml()), threading.Event()
    nvml.answers["nvmlDeviceGetPowerUsage"] = lambda handle: enough.set() if len(nvml.asked) > 50 else 1000
    log = sampled(gpus, lambda: enough.wait(10))
    assert len(log.gpus) > 5
    assert all(before.at_ns < after.at_ns for before, after in pairwise(log.gpus))
    assert 0 < log.cpu_share < 1


def test_a_slow_driver_is_asked_more_rarely():
    now = [0]
    nvml = FakeNvml()

    def slow(handle):
        now[0] += 100_000_000
        return 1000

    nvml.answers["nvmlDeviceGetPowerUsage"] = slow
    reader, waited = LocalSampler(NvmlGpus(nvml), None, clock=lambda: now[0]), []
    reader._run_loop(lambda seconds: waited.append(seconds) or len(waited) > 3)
    assert waited == pytest.approx([0.5, 5.0, 5.0, 5.0])


def test_a_gpu_lost_during_the_load_is_told_afterwards():
    nvml = FakeNvml()
    log = sampled(NvmlGpus(nvml), lambda: nvml.errors.update(nvmlDeviceGetMemoryInfo=15))
    assert len(log.gpus) == 1
    assert log.missing == "GPU 0 stopped answering: GPU is lost"


def test_a_load_that_fails_leaves_no_thread():
    with pytest.raises(KeyboardInterrupt):
        sampled(NvmlGpus(FakeNvml()), lambda: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert not threads()


def test_a_driver_that_hangs_does_not_hold_the_load(monkeypatch):
    monkeypatch.setattr(telemetry, "SAMPLE_INTERVAL_S", 0.001)
    monkeypatch.setattr(telemetry, "_STOP_TIMEOUT_S", 0.01)
    hanging, free, nvml = threading.Event(), threading.Event(), FakeNvml()

    def hang(handle):
        if threading.current_thread() is not threading.main_thread():
            hanging.set()
            free.wait(10)
        return 1000

    nvml.answers["nvmlDeviceGetPowerUsage"] = hang
    log = sampled(NvmlGpus(nvml), lambda: hanging.wait(10))
    assert log.missing == "the driver did not answer any more"
    free.set()
    for thread in threads():
        thread.join(10)


def test_the_machine_is_read_where_there_is_no_gpu():
    log = sampled(NvmlGpus(None), machine=HostMeter(iter([(1.0, 10.0), (4.0, 20.0)]).__next__, lambda: (5, 9)))
    assert [one[1:] for one in log.host] == [(None, 5, 9), (0.3, 5, 9)]
    assert log.missing == MISSING_EXTRA


def test_proc_is_read_as_its_manual_says(tmp_path):
    stat, meminfo = tmp_path / "stat", tmp_path / "meminfo"
    stat.write_text("cpu  10 20 30 400 50 6 7 8 999 999\ncpu0 1 1 1 1\n")
    meminfo.write_text("MemTotal:       2048 kB\nMemFree:  1 kB\nMemAvailable:   512 kB\n")
    assert read_cpu_times(stat) == (81.0, 531.0)
    assert read_memory(meminfo) == (1536 * 1024, 2048 * 1024)
    assert make_host_meter(tmp_path).read(1) == HostReading(1, None, 1536 * 1024, 2048 * 1024)


def test_a_machine_that_cannot_be_read_is_unknown_and_no_failure(tmp_path):
    def broken():
        raise OSError

    assert HostMeter(broken, broken).read(3) == HostReading(3)
    (tmp_path / "stat").write_text("nonsense")
    (tmp_path / "meminfo").write_text("nonsense")
    assert make_host_meter(tmp_path).read(3) == HostReading(3)


def test_without_proc_psutil_is_asked(tmp_path):
    pytest.importorskip("psutil")
    found = make_host_meter(tmp_path).read(0)
    assert 0 < found.memory_bytes < found.memory_total_bytes


def test_without_proc_and_psutil_there_is_no_machine(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert make_host_meter(tmp_path) is None


# Commands.


def script(code):
    return CommandMeter((sys.executable, "-u", "-c", code))


FOREVER = "import time\nprint('{\"power_w\": 100}')\ntime.sleep(60)"


def followed(code, during=lambda: None):
    with script(code).record() as log:
        during()
    return log


def test_a_command_is_read_from_its_first_reading_on_and_ended_with_the_load():
    log = followed(FOREVER)
    assert [one.power_w for one in log.gpus] == [100.0]
    assert (log.source, log.missing) == ("command", "")
    assert not threads()


def test_a_command_that_ignores_its_end_is_killed(monkeypatch):
    monkeypatch.setattr(command, "_STOP_TIMEOUT_S", 0.05)
    log = followed(f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{FOREVER}")
    assert len(log.gpus) == 1


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (
            "raise SystemExit('ssh: no route to host')",
            "the telemetry command ended by itself with 1: ssh: no route to host",
        ),
        ("print('what?')", "the telemetry command printed what cannot be read: 'what?' is no JSON object"),
        ("print('x' * 20000)", "the telemetry command printed what cannot be read: a line of more than 16384 bytes"),
    ],
)
def test_what_is_wrong_with_a_command_is_told_and_stops_nothing(code, why):
    log = followed(code, lambda: [thread.join(10) for thread in threads()])
    assert log.missing.startswith(why)
    assert not log.gpus


def test_a_command_that_floods_is_read_no_further():
    log = followed("while True: print('{\"power_w\": 1}')", lambda: threads()[0].join(10))
    assert log.missing == "the telemetry command printed what cannot be read: more than 200 lines a second"
    assert len(log.gpus) < 20_000


def test_complaints_of_any_length_do_not_stop_a_command():
    log = followed(f"import sys\nsys.stderr.write('x' * 500_000)\n{FOREVER}")
    assert len(log.gpus) == 1


def test_a_command_that_says_nothing_of_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(command, "FIRST_READING_TIMEOUT_S", 0.01)
    assert followed("import time; time.sleep(60)").missing == "the telemetry command printed no reading of a GPU"


def test_a_command_that_does_not_exist_is_told():
    with CommandMeter(("no-such-command-here",)).record() as log:
        pass
    assert log.missing == "the telemetry command cannot be started: No such file or directory"


def test_a_command_runs_without_a_shell():
    assert parse_command("ssh 'gpu box' nvidia-smi $(boom) | x", "F") == (
        "ssh",
        "gpu box",
        "nvidia-smi",
        "$(boom)",
        "|",
        "x",
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ssh 'gpu", "--ollama-telemetry: cannot be split into words (No closing quotation); check its quotes"),
        ("''", "--ollama-telemetry is empty; give a command that prints readings, or 'off'"),
    ],
)
def test_a_command_that_is_none_is_refused(text, why):
    with pytest.raises(ConfigError) as raised:
        TelemetryProvider(text)
    assert str(raised.value) == why


# Which telemetry belongs to a load.


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("localhost", True),
        ("LOCALHOST.", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("gpu-box", False),
        ("localhost.example.org", False),
        ("::ffff:10.0.0.1", False),
    ],
)
def test_only_a_loopback_address_is_this_machine(host, here):
    assert is_local_host(host) is here


def missing(asked=None, hosts=("127.0.0.1",), *, simulated=False):
    with TelemetryProvider(asked).select_meter(hosts, simulated=simulated).record() as log:
        pass
    return log.missing


def test_why_nothing_is_read():
    assert missing("off") == "telemetry is switched off (--ollama-telemetry=off)"
    assert missing(simulated=True) == "a simulator has no GPU"
    elsewhere = "the server is not on this machine; give --ollama-telemetry a command that reads it"
    assert missing(hosts=("127.0.0.1", "gpu-box")) == elsewhere


def test_a_command_is_asked_wherever_the_server_is():
    assert missing("no-such-command-here", ("gpu-box",), simulated=True).startswith("the telemetry command cannot be")


def test_the_driver_is_opened_once_and_only_for_a_server_on_this_machine(monkeypatch):
    nvml, opened = FakeNvml(), []
    monkeypatch.setattr(telemetry, "import_nvml", lambda: opened.append(1) or nvml)
    meters = TelemetryProvider(None)
    meters.select_meter(["gpu-box"], simulated=False)
    assert not opened
    for _ in range(2):
        with meters.select_meter(["127.0.0.1"], simulated=False).record() as log:
            pass
        assert log.gpus
    assert (len(opened), nvml.open) == (1, 1)
    meters.close()
    assert nvml.open == 0
