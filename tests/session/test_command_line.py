"""The options as pytest shows them, and that each does something, from the command line and from the ini file."""

from __future__ import annotations

import pytest

from pytest_ollama_perf.config import OPTIONS
from pytest_ollama_perf.config.markers import MARKERS

MARKER = """\
@pytest.mark.ollama_load(concurrency=4, min_tps=150): run a load and check its results.
    The load runs before the body of the test; a broken limit fails the test.
    Inner markers override outer ones per argument; parametrized values of the
    same name apply too. Limits: min_tps, min_throughput, min_qps,
    max_<stat>_<metric> such as max_p95_latency=2.5 (seconds), max_error_rate
    (default: 0).
    - model: model to test (default: --ollama-model, or the only model on the
      server)
"""


def shown(perf, option: str) -> str:
    return perf.run(option).out + "\n"


def test_help_has_every_option_within_eighty_columns(perf) -> None:
    text = shown(perf, "--help")
    own = text[text.index("performance of models served by Ollama:") :].partition("\n\n")[0]
    for option in OPTIONS:
        written = f"{option.flag}={option.metavar}" if option.metavar else option.flag
        assert f"\n  {written}" in own
        assert _join(option.help.replace("%%", "%")) in _join(own), option.name
    assert [line for line in own.splitlines() if len(line) > 80] == []


def _join(text: str) -> str:
    """Return the text without spaces: help is wrapped, also inside long words."""
    return "".join(text.split())


def test_help_has_every_option_as_an_ini_key_of_the_right_type(perf) -> None:
    text = shown(perf, "--help")
    assert [option.key for option in OPTIONS if f"\n  {option.key} ({option.ini_type}):" not in text] == []


def test_markers_read_well_at_eighty_columns(perf) -> None:
    text = shown(perf, "--markers")
    assert MARKER in text
    help_lines = [line for line in text[text.index("@pytest.mark.ollama_load(") :].splitlines() if line[:4] == "    "]
    assert [line for line in help_lines if len(line) > 80 and line[4] in "- "] == []


def test_markers_explain_every_argument_that_is_no_limit(perf) -> None:
    text = shown(perf, "--markers")
    for marker in MARKERS.values():
        part = text.partition(f"@pytest.mark.{marker.name}(")[2].partition("\n\n")[0]
        names = marker.own_options or {**marker.load_options, **marker.judging_options}
        assert [name for name in names if f"\n    - {name}: " not in part] == []


def test_fixtures_read_well_at_eighty_columns(perf) -> None:
    text = shown(perf, "--fixtures").partition("fixtures defined from pytest_ollama_perf.plugin")[2]
    named = [line.partition(" -- ")[0] for line in text.splitlines() if " -- " in line]
    assert [name for name in named if name.startswith("ollama")] == named[: len(named)]
    for name in ("ollama", "ollama_load", "ollama_url [session scope]", "ollama_simulator"):
        assert name in named
    assert [line for line in text.splitlines() if line.startswith("    ") and len(line) > 80] == []
    assert "no docstring available" not in text


LOAD = "requests=20, warmup=0, num_predict=4"
MODEL = f"@pytest.mark.ollama_load(model='tiny', {LOAD})\ndef test_it():\n    pass"


def fingerprint(found) -> dict:
    return found.report["tests"][0]["loads"][0]["fingerprint"]


def ini(*lines: str) -> str:
    return "[pytest]\n" + "\n".join(lines)


def test_an_undecided_limit_passes_unless_asked_to_be_strict(perf) -> None:
    perf.write(f"@pytest.mark.ollama_load(model='tiny', {LOAD}, max_p99_ttft=60)\ndef test_it():\n    pass")
    assert perf.run().counts == {"passed": 1}
    found = perf.run("--ollama-strict")
    assert found.counts == {"failed": 1}
    assert [test["verdict"] for test in found.report["tests"]] == ["unsure"]
    perf.write("", pytest=ini("ollama_strict = true"))
    perf.write(f"@pytest.mark.ollama_load(model='tiny', {LOAD}, max_p99_ttft=60)\ndef test_it():\n    pass")
    assert perf.run().counts == {"failed": 1}


def test_only_save_adds_to_the_history_and_to_the_place_that_was_named(perf) -> None:
    perf.write(MODEL)
    perf.run()
    assert not (perf.path / ".ollama-perf").exists()
    perf.run("--ollama-save")
    assert list((perf.path / ".ollama-perf").rglob("*.json*"))
    perf.run("--ollama-save", "--ollama-store=elsewhere")
    assert list((perf.path / "elsewhere").rglob("*.json*"))


def test_a_required_baseline_fails_what_has_none(perf) -> None:
    perf.write(MODEL)
    found = perf.run("--ollama-require-baseline")
    assert found.counts == {"failed": 1}
    assert [test["verdict"] for test in found.report["tests"]] == ["new"]
    assert perf.run("--ollama-save").counts == {"passed": 1}
    assert perf.run("--ollama-require-baseline").counts == {"passed": 1}


def test_declared_settings_of_the_server_are_part_of_the_fingerprint(perf) -> None:
    perf.write(MODEL, pytest=ini("ollama_server_env =", "    OLLAMA_NUM_PARALLEL=4", "    OLLAMA_FLASH_ATTENTION=1"))
    assert fingerprint(perf.run())["server_env"] == {"OLLAMA_NUM_PARALLEL": "4", "OLLAMA_FLASH_ATTENTION": "1"}
    assert fingerprint(perf.run("--ollama-server-env=A=b"))["server_env"] == {"A": "b"}


CALM = "--ollama-margin=ttft=1000%"
"""The time to the first token passes through this machine, which may be busy; tokens/s is the simulator's word."""


@pytest.mark.parametrize(
    ("arguments", "verdict"),
    [((), "regressed"), (("--ollama-margin=tps=400%",), "ok")],
)
def test_a_margin_decides_what_is_a_regression(perf, arguments: tuple[str, ...], verdict: str) -> None:
    perf.write("@pytest.mark.ollama_load(requests=20, warmup=1, num_predict=20)\ndef test_it():\n    pass")
    fast, slow = (f"sim:?load_time=0&models=one&tps={tps}&prefill_tps=2000" for tps in (4000, 2000))
    for _ in range(3):
        assert perf.run("--ollama-save", CALM, url=fast).counts == {"passed": 1}
    found = perf.run(*arguments, CALM, url=slow)
    assert [test["verdict"] for test in found.report["tests"]] == [verdict]


def test_max_runs_bounds_how_often_a_load_is_fired(perf) -> None:
    perf.write("@pytest.mark.ollama_load(requests=20, warmup=1, num_predict=20)\ndef test_it():\n    pass")
    fast, slow = (f"sim:?load_time=0&models=one&tps={tps}&prefill_tps=2000" for tps in (4000, 3700))
    for _ in range(3):
        assert perf.run("--ollama-save", CALM, url=fast).counts == {"passed": 1}
    runs = {
        most: len(perf.run(f"--ollama-max-runs={most}", CALM, url=slow).report["tests"][0]["loads"]) for most in (1, 3)
    }
    assert runs[1] == 1
    assert 1 < runs[3] <= 3
