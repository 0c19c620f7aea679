"""What is read of NVIDIA's driver, and what happens where it does not tell."""

from __future__ import annotations

import pytest
from fake_nvml import TEXTS, USUAL, FakeNvml

from pytest_ollama_perf.telemetry.nvml import _LOST_CODES, _UNSUPPORTED_CODES, MISSING_EXTRA, NvmlGpus
from pytest_ollama_perf.telemetry.readings import THROTTLE_REASONS, GpuReading


def test_a_reading_is_in_plain_units():
    gpus = NvmlGpus(FakeNvml())
    assert list(gpus.read(7)) == [
        GpuReading(
            at_ns=7,
            gpu="0",
            name="NVIDIA H200",
            utilization=0.93,
            memory_bytes=18 * 2**30,
            memory_total_bytes=24 * 2**30,
            power_w=410.5,
            temperature_c=71,
            clock_mhz=1980,
            energy_j=5000.0,
            reasons=4,
        )
    ]
    assert (gpus.driver, gpus.missing) == ("570.86.15", "")


def test_without_the_extra_one_line_says_what_to_install():
    gpus = NvmlGpus(None)
    assert not gpus
    assert list(gpus.read(0)) == []
    assert gpus.missing == MISSING_EXTRA == "nvidia-ml-py is not installed: pip install 'pytest-ollama-perf[gpu]'"


@pytest.mark.parametrize("code", [9, 12])
def test_without_a_driver_there_is_nothing_to_read_and_nothing_fails(code):
    gpus = NvmlGpus(FakeNvml(errors={"nvmlInit": code}))
    assert list(gpus.read(0)) == []
    assert gpus.missing == f"no NVIDIA GPU to be read: {TEXTS[code]}"
    gpus.close()


def test_a_driver_without_a_gpu_says_so():
    assert NvmlGpus(FakeNvml(gpus=0)).missing == "no NVIDIA GPU to be read: the driver shows none"


def test_a_package_that_only_has_the_name_is_no_driver():
    class Other:
        NVMLError = OSError

    assert NvmlGpus(Other()).missing.startswith("no NVIDIA GPU to be read: AttributeError")


@pytest.mark.parametrize("code", [3, 13])
def test_what_is_not_supported_is_asked_once_and_left_out(code):
    nvml = FakeNvml(errors={"nvmlDeviceGetUtilizationRates": code, "nvmlDeviceGetTotalEnergyConsumption": code})
    gpus = NvmlGpus(nvml)
    readings = [reading for at_ns in (1, 2, 3) for reading in gpus.read(at_ns)]
    assert [(one.utilization, one.energy_j, one.power_w) for one in readings] == [(None, None, 410.5)] * 3
    assert [name for name, *_ in nvml.asked].count("nvmlDeviceGetUtilizationRates") == 1
    assert gpus.missing == ""


def test_a_driver_that_was_only_busy_is_asked_again():
    nvml = FakeNvml(errors={"nvmlDeviceGetPowerUsage": 10})
    gpus = NvmlGpus(nvml)
    assert next(iter(gpus.read(1))).power_w is None
    nvml.errors.clear()
    assert next(iter(gpus.read(2))).power_w == 410.5


def test_the_older_name_of_the_reasons_serves_where_the_newer_is_missing():
    for nvml in (
        FakeNvml(missing=("nvmlDeviceGetCurrentClocksEventReasons",), nvmlDeviceGetCurrentClocksThrottleReasons=0x40),
        FakeNvml(errors={"nvmlDeviceGetCurrentClocksEventReasons": 13}, nvmlDeviceGetCurrentClocksThrottleReasons=0x40),
    ):
        assert next(iter(NvmlGpus(nvml).read(0))).reasons == 0x40


def test_a_gpu_that_is_lost_ends_its_readings_and_not_those_of_the_other():
    nvml = FakeNvml(gpus=2)
    gpus = NvmlGpus(nvml)
    assert [one.gpu for one in gpus.read(1)] == ["0", "1"]
    nvml.errors["nvmlDeviceGetMemoryInfo", 1] = 15
    assert [one.gpu for one in gpus.read(2)] == ["0"]
    assert [one.gpu for one in gpus.read(3)] == ["0"]
    assert gpus.missing == "GPU 1 stopped answering: GPU is lost"


def test_the_driver_is_let_go_of_once():
    nvml = FakeNvml()
    gpus = NvmlGpus(nvml)
    gpus.close()
    gpus.close()
    assert nvml.open == 0
    assert not gpus


def test_a_driver_that_cannot_be_let_go_of_is_no_failure():
    NvmlGpus(FakeNvml(errors={"nvmlShutdown": 9})).close()


def test_names_and_codes_are_those_of_nvidias_package():
    pynvml = pytest.importorskip("pynvml")
    functions = {*USUAL, "nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlInit", "nvmlShutdown", "nvmlDeviceGetName"}
    assert all(callable(getattr(pynvml, name)) for name in functions)
    never = "NOT_SUPPORTED NO_PERMISSION FUNCTION_NOT_FOUND ARGUMENT_VERSION_MISMATCH DEPRECATED"
    lost = "UNINITIALIZED DRIVER_NOT_LOADED GPU_IS_LOST RESET_REQUIRED GPU_NOT_FOUND"
    assert {getattr(pynvml, f"NVML_ERROR_{name}") for name in never.split()} == _UNSUPPORTED_CODES
    assert {getattr(pynvml, f"NVML_ERROR_{name}") for name in lost.split()} == _LOST_CODES
    words = "SwPowerCap HwSlowdown SyncBoost SwThermalSlowdown HwThermalSlowdown HwPowerBrakeSlowdown"
    assert [getattr(pynvml, f"nvmlClocksEventReason{word}") for word in words.split()] == list(
        THROTTLE_REASONS.values()
    )
    assert pynvml.NVMLError(15).value == 15


def test_nvidias_own_package_gives_gpus_or_one_line():
    gpus = NvmlGpus(pytest.importorskip("pynvml"))
    assert bool(gpus) == (gpus.missing == "")
    assert "\n" not in gpus.missing
    gpus.close()
