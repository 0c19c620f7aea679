"""What changed between two runs, in words, and which runs make a baseline."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ollama_perf.analysis.epochs import (
    COMPARABILITY,
    Acceptance,
    StoredRuns,
    compare_fingerprints,
    compare_runs,
    compare_workloads,
    find_epoch_starts,
    find_metric_generation,
    is_comparable,
    select_baseline,
    select_current_epoch,
)
from pytest_ollama_perf.core.run import Fingerprint, Run
from pytest_ollama_perf.core.workload import Workload

BASE = Fingerprint(
    server_version="0.32.10",
    model="m",
    model_digest="sha256:" + "a" * 64,
    quantization="Q4_0",
    family="llama",
    parameter_size="1B",
    context_length=4096,
    vram_share=1.0,
    gpu="NVIDIA L4",
    driver="550",
    server_env={"OLLAMA_NUM_PARALLEL": "1"},
    client={"python": "3.11"},
)


def changed(**fields: Any) -> Fingerprint:
    return msgspec.structs.replace(BASE, **fields)


def make_run(run_id: str, at: float, fingerprint: Fingerprint = BASE, **workload: Any) -> Run:
    return Run(id=run_id, started_at=at, fingerprint=fingerprint, workload=Workload(**{"model": "m"} | workload))


def ids(runs: tuple[Run, ...]) -> str:
    return "".join(run.id for run in runs)


@pytest.mark.parametrize(
    ("fields", "text", "separates"),
    [
        ({"server_version": "0.32.15"}, "ollama 0.32.10 -> 0.32.15", False),
        ({"vram_share": 0.88}, "gpu offload 100 % -> 88 %", False),
        ({"vram_share": 0.0}, "gpu offload 100 % -> 0 %", False),
        ({"vram_share": None}, "gpu offload 100 % -> unknown", False),
        ({"context_length": 8192}, "num_ctx 4096 -> 8192", False),
        ({"server_env": {"OLLAMA_NUM_PARALLEL": "4"}}, "OLLAMA_NUM_PARALLEL 1 -> 4", False),
        ({"capabilities": ("completion", "thinking")}, "capabilities unknown -> completion, thinking", False),
        ({"parameters": {"temperature": "0.2"}}, "model option temperature unset -> 0.2", False),
        ({"server_env": {}}, "OLLAMA_NUM_PARALLEL 1 -> unset", False),
        ({"model_digest": "b" * 64}, "model digest aaaaaaaaaaaa -> bbbbbbbbbbbb", True),
        ({"model": "n"}, "model m -> n", False),
        ({"quantization": "Q8_0"}, "quantization Q4_0 -> Q8_0", False),
        ({"family": "gemma"}, "model family llama -> gemma", False),
        ({"parameter_size": "3B"}, "parameters 1B -> 3B", False),
        ({"gpu": ""}, "gpu NVIDIA L4 -> unknown", False),
        ({"gpu": "NVIDIA H200"}, "gpu NVIDIA L4 -> NVIDIA H200", True),
        ({"driver": ""}, "driver 550 -> unknown", False),
        ({"driver": "570"}, "driver 550 -> 570", True),
        ({"client": {"python": "3.12"}}, "client python 3.11 -> 3.12", False),
        ({"gpu": "evil\x1b[31m\u202e"}, "gpu NVIDIA L4 -> evil[31m", True),
    ],
)
def test_a_change_reads_as_words_and_knows_whether_it_separates(
    fields: dict[str, Any], text: str, separates: bool
) -> None:
    (change,) = compare_fingerprints(BASE, changed(**fields))
    assert (str(change), change.separates) == (text, separates)
    assert is_comparable(make_run("a", 1.0), make_run("b", 2.0, changed(**fields))) is not separates


def test_nothing_changed_says_nothing() -> None:
    assert compare_fingerprints(BASE, changed()) == ()


def test_what_separates_is_said_first() -> None:
    found = compare_fingerprints(BASE, changed(server_version="0.33.3", driver="570", vram_share=0.5))
    assert [str(change) for change in found] == [
        "driver 550 -> 570",
        "meaning of the counters 0.30.1-0.33.2 -> from 0.33.3",
        "ollama 0.32.10 -> 0.33.3",
        "gpu offload 100 % -> 50 %",
    ]


def test_every_field_of_the_fingerprint_has_its_place_in_the_table() -> None:
    assert {*COMPARABILITY, "parameters", "server_env", "client"} == {*Fingerprint.__struct_fields__}


@pytest.mark.parametrize(
    ("version", "generation"),
    [
        ("0.3.14", "up to 0.9"),
        ("0.4.0", "up to 0.9"),
        ("0.9.6", "up to 0.9"),
        ("0.10.0", "0.10-0.29"),
        ("0.24.1", "0.10-0.29"),
        ("0.30.0", "0.30.0"),
        ("0.30.0-rc1", "0.30.0"),
        ("0.30.1", "0.30.1-0.33.2"),
        ("v0.32.15", "0.30.1-0.33.2"),
        ("0.33.2", "0.30.1-0.33.2"),
        ("0.33.3", "from 0.33.3"),
        ("1.0", "from 0.33.3"),
        ("0.0.0", "unknown"),
        ("", "unknown"),
        ("main", "unknown"),
        ("9" * 5000, "unknown"),
    ],
)
def test_versions_fall_into_generations_of_their_metrics(version: str, generation: str) -> None:
    assert find_metric_generation(version) == generation


@given(st.text())
def test_any_version_has_a_generation(version: str) -> None:
    assert find_metric_generation(version)


def test_another_load_is_named_field_by_field() -> None:
    old, new = Workload(model="m"), Workload(model="m", concurrency=4, options={"num_thread": 2}, prompts=("x",))
    found = {change.name: str(change) for change in compare_workloads(old, new)}
    assert found["concurrency"] == "concurrency 1 -> 4"
    assert found["options"] == "options {} -> {'num_thread': 2}"
    assert set(found) == {"concurrency", "options", "prompt_set"}
    assert all(change.separates for change in compare_workloads(old, new))
    assert compare_workloads(old, Workload(model="m", salt="other", keep_alive=0)) == ()


def test_the_context_that_was_asked_for_and_given_is_named_once() -> None:
    found = compare_runs(make_run("a", 1.0), make_run("b", 2.0, changed(context_length=8192), num_ctx=8192))
    assert [str(change) for change in found] == ["num_ctx server default -> 8192"]


def test_without_a_history_a_run_is_new() -> None:
    found = select_baseline(StoredRuns(), make_run("x", 9.0))
    assert (found.runs, found.is_incomparable, found.changed) == ((), False, ())


def test_the_baseline_is_the_comparable_runs_newest_last() -> None:
    other = changed(gpu="NVIDIA T4")
    history = StoredRuns(
        runs=(make_run("a", 1.0), make_run("b", 2.0, other), make_run("c", 3.0), make_run("d", 4.0, other))
    )
    found = select_baseline(history, make_run("x", 9.0))
    assert (ids(found.runs), ids(found.apart), found.changed) == ("ac", "bd", ())
    assert ids(select_baseline(history, make_run("x", 9.0, other)).runs) == "bd"
    assert ids(select_baseline(history, make_run("x", 9.0), limit=1).runs) == "c"


def test_the_run_itself_is_no_part_of_its_baseline() -> None:
    run = make_run("a", 1.0)
    assert select_baseline(StoredRuns(runs=(run,)), run).runs == ()


def test_what_changed_is_said_against_the_newest_comparable_run() -> None:
    history = StoredRuns(runs=(make_run("a", 1.0), make_run("b", 2.0, changed(server_version="0.32.15"))))
    found = select_baseline(history, make_run("x", 9.0, changed(server_version="0.32.20")))
    assert [str(change) for change in found.changed] == ["ollama 0.32.15 -> 0.32.20"]


def test_only_separated_runs_make_it_incomparable_and_say_why() -> None:
    found = select_baseline(
        StoredRuns(runs=(make_run("a", 1.0),)), make_run("x", 9.0, changed(server_version="0.33.4"))
    )
    assert found.is_incomparable
    assert [str(change) for change in found.changed] == [
        "meaning of the counters 0.30.1-0.33.2 -> from 0.33.3",
        "ollama 0.32.10 -> 0.33.4",
    ]


def test_accepting_starts_an_epoch_of_the_accepted_runs_and_what_came_after() -> None:
    history = StoredRuns(
        runs=(make_run("a", 1.0), make_run("r", 2.0), make_run("b", 3.0), make_run("c", 5.0)),
        acceptances=(Acceptance(test="t", at=4.0, why="new model", runs=("r",)),),
    )
    assert ids(select_current_epoch(history)) == "rc"
    assert ids(select_baseline(history, make_run("x", 9.0)).runs) == "rc"
    assert select_baseline(history, make_run("x", 9.0)).apart == ()


def test_accepting_one_load_of_a_test_leaves_the_history_of_its_others() -> None:
    of_this_load = tuple(make_run(name, at) for name, at in (("a", 1.0), ("b", 3.0)))
    of_another = Acceptance(test="t", at=4.0, why="the other level", runs=("z",))
    assert ids(select_current_epoch(StoredRuns(runs=of_this_load, acceptances=(of_another,)))) == "ab"


def test_the_newest_acceptance_counts_whatever_their_order() -> None:
    old, new = (Acceptance(test="t", at=at, why="w") for at in (2.0, 4.0))
    runs = tuple(make_run(name, at) for name, at in (("a", 1.0), ("b", 3.0), ("c", 5.0)))
    for acceptances in ((old, new), (new, old)):
        assert ids(select_current_epoch(StoredRuns(runs=runs, acceptances=acceptances))) == "c"


def test_borders_stand_before_the_first_run_of_an_epoch() -> None:
    accepted = Acceptance(test="t", at=3.5, why="w", runs=("c",))
    runs = (
        make_run("a", 1.0),
        make_run("b", 2.0, changed(driver="570", server_version="0.32.11")),
        make_run("c", 3.0, changed(driver="570")),
        make_run("d", 4.0, changed(driver="570")),
    )
    found = find_epoch_starts(StoredRuns(runs=runs, acceptances=(accepted,)))
    assert [[str(each) for each in group] for group in found[:2]] == [[], ["driver 550 -> 570"]]
    assert found[2:] == ((accepted,), ())
