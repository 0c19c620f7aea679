"""A contract file: which loads and clauses it stands for, and what it is told when it is wrong."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.contracts.clauses import ClauseGroup
from pytest_ollama_perf.contracts.parse import parse_contract
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.workload import ANY_MODEL, Endpoint, Workload
from pytest_ollama_perf.experiments.capacity import MaxConcurrencyTest
from pytest_ollama_perf.experiments.cold_start import ColdStartTest
from pytest_ollama_perf.experiments.load import LoadTest
from pytest_ollama_perf.experiments.sweep import SweepTest


def groups(text: str, *, model: str | None = None, prefix: tuple[str, ...] = ()) -> tuple[ClauseGroup, ...]:
    return parse_contract(textwrap.dedent(text), "c.toml", settings=Settings(model=model), folder=Path(), prefix=prefix)


def only(text: str, **keywords) -> ClauseGroup:
    (group,) = groups(text, **keywords)
    return group


def refused(text: str) -> list[str]:
    """Return the faults of ``text``, without the list of every word that a load knows."""
    with pytest.raises(ConfigError) as caught:
        groups(text)
    return [line.partition("; valid: endpoint")[0] for line in str(caught.value).splitlines()]


def workload(group: ClauseGroup) -> Workload:
    assert isinstance(group.experiment, LoadTest)
    return group.experiment.spec.workload


def names(group: ClauseGroup) -> list[str]:
    return [clause.name for clause in group.clauses]


DESIGN = """\
schema = 1
[model."llama3.2:3b"]
concurrency = 4
tps = ">= 150"
ttft = ["p95 <= 300ms", "regression <= 20%"]
latency = "p95 <= 2.5s"
[model."llama3.2:3b".require]
gpu_offload = "100%"
"""


def test_a_model_with_clauses_is_one_load_with_an_item_for_each() -> None:
    group = only(DESIGN)
    assert (group.model, group.name, group.line, group.gating) == ("llama3.2:3b", "concurrency=4", 2, 1)
    assert names(group) == [
        "tps >= 150",
        "ttft p95 <= 300ms",
        "ttft regression <= 20%",
        "latency p95 <= 2.5s",
        "error_rate <= 0%",
    ]
    assert [clause.line for clause in group.clauses] == [4, 5, 5, 6, 0]
    spec = group.experiment.spec
    assert [(each.metric, each.stat, each.op, each.bound) for each in spec.limits] == [
        ("tps", "", ">=", 150.0),
        ("ttft", "p95", "<=", 0.3),
        ("latency", "p95", "<=", 2.5),
        ("error_rate", "", "<=", 0.0),
    ]
    assert (spec.margins, spec.gating) == ({"ttft": 0.2}, ("ttft",))
    assert (spec.workload.model, spec.workload.concurrency, spec.workload.requests) == ("llama3.2:3b", 4, 20)


def test_without_a_regression_clause_history_has_no_say() -> None:
    assert only("schema = 1\n[model.m]\ntps = '>= 1'").experiment.spec.gating == ()


@pytest.mark.parametrize(("given", "meant"), [(None, ANY_MODEL), ("tiny", "tiny")])
@pytest.mark.parametrize("table", ['[model."*"]', "[load]", "[[load]]"])
def test_a_star_or_no_model_is_the_usual_one(table: str, given: str | None, meant: str) -> None:
    group = only(f"schema = 1\n{table}\nconcurrency = 2", model=given)
    assert (group.model, group.name, workload(group).model) == ("*", "concurrency=2", meant)


def test_the_nearer_table_wins_word_by_word_and_metric_by_metric() -> None:
    found = groups(
        """\
        schema = 1
        [defaults]
        endpoint = "chat"
        rate = 2
        tps = ">= 1"
        ttft = "p50 <= 1s"
        [defaults.require]
        version = ">= 0.1"
        quantization = "Q4_K_M"
        [model.a]
        concurrency = 3
        tps = ">= 2"
        [model.b]
        require = { version = ">= 0.2" }
        [[model.b.load]]
        num_predict = 8
        [[model.b.load]]
        name = "long answers"
        num_predict = 512
        ttft.p95 = "<= 2s"
        """
    )
    assert [(group.model, group.name) for group in found] == [
        ("a", "concurrency=3"),
        ("b", "rate=2"),
        ("b", "long answers,rate=2"),
    ]
    assert [workload(group).endpoint for group in found] == [Endpoint.CHAT] * 3
    assert [workload(group).num_predict for group in found] == [64, 8, 512]
    assert names(found[0]) == ["tps >= 2", "ttft p50 <= 1s", "error_rate <= 0%"]
    assert names(found[2]) == ["tps >= 1", "ttft p95 <= 2s", "error_rate <= 0%"]
    wanted = [[requirement.wanted for requirement in group.preconditions] for group in found]
    assert wanted == [[">= 0.1", "Q4_K_M"], [">= 0.2", "Q4_K_M"], [">= 0.2", "Q4_K_M"]]


def test_several_concurrencies_are_several_loads_with_the_same_clauses() -> None:
    found = groups("schema = 1\n[model.m]\nconcurrency = [1, 8]\nerror_rate = '<= 1%'")
    assert [(group.name, workload(group).requests) for group in found] == [("concurrency=1", 20), ("concurrency=8", 40)]
    assert [names(group) for group in found] == [["error_rate <= 1%"]] * 2


def test_a_table_of_pyproject_is_a_contract_with_the_lines_of_the_file() -> None:
    text = (
        "[project]\nname = 'x'\n[tool.pytest_ollama_perf]\nschema = 1\n[tool.pytest_ollama_perf.model.m]\nqps = '>= 1'"
    )
    group = only(text, prefix=("tool", "pytest_ollama_perf"))
    assert (group.line, group.clauses[0].line) == (5, 6)


def test_experiments_are_tables_of_their_model() -> None:
    sweep, cold, largest = groups(
        """\
        schema = 1
        [model.m]
        num_predict = 8
        concurrency = 4
        [model.m.sweep]
        concurrency = [1, 2]
        knee = ">= 2"
        ttft = "p50 <= 1s"
        [model.m.cold_start]
        repeats = 2
        load_time = "<= 90s"
        ratio = "<= 20"
        [model.m.max_concurrency]
        max_latency = "5s"
        maximum = 8
        concurrency = ">= 4"
        """
    )
    assert isinstance(sweep.experiment, SweepTest)
    assert isinstance(cold.experiment, ColdStartTest)
    assert isinstance(largest.experiment, MaxConcurrencyTest)
    assert [group.name for group in (sweep, cold, largest)] == ["sweep", "cold start", "max concurrency"]
    assert names(sweep) == ["knee >= 2", "ttft p50 <= 1s", "error_rate <= 0%"]
    assert names(cold) == ["load_time <= 90s", "ratio <= 20", "error_rate <= 0%"]
    assert names(largest) == ["concurrency >= 4"]
    assert (sweep.experiment.min_knee, [spec.workload.num_predict for spec in sweep.experiment.specs]) == (2.0, [8, 8])
    assert (cold.experiment.repeats, cold.experiment.bounds) == (2, {"load_time": 90.0, "ratio": 20.0})
    assert (largest.experiment.min_concurrency, largest.experiment.maximum) == (4, 8)


def test_everything_wrong_is_told_at_once_with_file_and_line() -> None:
    assert refused(
        """\
        schema = 1
        colour = 3
        [defaults]
        num_predict = 0
        [model."llama3.2:3b"]
        concurency = 4
        min_tps = 3
        max_p95_ttft = 3
        ttft = ["p95 <= 300", "regression <= 20", "p95 <= 300ms", "p95 <= 300ms"]
        latency = "<= 5s"
        throughput = "regression <= 10%"
        tps = "regression >= 10%"
        qps = 3
        [model."llama3.2:3b".require]
        gpu_ofload = "x"
        gpu_offload = "most"
        version = "new"
        context_length = "big"
        quantization = 4
        server_env = "x"
        [model.x.sweep]
        knee = "4"
        tps = "regression <= 5%"
        [model.x.max_concurrency]
        maximum = 3
        [model.x.cold_start]
        concurrency = 3
        [[load]]
        rate = 3
        concurrency = 2
        [[load]]
        concurrency = [2, 2]
        [[load]]
        name = "a::b"
        """
    ) == [
        "c.toml:2: unknown key 'colour' at the top; valid: schema, defaults, model, load",
        "c.toml:4: num_predict=0: expected a whole number from 1 to 2147483647",
        "c.toml:6: unknown key 'concurency' of a load; did you mean 'concurrency'?",
        "c.toml:7: unknown key 'min_tps' of a load; write tps = '>= 150'",
        "c.toml:8: unknown key 'max_p95_ttft' of a load; write ttft = 'p95 <= 300ms'",
        "c.toml:9: duplicate clause 'ttft p95 <= 300ms'",
        "c.toml:9: limit 'ttft': 'p95 <= 300': ttft needs a unit; valid: 's', 'ms', 'us', 'µs', 'min', "
        "as in '<= 300ms'",
        "c.toml:9: ttft = 'regression <= 20': expected a percentage above 0%, such as 5%, or a share up to 1, "
        "such as 0.05",
        "c.toml:10: limit 'latency': '<= 5s': latency has one value per request, say which statistic: 'latency.p95' "
        "(on the marker max_p95_latency); valid: mean, p50, p90, p95, p99, min, max",
        "c.toml:11: throughput regression <= 10%: throughput cannot gate on 20 requests a run: it needs 50",
        "c.toml:12: tps = 'regression >= 10%': write it as 'regression <= 20%'",
        "c.toml:13: qps = 3: expected a text such as '>= 2.5', or a list of such texts",
        "c.toml:15: unknown key 'gpu_ofload' of require; did you mean 'gpu_offload'?",
        "c.toml:16: gpu_offload = 'most': expected a percentage above 0%, such as 5%, or a share up to 1, such as 0.05",
        "c.toml:17: version = 'new': expected '0.32.15', '>= 0.30' or '>= 0.30, < 0.34'",
        "c.toml:18: context_length = 'big': expected 4096 or '>= 8192'",
        "c.toml:19: quantization = 4: expected a text, or a list of texts of which one will do",
        "c.toml:20: server_env = 'x': expected a table of texts such as {OLLAMA_NUM_PARALLEL = '4'}",
        "c.toml:22: knee = '4': expected a text such as '>= 4'",
        "c.toml:23: tps regression <= 5%: only a load is judged by history; write the clause into its table",
        "c.toml:24: no clause: add concurrency = '>= 4'",
        "c.toml:27: unknown key 'concurrency' of cold_start",
        "c.toml:28: concurrency=2 and rate=3 exclude each other: give one of them",
        "c.toml:32: concurrency = [2, 2]: duplicate value",
        "c.toml:34: name = 'a::b': expected a text without brackets and '::'",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model.m]", "c.toml:1: no schema: write schema = 1 at the top"),
        ("schema = 2\n[model.m]", "c.toml:1: schema = 2 is newer than this version knows (1); upgrade the plugin"),
        ("schema = '1'\n[model.m]", "c.toml:1: schema = '1': expected 1"),
        (
            "schema = 1",
            'c.toml:1: no load: add a table such as [model."llama3.2:3b"] with concurrency and limits',
        ),
        ("schema = 1\nmodel = 3", 'c.toml:2: expected tables such as [model."llama3.2:3b"], not 3'),
        ("schema = 1\nload = 3", "c.toml:2: expected a table, not 3"),
        ("schema = 1\nload = []", "c.toml:2: load is empty: expected tables such as [[load]]"),
        ("schema = 1\n[model]\nm = 1", "c.toml:3: expected a table, not 1"),
        ("schema = 1\n[model.' ']", "c.toml:2: a model without a name; '*' means the usual one"),
        ("schema = 1\n[model.m]\nconcurrency = []", "c.toml:3: concurrency = []: expected at least one value"),
        (
            "schema = 1\n[[load]]\nconcurrency = 3\n[[load]]\nconcurrency = 3",
            "c.toml:4: 'concurrency=3' of * is already defined on line 2; give one of them a name",
        ),
        ("schema = 1\n[model.m]\nsweep = 4", "c.toml:3: expected a table, not 4"),
        ("schema = 1\n[model.m]\nrequire = 4", "c.toml:3: expected a table such as {gpu_offload = '100%'}, not 4"),
        (
            "schema = 1\n[model.m]\nttft.p95 = 'p95 <= 1s'",
            "c.toml:3: limit 'ttft.p95': 'p95 <= 1s': duplicate statistic: 'p95' and 'p95'",
        ),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(text: str, message: str) -> None:
    assert refused(text) == [message]


def test_files_are_looked_for_beside_the_contract(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text('{"prompt": "Why?"}\n', encoding="utf-8")
    text = "schema = 1\n[model.m]\ndataset = 'set.jsonl'"
    (group,) = parse_contract(text, "c.toml", settings=Settings(), folder=tmp_path)
    assert workload(group).prompts == ("Why?",)
    with pytest.raises(ConfigError, match=r"^c.toml:3: dataset: cannot read .*: No such file or directory$"):
        parse_contract(text, "c.toml", settings=Settings(), folder=tmp_path / "else")
