"""The JSON Schema of contract files: up to date, and of one mind with the reader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from json_schemas import faults
from published_schemas import assert_same_schema
from test_parse import DESIGN

from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.contracts import toml
from pytest_ollama_perf.contracts.json_schema import build_schema
from pytest_ollama_perf.contracts.parse import parse_contract
from pytest_ollama_perf.core import ConfigError

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "contract.schema.json"
EXAMPLES = sorted((ROOT / "examples").rglob("*.ollama.toml"))

EVERYTHING = """\
schema = 1
[defaults]
endpoint = "chat"
timeout = { first_token = "10m", idle = 30 }
[model."*"]
rate = [0.5, 2]
duration = "2m"
prompts = ["a", "b"]
ttft.p95 = ["<= 300ms", "regression <= 20%"]
tps = ["p50 >= 150 tokens/s", "regression <= 5 %"]
error_rate = "<= 1%"
require = { gpu_offload = ">= 80%", context_length = 4096, quantization = ["F16"], server_env = { A = "1" } }
[model."*".sweep]
concurrency = [1, 2]
knee = ">= 2"
stop_latency = "10s"
[model."*".cold_start]
repeats = 2
load_time = "<= 90s"
ratio = "<= 20"
[model."*".max_concurrency]
max_latency = 5
concurrency = ">= 4"
[[load]]
stages = [{ concurrency = 4, ramp = "10s" }, { concurrency = 4, for = "1m" }]
turns = 3
retries = 2
reuse_connections = false
[[load]]
name = "long"
think_time = ["1s", 5]
num_predict = 512
qps = ">= 1"
"""
WRONG = (
    "schema = 2\n[load]",
    "[load]",
    "schema = 1\ncolour = 1\n[load]",
    "schema = 1\n[load]\nconcurency = 4",
    "schema = 1\n[load]\nconcurrency = 0",
    "schema = 1\n[load]\nconcurrency = []",
    "schema = 1\n[load]\ntps = '<= 3'",
    "schema = 1\n[load]\nttft = '<= 3s'",
    "schema = 1\n[load]\nttft = 'p95 <= 3'",
    "schema = 1\n[load]\nttft.p98 = '<= 3s'",
    "schema = 1\n[load]\nqps = 'p95 >= 3'",
    "schema = 1\n[load]\nerror_rate = 'regression <= 5%'",
    "schema = 1\n[load]\nendpoint = 'caht'",
    "schema = 1\n[load]\nduration = 'soon'",
    "schema = 1\n[load]\nstages = []",
    "schema = 1\n[load]\nstages = [{ concurrency = 4 }]",
    "schema = 1\n[load]\nstages = [{ concurency = 4, for = 3 }]",
    "schema = 1\n[load]\nturns = 0",
    "schema = 1\n[load.require]\ngpu = 'x'",
    "schema = 1\n[load.require]\ngpu_offload = 'most'",
    "schema = 1\n[model.m.sweep]\nknee = '4'",
    "schema = 1\n[model.m.sweep]\ntps = 'regression <= 5%'",
    "schema = 1\n[model.m.cold_start]\nload_time = '<= 4'",
    "schema = 1\n[model.m.max_concurrency]\nconcurrency = '>= 4'\ntps = '>= 1'",
)


def allowed(text: str) -> bool:
    return not list(faults(toml.parse_toml(text, "c"), json.loads(build_schema())))


def readable(text: str) -> bool:
    try:
        parse_contract(text, "c", settings=Settings(), folder=ROOT)
    except ConfigError:
        return False
    return True


def test_the_published_schema_is_the_one_the_code_has() -> None:
    assert_same_schema(PUBLISHED, build_schema)


@pytest.mark.parametrize("text", [DESIGN, EVERYTHING, *(path.read_text(encoding="utf-8") for path in EXAMPLES)])
def test_what_the_reader_takes_the_schema_allows(text: str) -> None:
    assert readable(text)
    assert list(faults(toml.parse_toml(text, "c"), json.loads(build_schema()))) == []


@pytest.mark.parametrize("text", WRONG)
def test_what_the_reader_refuses_the_schema_does_not_allow(text: str) -> None:
    assert not readable(text)
    assert not allowed(text)
