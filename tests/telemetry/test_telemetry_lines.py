"""What a telemetry command may print, and what is refused."""

from __future__ import annotations

import contextlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ollama_perf.telemetry.command import LineReader, UnreadableLineError
from pytest_ollama_perf.telemetry.readings import GpuReading, HostReading

HEADER = (
    "index, name, driver_version, utilization.gpu [%], memory.used [MiB], memory.total [MiB], power.draw [W], "
    "temperature.gpu, clocks.current.sm [MHz], clocks_event_reasons.active"
)
H200 = GpuReading(
    at_ns=5,
    gpu="1",
    name="NVIDIA H200",
    utilization=0.93,
    memory_bytes=18640 * 2**20,
    memory_total_bytes=143771 * 2**20,
    power_w=410.5,
    temperature_c=71.0,
    clock_mhz=1980.0,
    reasons=0x4,
)


def read(*lines):
    reader = LineReader()
    for line in lines[:-1]:
        reader.read(line, 5)
    return reader.read(lines[-1], 5)


@pytest.mark.parametrize(
    "line",
    [
        "1, NVIDIA H200, 570.86.15, 93 %, 18640 MiB, 143771 MiB, 410.50 W, 71, 1980 MHz, 0x0000000000000004",
        "1, NVIDIA H200, 570.86.15, 93, 18640, 143771, 410.50, 71, 1980, 0x0000000000000004",
    ],
    ids=["csv", "csv,nounits"],
)
def test_csv_of_nvidia_smi_is_read_with_and_without_units(line):
    reader = LineReader()
    assert reader.read(HEADER, 0) == (None, None)
    assert reader.read(line, 5) == (H200, None)
    assert reader.driver == "570.86.15"
    assert reader.read(HEADER, 6) == (None, None)


@pytest.mark.parametrize("cell", ["[N/A]", "[Not Supported]", "N/A", "[Unknown Error]", ""])
def test_what_the_driver_does_not_know_is_left_out(cell):
    found, _ = read("index, power.draw [W], temperature.gpu", f"0, {cell}, 50")
    assert found == GpuReading(at_ns=5, gpu="0", temperature_c=50.0)


def test_columns_that_nobody_needs_are_passed_over():
    found, _ = read("timestamp, pstate, power.draw [W]", "2026/11/20 22:00:00.000, P0, 100.00 W")
    assert found == GpuReading(at_ns=5, gpu="0", power_w=100.0)


def test_the_names_of_older_drivers_are_known():
    found, _ = read("uuid, clocks_throttle_reasons.active, clocks.sm [MHz]", "GPU-1, 0x40, 900 MHz")
    assert found == GpuReading(at_ns=5, gpu="GPU-1", reasons=0x40, clock_mhz=900.0)


def test_json_lines_name_their_units():
    line = {
        "gpu": 1,
        "name": "NVIDIA H200",
        "driver": "570.86.15",
        "utilization_percent": 93,
        "memory_used_bytes": 18640 * 2**20,
        "memory_total_bytes": 143771 * 2**20,
        "power_w": 410.5,
        "temperature_c": 71,
        "clock_mhz": 1980,
        "throttle_reasons": ["software power cap"],
        "fan": 30,
    }
    assert read(json.dumps(line)) == (H200, None)
    with_energy, _ = read(json.dumps({"energy_j": 12.5, "power_w": None}))
    assert with_energy == GpuReading(at_ns=5, gpu="0", energy_j=12.5)


def test_json_may_be_about_the_machine_alone():
    line = {"cpu_percent": 25, "host_memory_used_bytes": 3, "host_memory_total_bytes": 4}
    assert read(json.dumps(line)) == (None, HostReading(5, 0.25, 3, 4))


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (
            ["bash: nvidia-smi: command not found"],
            "'bash: nvidia-smi: command not found' is no JSON object and no header of",
        ),
        (["0, 93 %, 100 W"], "noheader leaves out what is needed"),
        (["index, name"], "no header of nvidia-smi"),
        ([HEADER, "1, NVIDIA H200"], "2 columns where the header has 10"),
        (["{"], "no JSON object"),
        (["{}"], "an object without any of utilization_percent, memory_used_bytes"),
        (['{"gpu": 0, "name": "x"}'], "an object without any of"),
        (['{"power_w": "lots"}'], "power_w is no number"),
        (['{"power_w": true}'], "power_w is no number"),
        (['{"power_w": -5}'], "power_w cannot be -5"),
        (['{"memory_used_bytes": 1e30}'], "memory_used_bytes cannot be 1e+30"),
        (['{"throttle_reasons": "hot"}'], "throttle_reasons is no list of texts"),
        (['{"throttle_reasons": ["sync bost"]}'], "no throttle reason 'sync bost'; did you mean 'sync boost'?"),
    ],
)
def test_what_cannot_be_read_is_named(lines, why):
    with pytest.raises(UnreadableLineError, match=re.escape(why)):
        read(*lines)


def test_readings_of_endless_gpus_are_refused():
    reader = LineReader()
    for index in range(64):
        reader.read(json.dumps({"gpu": index, "power_w": 1}), 0)
    with pytest.raises(UnreadableLineError, match="more than 64 different GPUs"):
        reader.read('{"gpu": 64, "power_w": 1}', 0)


def test_text_from_elsewhere_is_inert():
    found, _ = read('{"name": "\\u001b[2Jx", "power_w": 1}')
    assert "\x1b" not in found.name


@given(st.text(max_size=200), st.text(max_size=200))
def test_no_line_does_anything_but_say_or_be_refused(first, second):
    reader = LineReader()
    for line in (first, second, HEADER, second):
        with contextlib.suppress(UnreadableLineError):
            gpu, host = reader.read(line, 0)
            assert gpu is None or isinstance(gpu, GpuReading)
            assert host is None or isinstance(host, HostReading)
