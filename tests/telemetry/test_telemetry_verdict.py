"""What telemetry does to a verdict, a record and a report."""

from __future__ import annotations

import json

import pytest
from run_makers import one_after_another, run_of

from pytest_ollama_perf.analysis.epochs import compare_fingerprints
from pytest_ollama_perf.analysis.limits import parse_limit, parse_limit_option
from pytest_ollama_perf.analysis.thresholds import judge_contract
from pytest_ollama_perf.config import parse_margin
from pytest_ollama_perf.config.load_spec import build_load_spec
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.run import ClientStats, Fingerprint, GpuStats, HostStats, Telemetry
from pytest_ollama_perf.core.verdict import VerdictStatus
from pytest_ollama_perf.harness.evaluation import MeasuredLoad, TestResult
from pytest_ollama_perf.metrics.summary import summarise
from pytest_ollama_perf.report import facts
from pytest_ollama_perf.report.document import ReportMeta, build_report, parse_document
from pytest_ollama_perf.report.terminal import build_section
from pytest_ollama_perf.store.record import decode_run, encode_run

GIB = 2**30
H200 = GpuStats(
    name="NVIDIA H200",
    utilization=0.93,
    memory_bytes=18 * GIB,
    memory_total_bytes=140 * GIB,
    power_w=410.5,
    max_power_w=700.0,
    max_temperature_c=71.0,
    clock_mhz=1900.0,
    min_clock_mhz=1500.0,
    energy_j=440.0,
    throttled={"software power cap": 0.05},
)
READ = Telemetry(source="nvml", driver="570.86.15", readings=40, gpus=(H200,), memory_bytes=18 * GIB)


def run(telemetry=READ, count=20):
    return run_of(*one_after_another(count), telemetry=telemetry)


def judged(telemetry=READ, **words):
    made = run(telemetry)
    return judge_contract(made, summarise(made), [parse_limit_option(word, value) for word, value in words.items()])


def with_gpu(**fields):
    return Telemetry(source="nvml", readings=40, gpus=(GpuStats(name="NVIDIA H200", **fields),))


def test_numbers_read_beside_the_load_are_metrics_of_it():
    metrics = summarise(run()).metrics
    assert metrics["gpu_memory"].value == 18 * GIB
    assert metrics["gpu_temperature"].value == 71.0
    assert metrics["joules_per_token"].value == 440.0 / (20 * 11)


@pytest.mark.parametrize(
    ("words", "word", "reason"),
    [
        ({"max_gpu_memory": "20GiB"}, VerdictStatus.OK, "1 limit met over 20 requests"),
        ({"max_gpu_memory": "16GiB"}, VerdictStatus.BROKEN, "gpu_memory 18 GiB, limit <= 16 GiB: 12.5 % above"),
        ({"max_gpu_temperature": 71}, VerdictStatus.OK, "1 limit met over 20 requests"),
        ({"max_gpu_temperature": 70}, VerdictStatus.BROKEN, "gpu_temperature 71 °C, limit <= 70 °C: 1.43 % above"),
        ({"max_joules_per_token": 2}, VerdictStatus.OK, "1 limit met over 20 requests"),
        ({"max_joules_per_token": 1.6}, VerdictStatus.BROKEN, "joules_per_token 2 J, limit <= 1.6 J: 25 % above"),
    ],
)
def test_limits_hold_what_instruments_showed(words, word, reason):
    verdict = judged(**words)
    assert (verdict.status, verdict.reason) == (word, reason)


WORDS = {"max_gpu_memory": "999GiB", "max_gpu_temperature": 999, "max_joules_per_token": 999}


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(
    ("telemetry", "why"),
    [
        (None, "no GPU telemetry was collected for this load"),
        (Telemetry(missing="nvidia-ml-py is not installed"), "nvidia-ml-py is not installed"),
        (
            Telemetry(missing="GPU 0 stopped answering: GPU is lost", gpus=(H200,), memory_bytes=1),
            "GPU 0 stopped answering: GPU is lost",
        ),
        (Telemetry(source="nvml", gpus=(GpuStats(),)), "the GPU driver does not report it"),
    ],
)
def test_a_limit_without_telemetry_is_never_ok(word, telemetry, why):
    verdict = judged(telemetry, **{word: WORDS[word]})
    assert verdict.status is VerdictStatus.BROKEN
    assert verdict.reason == f"{word.removeprefix('max_')} was not measured: {why}"


