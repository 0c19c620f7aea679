"""Settings: which place wins, what is read, what is refused and with which words."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from types import MappingProxyType

import certifi
import pytest

from pytest_ollama_perf.analysis.run_value import POLICIES
from pytest_ollama_perf.config import (
    DEFAULT_WAIT_S,
    OPTIONS,
    GitHubJob,
    Option,
    Settings,
    parse_margin,
    parse_percent,
    resolve_settings,
)
from pytest_ollama_perf.config.report_targets import REPORT_TYPES, ReportTarget
from pytest_ollama_perf.core import ConfigError


class Given:
    """A source of raw values: what the command line gave and what the ini file gave, by the option's name."""

    def __init__(self, command_line: dict[str, object] | None = None, ini: dict[str, object] | None = None) -> None:
        self._command_line, self._ini = command_line or {}, ini or {}

    def read_command_line(self, option: Option) -> object:
        return self._command_line.get(option.name)

    def read_ini(self, option: Option) -> object:
        return self._ini.get(option.name)


def settled(command_line=None, ini=None, **environment: str) -> Settings:
    return resolve_settings(Given(command_line, ini), environment)


def refused(command_line=None, **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        settled(command_line, **environment)
    return str(caught.value)


GOOD = MappingProxyType(
    {
        # option: (command line, ini, field, what the command line makes of it, what the ini makes of it, default)
        "url": (["a:1"], ["b:2", "c:3"], "urls", ("a:1",), ("b:2", "c:3"), ("http://127.0.0.1:11434",)),
        "baseline-url": ("a:1", " b:2 ", "baseline_url", "a:1", "b:2", None),
        "allow-down": (True, True, "allow_down", True, True, False),
        "model": ("tiny", "mid", "model", "tiny", "mid", None),
        "report": (
            ["json:a.json"],
            ["json:b.json"],
            "reports",
            (ReportTarget("json", Path("a.json")),),
            (ReportTarget("json", Path("b.json")),),
            (),
        ),
        "strict": (True, True, "strict", True, True, False),
        "store": ("here", "there", "store", "here", "there", ".ollama-perf"),
        "save": (True, True, "save", True, True, False),
        "baseline": ("agreed", " agreed, too ", "baseline", "agreed", "agreed, too", ""),
        "require-baseline": (True, True, "require_baseline", True, True, False),
        "max-runs": ("1", "2", "max_runs", 1, 2, 3),
        "run-spacing": ("0", "2.5", "run_spacing_s", 0.0, 2.5, 10.0),
        "margin": (
            ["tps=5%"],
            ["ttft.p95=0.3", "qps=40%"],
            "margins",
            {"tps": 0.05},
            {"ttft.p95": 0.3, "qps": 0.4},
            {},
        ),
        "benchmark": (True, True, "benchmark", True, True, False),
        "no-properties": (True, True, "no_properties", True, True, False),
        "no-github": (True, True, "github", None, None, None),
        "header": (["X-A: 1"], ["X-B: 2"], "headers", (("X-A", "1"),), (("X-B", "2"),), ()),
        "wait": ("5", "2m", "wait_s", 5.0, 120.0, DEFAULT_WAIT_S),
        "invalid": ("skip", "fail", "skips_invalid", True, False, False),
        "unreachable": ("skip", "fail", "skips_unreachable", True, False, False),
        "skip": (True, True, "skip", True, True, False),
        "only": (True, True, "only", True, True, False),
        "ca-file": (certifi.where(), certifi.where(), "ca_file", certifi.where(), certifi.where(), None),
        "insecure": (True, True, "insecure", True, True, False),
        "telemetry": ("off", " ssh box smi ", "telemetry", "off", "ssh box smi", None),
        "server-env": (["A=1"], ["B=2=3", "C="], "server_env", {"A": "1"}, {"B": "2=3", "C": ""}, {}),
    }
)


def test_every_option_is_held_to_its_places_here() -> None:
    assert [option.name for option in OPTIONS] == list(GOOD)
    assert {field for _, _, field, *_ in GOOD.values()} == {field.name for field in fields(Settings)}


@pytest.mark.parametrize("name", GOOD)
def test_the_default_holds_where_nothing_is_given(name: str) -> None:
    *_, field, _, _, default = GOOD[name]
    assert getattr(settled(), field) == default


@pytest.mark.parametrize("name", GOOD)
def test_the_ini_value_beats_the_default(name: str) -> None:
    _, ini, field, _, made, _ = GOOD[name]
    assert getattr(settled(ini={name: ini}), field) == made


@pytest.mark.parametrize("name", GOOD)
def test_the_command_line_beats_the_ini_value(name: str) -> None:
    given, ini, field, made, _, _ = GOOD[name]
    assert getattr(settled({name: given}, {name: ini}), field) == made


def test_the_environment_stands_between_command_line_and_ini_file() -> None:
    assert settled(ini={"url": ["c"]}, OLLAMA_HOST="b").urls == ("b",)
    assert settled({"url": ["a"]}, {"url": ["c"]}, OLLAMA_HOST="b").urls == ("a",)


def test_an_empty_environment_variable_is_none() -> None:
    assert settled(ini={"url": ["c"]}, OLLAMA_HOST="  ", OLLAMA_API_KEY=" ") == settled(ini={"url": ["c"]})


def test_a_flag_that_is_off_in_the_ini_file_is_off() -> None:
    assert settled(ini={"strict": False}).strict is False


def test_urls_keep_their_order_and_lose_their_spaces() -> None:
    assert settled({"url": [" gpu-1 ", "gpu-2:80", "sim:?slots=2"]}).urls == ("gpu-1", "gpu-2:80", "sim:?slots=2")


def test_the_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        settled().strict = True  # type: ignore[misc]


def test_an_api_key_becomes_a_bearer_token_behind_the_headers() -> None:
    made = settled({"header": ["X-Team: ml"]}, OLLAMA_API_KEY=" k-1 ")
    assert made.headers == (("X-Team", "ml"), ("Authorization", "Bearer k-1"))


def test_a_given_authorization_beats_the_api_key() -> None:
    made = settled({"header": ["authorization: Basic Zm9v"]}, OLLAMA_API_KEY="k-1")
    assert made.headers == (("authorization", "Basic Zm9v"),)


def test_credentials_are_in_no_representation() -> None:
    places = {"url": ["http://me:s3cret@gpu"], "baseline-url": "http://me:s3cret@old", "store": "pg://me:s3cret@db/x"}
    made = settled({"header": ["X-Key: s3cret"], **places}, OLLAMA_API_KEY="s3cret")
    assert "s3cret" not in repr(made)
    assert "s3cret" not in str(made)


@pytest.mark.parametrize(
    "text",
    [
        "s3cret",
        "X Y: s3cret",
        ": s3cret",
        "X-Key: s3cret\r\nEvil: 1",
        "X-Key: s3cret\x7f",
        "X-Key: s3\u2028cret",
        "X\nY: s3cret",
    ],
)
def test_a_header_that_cannot_be_sent_is_refused_without_being_repeated(text: str) -> None:
    assert refused({"header": [text]}) == (
        "--ollama-header expects 'Name: value' on one line, for example 'Authorization: Bearer ...'"
    )


@pytest.mark.parametrize("key", ["s3cret\nX-Evil: 1", "s3crét", "s3cret\x00x"])
def test_an_api_key_that_cannot_be_sent_is_refused_without_being_repeated(key: str) -> None:
    message = refused(OLLAMA_API_KEY=key)
    assert message == "OLLAMA_API_KEY holds a line break, control or non-ASCII character; give the key alone"


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("url", [""], "--ollama-url is empty; give the server, for example --ollama-url=http://127.0.0.1:11434"),
        ("url", ["a", " "], "--ollama-url is empty; give the server, for example --ollama-url=http://127.0.0.1:11434"),
        ("max-runs", "0", "--ollama-max-runs '0': expected a whole number from 1 to 3"),
        ("max-runs", "4", "--ollama-max-runs '4': expected a whole number from 1 to 3"),
        ("max-runs", "two", "--ollama-max-runs 'two': expected a whole number from 1 to 3"),
        ("max-runs", "", "--ollama-max-runs '': expected a whole number from 1 to 3"),
        ("run-spacing", "-1", "--ollama-run-spacing '-1': expected seconds from 0 to 3600"),
        ("run-spacing", "nan", "--ollama-run-spacing 'nan': expected seconds from 0 to 3600"),
        ("run-spacing", "3601", "--ollama-run-spacing '3601': expected seconds from 0 to 3600"),
        ("run-spacing", "10 s", "--ollama-run-spacing '10 s': expected seconds from 0 to 3600"),
        ("ca-file", "/no/such.pem", "--ollama-ca-file '/no/such.pem': no such file"),
        (
            "server-env",
            ["OLLAMA_NUM_PARALLEL"],
            "--ollama-server-env 'OLLAMA_NUM_PARALLEL': expected NAME=VALUE, for example OLLAMA_NUM_PARALLEL=4",
        ),
        ("server-env", ["=4"], "--ollama-server-env '=4': expected NAME=VALUE, for example OLLAMA_NUM_PARALLEL=4"),
        (
            "report",
            ["jsn:perf.json"],
            "--ollama-report 'jsn:perf.json': unknown report type 'jsn'; did you mean 'json'?; "
            f"valid types: {', '.join(REPORT_TYPES)}",
        ),
        ("margin", ["tps"], "--ollama-margin 'tps': expected METRIC=PERCENT, for example tps=5%"),
        (
            "margin",
            ["tsp=5%"],
            "--ollama-margin 'tsp=5%': no history is kept of 'tsp'; did you mean 'tps'? (valid: tps, throughput, "
            "throughput_whole, qps, ttft, ttfa, tpot, itl, latency, queue, prefill_tps, load_time, goodput)",
        ),
        (
            "margin",
            ["ttft.P95=5%"],
            "--ollama-margin 'ttft.P95=5%': no percentile 'P95'; did you mean 'p95'? (valid: p50, p90, p95, p99)",
        ),
        (
            "margin",
            ["ttft.max=5%"],
            "--ollama-margin 'ttft.max=5%': no percentile 'max' (valid: p50, p90, p95, p99)",
        ),
        ("margin", ["ttft.=5%"], "--ollama-margin 'ttft.=5%': no percentile '' (valid: p50, p90, p95, p99)"),
        ("margin", ["qps.p95=5%"], "--ollama-margin 'qps.p95=5%': qps is one number per run; write qps without 'p95'"),
        (
            "margin",
            ["tps=5"],
            "--ollama-margin 'tps=5': expected a percentage above 0%, such as 5%, or a share up to 1, such as 0.05",
        ),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_that_says_what_is_right(name: str, given: object, message: str) -> None:
    assert refused({name: given}) == message


def test_margins_are_taken_for_exactly_the_numbers_that_history_can_judge() -> None:
    accepted = set()
    for name in {*POLICIES, "error_rate", "error_rate.p95", "ttft.min", "ttft.mean", "goodput.p50", "tps.", "."}:
        try:
            accepted.add(parse_margin(f"{name}=5%", "--ollama-margin")[0])
        except ConfigError:
            continue
    assert accepted == set(POLICIES)


@pytest.mark.parametrize(
    ("given", "share"),
    [("5%", 0.05), (" 5 % ", 0.05), ("1000%", 10.0), ("0.05", 0.05), (0.05, 0.05), (1, 1.0), ("100%", 1.0)],
)
def test_a_percentage_is_read_as_a_share(given: object, share: float) -> None:
    assert parse_percent(given, "x") == pytest.approx(share)


@pytest.mark.parametrize(
    "given",
    [
        0,
        "0%",
        -0.1,
        "-5%",
        5,
        "5",
        1.01,
        "1001%",
        "nan",
        "nan%",
        "inf%",
        "",
        "%",
        "5%%",
        True,
        None,
        [5],
        pytest.param(10**400, id="huge"),
        b"5%",
    ],
)
def test_what_is_no_percentage_is_refused(given: object) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_percent(given, "max_regression=...")
    assert str(caught.value) == (
        "max_regression=...: expected a percentage above 0%, such as 5%, or a share up to 1, such as 0.05"
    )


def test_a_job_of_github_actions_is_known_by_its_environment() -> None:
    job = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": "summary.md", "GITHUB_WORKSPACE": "/repository"}
    assert settled(**job).github == GitHubJob("summary.md", "/repository")
    assert settled(GITHUB_ACTIONS="true").github == GitHubJob("", "")
    assert settled({"no-github": True}, **job).github is None
    assert settled(GITHUB_STEP_SUMMARY="summary.md").github is None
