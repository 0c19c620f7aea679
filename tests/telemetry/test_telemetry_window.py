"""A log of readings becomes the numbers of the measured window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ollama_perf.core.run import GpuStats, HostStats
from pytest_ollama_perf.telemetry import readings
from pytest_ollama_perf.telemetry.readings import (
    THROTTLE_REASONS,
    GpuReading,
    HostReading,
    TelemetryLog,
    compute_energy_j,
    summarize_log,
)

S = 1_000_000_000


def gpu(at_s, gpu="0", **fields):
    return GpuReading(at_ns=round(at_s * S), gpu=gpu, **fields)


def window(begin_s, end_s):
    return round(begin_s * S), round(end_s * S)


def test_numbers_are_those_of_the_window_and_of_the_readings_next_to_it():
    temperatures = [90, 60, 70, 75, 65, 95]
    log = TelemetryLog(gpus=[gpu(second, temperature_c=value) for second, value in enumerate(temperatures)])
    assert summarize_log(log, window(2, 3)).gpus[0].max_temperature_c == 75
    assert summarize_log(log, window(1.5, 4.5)).gpus[0].max_temperature_c == 95
    assert summarize_log(log, window(2.5, 2.6)).readings == 2


def test_means_and_extremes_of_one_gpu():
    rows = [(0.5, 10, 300.0, 60, 1500), (1.0, 30, 400.0, 70, 1900), (0.9, 20, 200.0, 65, 1700)]
    log = TelemetryLog(
        source="nvml",
        driver="570",
        gpus=[
            gpu(
                at,
                name="H200",
                utilization=u,
                memory_bytes=m,
                memory_total_bytes=99,
                power_w=w,
                temperature_c=t,
                clock_mhz=c,
            )
            for at, (u, m, w, t, c) in enumerate(rows)
        ],
    )
    found = summarize_log(log, window(0, 2))
    assert found.gpus == (
        GpuStats(
            name="H200",
            utilization=0.8,
            memory_bytes=30,
            memory_total_bytes=99,
            power_w=300.0,
            max_power_w=400.0,
            max_temperature_c=70.0,
            clock_mhz=1700.0,
            min_clock_mhz=1500.0,
            energy_j=650.0,
        ),
    )
    assert (found.source, found.driver, found.is_complete) == ("nvml", "570", True)


def test_what_the_driver_does_not_tell_stays_unknown():
    found = summarize_log(TelemetryLog(gpus=[gpu(0), gpu(1)]), window(0, 1)).gpus[0]
    assert found == GpuStats()


def test_memory_counts_what_all_gpus_hold_at_one_time():
    log = TelemetryLog(gpus=[gpu(0, "a", memory_bytes=10), gpu(0, "b", memory_bytes=1)])
    log.gpus += [gpu(1, "a", memory_bytes=2), gpu(1, "b", memory_bytes=9)]
    found = summarize_log(log, window(0, 1))
    assert found.memory_bytes == 11
    assert [one.memory_bytes for one in found.gpus] == [10, 9]


def test_energy_is_the_counters_difference_between_the_readings_around_the_window():
    counter = [gpu(at, energy_j=100.0 + 50 * at) for at in range(5)]
    assert compute_energy_j(counter, window(1.5, 3.5)) == pytest.approx(100.0)
    assert compute_energy_j(counter, window(-1, 6)) == pytest.approx(350.0)


def test_energy_of_a_counter_that_began_again_comes_from_power():
    readings = [gpu(0, energy_j=500.0, power_w=10.0), gpu(1, energy_j=3.0, power_w=10.0)]
    assert compute_energy_j(readings, window(0, 1)) == pytest.approx(10.0)


def test_energy_of_one_reading_is_power_times_time_and_of_none_unknown():
    assert compute_energy_j([gpu(0, power_w=300.0)], window(0, 2)) == 600.0
    assert compute_energy_j([gpu(0)], window(0, 2)) is None
    assert compute_energy_j([gpu(0, energy_j=5.0)], window(0, 2)) is None


@given(st.lists(st.floats(0, 700), min_size=2, max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_energy_lies_between_least_and_most_power(powers, one, other):
    end = len(powers) - 1
    begin_s, end_s = sorted((one * end, other * end))
    found = compute_energy_j([gpu(at, power_w=power) for at, power in enumerate(powers)], window(begin_s, end_s))
    took = (round(end_s * S) - round(begin_s * S)) / S
    assert min(powers) * took - 1e-6 <= found <= max(powers) * took + 1e-6


@given(st.lists(st.floats(0, 700), min_size=3, max_size=20))
def test_energy_of_two_halves_is_that_of_the_whole(powers):
    readings = [gpu(at, power_w=power) for at, power in enumerate(powers)]
    end = len(powers) - 1
    halves = compute_energy_j(readings, window(0, end / 2)) + compute_energy_j(readings, window(end / 2, end))
    assert halves == pytest.approx(compute_energy_j(readings, window(0, end)))


def test_several_gpus_have_one_energy_only_if_all_tell():
    log = TelemetryLog(gpus=[gpu(0, "a", power_w=100.0), gpu(0, "b", power_w=50.0)])
    assert summarize_log(log, window(0, 1)).energy_j == 150.0
    log.gpus[1] = gpu(0, "b")
    assert summarize_log(log, window(0, 1)).energy_j is None


def test_slow_downs_count_inside_the_window_alone_and_name_their_cause():
    thermal, slow, power = (
        THROTTLE_REASONS[name] for name in ("hardware thermal slowdown", "hardware slowdown", "software power cap")
    )
    masks = [thermal, thermal | slow, power, 1, 0, thermal]
    log = TelemetryLog(gpus=[gpu(at, reasons=mask) for at, mask in enumerate(masks)])
    assert summarize_log(log, window(1, 4)).gpus[0].throttled == {
        "software power cap": 0.25,
        "hardware thermal slowdown": 0.25,
    }


def test_an_idle_gpu_and_clocks_that_a_person_set_are_no_slow_down():
    assert summarize_log(TelemetryLog(gpus=[gpu(0, reasons=0x1 | 0x2 | 0x100)]), window(0, 1)).gpus[0].throttled == {}


@pytest.mark.parametrize(("first", "last"), [(0, 20), (35, 100), (20, 60)])
def test_readings_of_part_of_the_window_are_no_telemetry_of_it(first, last):
    found = summarize_log(TelemetryLog(gpus=[gpu(first, power_w=1.0), gpu(last, power_w=1.0)]), window(0, 100))
    assert not found.is_complete
    assert found.missing == f"the readings of GPU 0 cover only {last - first} s of 100 s"


def test_a_reading_a_second_covers_a_short_load():
    assert summarize_log(TelemetryLog(gpus=[gpu(0.9, power_w=1.0)]), window(0, 2)).is_complete


def test_why_there_are_none_goes_before_what_is_not_covered():
    found = summarize_log(TelemetryLog(missing="GPU 0 stopped answering: GPU is lost", gpus=[gpu(0)]), window(0, 100))
    assert found.missing == "GPU 0 stopped answering: GPU is lost"


def test_the_machine_is_kept_beside_the_gpus():
    log = TelemetryLog(
        missing="no GPU", host=[HostReading(0, None, 5, 10), HostReading(S, 0.5, 7, 10), HostReading(2 * S, 0.7, 6, 10)]
    )
    found = summarize_log(log, window(0, 2))
    assert found.host == HostStats(cpu_share=0.6, max_cpu_share=0.7, memory_bytes=7, memory_total_bytes=10)
    assert summarize_log(TelemetryLog(), window(0, 2)).host is None


def test_a_log_of_hours_keeps_every_gpu_and_a_bounded_memory(monkeypatch):
    monkeypatch.setattr(readings, "MAX_READINGS", 8)
    log = TelemetryLog(gpus=[gpu(at, name) for at in range(4) for name in "ab"])
    assert not log.thin()
    log.gpus.append(gpu(4, "a"))
    assert log.thin()
    assert [(one.at_ns // S, one.gpu) for one in log.gpus] == [(0, "a"), (0, "b"), (2, "a"), (2, "b"), (4, "a")]