@pytest.mark.parametrize(
    ("key", "text", "bound"),
    [
        ("gpu_memory", "<= 20GiB", 20 * GIB),
        ("gpu_memory", "<= 512 MiB", 512 * 2**20),
        ("gpu_memory", "<= 24GB", 24e9),
        ("gpu_temperature", "<= 85", 85.0),
        ("gpu_temperature", "<= 85°C", 85.0),
        ("joules_per_token", "<= 1.5 J", 1.5),
        ("joules_per_token", "<= 500 mJ", 0.5),
    ],
)
def test_limits_are_written_in_the_units_of_what_they_limit(key, text, bound):
    assert parse_limit(key, text).bound == bound


@pytest.mark.parametrize(
    ("word", "value", "why"),
    [
        ("max_gpu_memory", 20, "expected a text with a unit such as '20GiB'"),
        ("max_gpu_memory", "20", "gpu_memory needs a unit; valid: 'KiB', 'MiB', 'GiB'"),
        ("max_gpu_memory", "20G", "'G' is no unit of gpu_memory; valid: 'KiB'"),
        ("max_joules_per_token", "5 W", "'W' is no unit of joules_per_token; valid: 'J/token', 'J', 'mJ'"),
        ("max_gpu_temperature", "185F", "'F' is no unit of gpu_temperature"),
        ("max_gpu_temperature", True, "expected degrees Celsius, such as 85"),
        ("min_gpu_memory", "2GiB", "lower is better for gpu_memory; write max_gpu_memory"),
        ("max_p95_gpu_memory", "2GiB", "gpu_memory is one number per run; write max_gpu_memory"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(word, value, why):
    with pytest.raises(ConfigError) as raised:
        build_load_spec({"model": "m", word: value})
    assert why in str(raised.value)


def test_no_history_is_kept_of_what_is_read_beside_the_load():
    with pytest.raises(ConfigError, match="no history is kept of 'gpu_memory'"):
        parse_margin("gpu_memory=5%", "--ollama-margin")


@pytest.mark.parametrize(
    ("throttled", "word", "text"),
    [
        (
            {"hardware thermal slowdown": 0.4},
            VerdictStatus.INVALID,
            "GPU (NVIDIA H200) was slowed down in 40 % of the readings: hardware thermal slowdown, up to 91 °C",
        ),
        (
            {"hardware power brake": 0.1},
            VerdictStatus.INVALID,
            "GPU (NVIDIA H200) was slowed down in 10 % of the readings: hardware power brake, up to 700 W",
        ),
        (
            {"software thermal slowdown": 0.09},
            VerdictStatus.OK,
            "GPU (NVIDIA H200) was slowed down in 9 % of the readings: software thermal slowdown, up to 91 °C",
        ),
        (
            {"software power cap": 0.9},
            VerdictStatus.OK,
            "GPU (NVIDIA H200) was slowed down in 90 % of the readings: software power cap, up to 700 W",
        ),
    ],
)
def test_a_slow_down_is_named_and_spoils_where_it_is_no_ordinary_one(throttled, word, text):
    verdict = judged(with_gpu(throttled=throttled, max_temperature_c=91.0, max_power_w=700.0))
    assert verdict.status is word
    assert [(each.name, each.text) for each in verdict.problems] == [("GPU throttled", text)]


def test_a_gpu_that_touches_its_power_limit_now_and_then_is_no_problem():
    assert judged().problems == ()


def test_which_of_several_gpus_was_slowed_down_is_told():
    hot = GpuStats(throttled={"sync boost": 0.5})
    verdict = judged(Telemetry(source="nvml", gpus=(GpuStats(), hot)))
    assert verdict.problems[0].text == "GPU 1 was slowed down in 50 % of the readings: sync boost"


@pytest.mark.parametrize(
    ("telemetry", "named"),
    [
        (Telemetry(missing="nvidia-ml-py is not installed"), []),
        (Telemetry(source="nvml", missing="no NVIDIA GPU to be read: Driver Not Loaded"), []),
        (Telemetry(source="command", missing="the telemetry command ended by itself with 1"), ["telemetry incomplete"]),
        (Telemetry(source="nvml", missing="GPU 0 stopped answering", gpus=(H200,)), ["telemetry incomplete"]),
    ],
)
def test_missing_telemetry_is_told_where_it_was_asked_for_or_broke_off(telemetry, named):
    verdict = judged(telemetry)
    assert [problem.name for problem in verdict.problems] == named
    assert verdict.status is VerdictStatus.OK


def test_a_gpu_that_only_one_of_two_runs_could_read_is_no_other_gpu():
    known, unknown = Fingerprint(gpu="NVIDIA H200", driver="570"), Fingerprint()
    assert not any(change.separates for change in compare_fingerprints(unknown, known))
    assert not any(change.separates for change in compare_fingerprints(known, unknown))
    other = Fingerprint(gpu="NVIDIA L4", driver="570")
    assert [change.name for change in compare_fingerprints(known, other) if change.separates] == ["gpu"]


def test_a_record_brings_telemetry_back_and_takes_little_room():
    host = HostStats(cpu_share=0.1234, max_cpu_share=0.5, memory_bytes=2**37, memory_total_bytes=2**39)
    whole = Telemetry(
        source="nvml", driver="570.86.15", readings=120, gpus=(H200,) * 8, memory_bytes=8 * 18 * GIB, host=host
    )
    with_it, without = run(whole), run(None)
    with_it = with_it.__class__(**{**_fields(with_it), "watch": ClientStats(telemetry_cpu_share=0.00123)})
    back = decode_run(encode_run(with_it), "x")
    assert back.telemetry == whole
    assert back.watch.telemetry_cpu_share == 0.00123
    assert len(encode_run(run(READ))) - len(encode_run(without)) < 450


def _fields(made):
    return {name: getattr(made, name) for name in made.__struct_fields__}


def test_a_record_from_before_there_was_telemetry_is_read():
    assert decode_run(encode_run(run(None)), "x").telemetry is None


def result(*telemetry):
    loads = tuple(MeasuredLoad(made, summarise(made)) for made in map(run, telemetry))
    return TestResult("t.py::test_it", judged(), loads)


def test_the_terminal_says_in_one_line_what_the_gpu_did():
    lines = [line.text for line in build_section([result(READ)], verbosity=0)]
    assert "  GPU 93 % busy, GPU memory 18 GiB of 140 GiB, 410 W, 71 °C, 2 J a token" in lines


def test_of_several_runs_the_line_has_the_most():
    hotter = Telemetry(source="nvml", gpus=(GpuStats(utilization=0.5, max_temperature_c=80.0),))
    assert facts.describe_telemetry(result(READ, hotter).loads) == [
        "GPU 93 % busy",
        "GPU memory 18 GiB of 140 GiB",
        "410 W",
        "80 °C",
        "2 J a token",
    ]


@pytest.mark.parametrize("telemetry", [None, Telemetry(missing="nvidia-ml-py is not installed")])
def test_without_telemetry_the_terminal_says_nothing_of_it(telemetry):
    lines = [line.text for line in build_section([result(telemetry)], verbosity=0)]
    assert not any("GPU" in line or "nvidia" in line for line in lines)


def test_every_number_is_in_the_table_of_a_verbose_run():
    lines = [line.text for line in build_section([result(READ)], verbosity=1)]
    assert [line.split() for line in lines if line.startswith(("  gpu_", "  joules"))] == [
        ["gpu_memory", "GiB", "18"],
        ["gpu_temperature", "°C", "71"],
        ["joules_per_token", "J", "2"],
    ]


def test_the_json_report_has_telemetry_and_its_metrics():
    content = build_report([result(READ)], meta=ReportMeta(plugin_version="0", started_at=0.0))
    load = json.loads(content)["tests"][0]["loads"][0]
    assert load["telemetry"]["gpus"][0]["max_temperature_c"] == 71.0
    assert load["metrics"]["gpu_memory"]["unit"] == "B"
    assert load["metrics"]["joules_per_token"]["value"] == 2.0
    assert parse_document(content, "x").tests[0].loads[0].telemetry == READ
