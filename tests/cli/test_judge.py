import io
import json

import msgspec
import pytest
from record_makers import record, records
from run_makers import one_after_another, run_of, slower

from pytest_ollama_perf.analysis.epochs import RunKind
from pytest_ollama_perf.cli import main
from pytest_ollama_perf.store.directory import DirectoryStore
from pytest_ollama_perf.store.record import encode_run

SAME = [record(run) for run in range(10)]


@pytest.fixture
def folders(tmp_path):
    """Write histories and candidates as files; return the arguments that name them."""

    def write(history, candidates):
        for name, some in (("history", history), ("candidates", candidates)):
            folder = tmp_path / name / "deep"
            folder.mkdir(parents=True)
            for number, one in enumerate(some):
                data = one if isinstance(one, bytes) else json.dumps(one).encode()
                (folder / f"run-{number}.json").write_bytes(data)
        return ["judge", "--history", str(tmp_path / "history"), "--candidates", str(tmp_path / "candidates")]

    return write


@pytest.fixture
def batch(tmp_path):
    """Write lines, judge them, and return the exit status."""

    def judge(*lines, options=()):
        file = tmp_path / "batch.jsonl"
        file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return main(["judge", "--batch", str(file), *options])

    return judge


def answers(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_batch_is_judged_line_by_line(batch, capsys):
    slow = record(99, 1.1)
    status = batch(
        *({"id": runs, "history": SAME, "candidates": [slow] * runs} for runs in (1, 2, 3)),
        {"id": "same", "history": SAME, "candidates": [record(99)]},
        {"id": "fast", "history": SAME, "candidates": [record(99, 0.9)]},
        {"id": None, "history": [], "candidates": [record(99)]},
        {"id": "empty", "history": SAME, "candidates": [record(99, requests=0)]},
    )
    found = [(one["id"], one["verdict"], one["again"]) for one in answers(capsys)]
    assert status == 0
    assert found == [
        (1, "unsure", True),
        (2, "unsure", True),
        (3, "regressed", False),
        ("same", "ok", False),
        ("fast", "faster", False),
        (None, "new", False),
        ("empty", "unsure", True),
    ]


def test_a_batch_answer_holds_every_number(batch, capsys):
    batch({"id": 1, "history": SAME, "candidates": [record(99, 1.25)] * 3}, options=["--metric", "tps"])
    (found,) = answers(capsys)
    tps = found["metrics"].pop("tps")
    numbers = {
        name: round(tps.pop(name), 4) for name in ("baseline", "now", "change", "low", "high", "p", "detectable")
    }
    assert found == {
        "id": 1,
        "test": "chat",
        "verdict": "regressed",
        "reason": "tps -20 % (80 /s -> 64 /s), margin 5 %, 3 runs against 10 stored",
        "again": False,
        "metrics": {},
    }
    assert numbers == {
        "baseline": 80,
        "now": 64,
        "change": -0.2,
        "low": -0.2114,
        "high": -0.1884,
        "p": 0,
        "detectable": 0.0237,
    }
    assert tps == {
        "verdict": "regressed",
        "reason": "tps -20 % (80 /s -> 64 /s), margin 5 %, 3 runs against 10 stored",
        "unit": "tokens/s",
        "margin": 0.05,
        "runs": 3,
        "stored": 10,
        "dropped": 0,
        "again": False,
        "more_runs": None,
        "more_stored": None,
        "notes": [],
    }


def test_garbage_is_named_by_line_and_the_others_are_judged(batch, capsys):
    good = {"id": "good", "history": SAME, "candidates": [record(99)]}
    bad_record = {"history": SAME, "candidates": [{"requests": [{"eval_tps": "fast"}]}]}
    status = batch(
        good,
        "",
        "{",
        "[1]",
        {"id": 1},
        {"history": 3, "candidates": []},
        bad_record,
        {"history": [1], "candidates": []},
        good,
    )
    out, err = capsys.readouterr()
    assert status == 2
    answered = [json.loads(line) for line in out.splitlines()]
    assert [one["id"] for one in answered] == ["good", None, None, 1, None, None, None, "good"]
    assert [one["verdict"] for one in answered] == ["ok", *["unsure"] * 6, "ok"]
    assert [one["id"] for one in answered if "error" not in one] == ["good", "good"]
    assert err.splitlines() == [
        "line 3: Expecting property name enclosed in double quotes: line 2 column 1 (char 2)",
        'line 4: expected an object {"id", "history", "candidates"}',
        "line 5: history: expected a list of records",
        "line 6: history: expected a list of records",
        "line 7: candidates[0]: requests[0].eval_tps must be a number or null, got 'fast'",
        "line 8: history[0]: expected an object, got int",
    ]


def test_numbers_too_large_and_bytes_that_are_no_text_are_garbage_too(tmp_path, capsys):
    file = tmp_path / "batch.jsonl"
    huge = json.dumps({"history": SAME, "candidates": [{"requests": [{"eval_tps": 10**400}]}]})
    file.write_bytes(b"\xff\xfe\n" + huge.encode() + b"\n")
    assert main(["judge", "--batch", str(file)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in err] == ["line 1", "line 2"]


def test_infinities_as_python_writes_them_are_failed_requests(batch, capsys):
    failed = {"test": "chat", "requests": [{"eval_tps": float("nan"), "ttft_s": float("inf")}] * 5}
    batch({"id": 1, "history": SAME, "candidates": [failed] * 3})
    (found,) = answers(capsys)
    assert (found["verdict"], found["metrics"]["ttft"]["change"], found["metrics"]["tps"]["now"]) == (
        "regressed",
        None,
        0.0,
    )


def test_a_batch_comes_from_standard_input_too(monkeypatch, capsys):
    line = json.dumps({"id": 1, "history": SAME, "candidates": [record(99)]})
    monkeypatch.setattr("sys.stdin", io.StringIO(line + "\n"))
    assert main(["judge", "--batch", "-"]) == 0
    assert answers(capsys)[0]["verdict"] == "ok"


def test_candidates_of_two_tests_in_one_line_are_refused(batch, capsys):
    assert batch({"id": 1, "history": SAME, "candidates": [record(1), record(2, test="other")]}) == 2
    assert capsys.readouterr().err == "line 1: candidates of 2 tests, expected one\n"


def test_stored_runs_of_other_tests_are_no_history(batch, capsys):
    batch({"id": 1, "history": [record(run, test="other") for run in range(9)], "candidates": [record(1)]})
    assert answers(capsys)[0]["verdict"] == "new"


def test_only_the_newest_twenty_runs_count_whatever_their_place_in_the_list(batch, capsys):
    old = [record(run, 3.0) for run in range(5)]
    new = [record(run) for run in range(5, 25)]
    batch(*({"history": some, "candidates": [record(99)]} for some in (old + new, new + old)))
    assert [one["metrics"]["tps"]["now"] for one in answers(capsys)] == [pytest.approx(80.0)] * 2


def test_folders_are_judged_test_by_test(folders, capsys):
    others = [record(run, test="other") for run in range(10)]
    arguments = folders(
        SAME + others, [record(99, 1.25), record(98, 1.25), record(97, test="other"), record(1, test="third")]
    )
    assert main(arguments) == 1
    assert capsys.readouterr().out == (
        "chat: regressed\n"
        "  regressed  tps -20 % (80 /s -> 64 /s), margin 5 %, 2 runs against 10 stored\n"
        "  unsure     ttft +25 % (200 ms -> 250 ms), margin 20 %, 2 runs against 10 stored: inconclusive, "
        "changes below 7.12 % cannot be detected yet; conclusive with 3 runs\n"
        "other: ok\n"
        "  ok         tps +0 % (80 /s -> 80 /s), margin 5 %, 1 run against 10 stored\n"
        "  ok         ttft +0 % (200 ms -> 200 ms), margin 20 %, 1 run against 10 stored\n"
        "third: new\n"
        "  new        tps: no stored run to compare with\n"
        "  new        ttft: no stored run to compare with\n"
    )


def test_notes_and_missing_data_are_said(folders, capsys):
    arguments = folders([record(1)], [record(99), record(5, requests=0, test="empty")])
    assert main([*arguments, "--metric", "tps"]) == 0
    assert capsys.readouterr().out == (
        "chat: unsure\n"
        "  unsure     tps +0 % (80 /s -> 80 /s), margin 5 %, 1 run against 1 stored: inconclusive, "
        "changes below 16.9 % cannot be detected yet; conclusive with 2 stored runs\n"
        "             with one stored run only changes of 20 % and more are detectable\n"
        "empty: unsure\n"
        "  unsure     tps: a candidate run has no data\n"
    )


def test_full_run_records_are_read_as_they_are_stored(folders, capsys):
    usual = one_after_another(10)
    late = [slower(one, 2) for one in usual]
    history = [run_of(*usual, test="t") for _ in range(6)]
    arguments = folders([encode_run(run) for run in history], [encode_run(run_of(*late, test="t"))] * 3)
    assert main([*arguments, "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["test"], found["verdict"], sorted(found["metrics"])) == ("t", "regressed", ["tps", "ttft"])
    assert found["metrics"]["ttft"]["change"] == pytest.approx(1.0, abs=1e-3)


def test_a_store_is_a_folder_of_runs(tmp_path, capsys):
    usual = one_after_another(10)
    late = [slower(one, 2) for one in usual]
    stored, new = DirectoryStore(tmp_path / "stored"), DirectoryStore(tmp_path / "new")
    for number in range(6):
        stored.add(msgspec.structs.replace(run_of(*usual, test="t"), id=f"r{number}"))
        stored.add(msgspec.structs.replace(run_of(*late, test="t"), id=f"s{number}"), RunKind.REGRESSED)
    stored.accept("t", why="tried", who="bob", at=1.0)
    new.add(msgspec.structs.replace(run_of(*usual, test="t"), id="n"))
    assert main(["judge", "--history", str(stored.root), "--candidates", str(new.root), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["metrics"]["tps"]["stored"]) == ("ok", 6)


def test_runs_as_plain_json_are_read_in_a_batch(batch, capsys):
    run = msgspec.to_builtins(run_of(*one_after_another(5), test="t"))
    stored = json.loads(encode_run(run_of(*one_after_another(5), test="t")))
    batch(
        {"history": [run] * 3 + [stored] * 3, "candidates": [run]},
        {"history": [run], "candidates": [run | {"samples": 3}]},
    )
    found = answers(capsys)
    assert [one["verdict"] for one in found] == ["ok", "unsure"]
    assert found[0]["metrics"]["tps"]["stored"] == 6
    assert found[1]["error"].startswith("candidates[0]: ")


def test_damaged_files_are_named_and_the_rest_is_judged(folders, capsys):
    damaged = (
        encode_run(run_of(*one_after_another(5), test="chat")).replace(b'"run"', b'"rum"').replace(b"chat", b"cha")
    )
    arguments = folders([*SAME[:6], b"{", damaged, json.dumps(SAME[6:8]).encode()], [record(99)])
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out.startswith("chat: ok\n  ok         tps +0 % (80 /s -> 80 /s), margin 5 %, 1 run against 8 stored\n")
    lines = err.splitlines()
    assert len(lines) == 2
    assert "run-6.json: Expecting property name" in lines[0]
    assert "run-7.json: record 1 is damaged or foreign" in lines[1]


def test_margins_metrics_and_the_number_of_runs_are_options(batch, capsys):
    line = {"history": SAME, "candidates": [record(99, 1.1)]}
    batch(line, options=["--max-runs", "1"])
    batch(line, options=["--margin", "tps=20%"])
    batch(line, options=["--metric", "latency", "--metric", "ttft"])
    found = answers(capsys)
    assert [one["verdict"] for one in found] == ["regressed", "ok", "unsure"]
    assert sorted(found[2]["metrics"]) == ["latency", "ttft"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["judge"], "give --history DIR and --candidates DIR, or --batch FILE"),
        (["judge", "--history", "x"], "give --history DIR and --candidates DIR, or --batch FILE"),
        (
            ["judge", "--batch", "-", "--history", "x"],
            "--batch brings its own history and candidates: leave out --history and --candidates",
        ),
        (["judge", "--batch", "no-such-file"], "--batch no-such-file: No such file or directory"),
        (["judge", "--history", "no-such", "--candidates", "no-such"], "--history no-such: there is no such folder"),
        (["judge", "--batch", "-", "--max-runs", "0"], "--max-runs 0: expected 1 or more"),
        (["judge", "--batch", "-", "--margin", "5%"], "--margin '5%': expected METRIC=PERCENT, for example tps=5%"),
    ],
)
def test_wrong_options_are_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"pytest-ollama-perf: {message}\n"


def test_a_metric_without_history_is_refused(capsys):
    assert main(["judge", "--batch", "-", "--metric", "tsp"]) == 2
    assert capsys.readouterr().err.endswith(".p50 .p90 .p95 .p99; did you mean 'tps'?\n")


def test_an_empty_folder_of_candidates_is_an_error(folders, capsys):
    assert main(folders(SAME, [])) == 2
    assert capsys.readouterr().err.endswith("candidates: no *.json file in it\n")


def test_histories_of_one_run_to_many_are_never_mistaken_for_a_regression(batch, capsys):
    lines = [
        {"id": count, "history": records(count, seed=count), "candidates": [record(99)] * 3} for count in range(1, 26)
    ]
    assert batch(*lines) == 0
    assert "regressed" not in {one["verdict"] for one in answers(capsys)}


def test_a_history_of_damaged_files_alone_is_not_taken_for_none(folders, capsys):
    assert main(folders([b"{", b"garbage"], [record(99)])) == 2
    assert "the history cannot be read, which is not the same as none: " in capsys.readouterr().err


@pytest.mark.parametrize(("field", "value"), [("eval_tps", -84.1), ("ttft_s", -1), ("eval_tps", "Infinity")])
def test_negative_and_infinite_numbers_are_refused(tmp_path, capsys, field, value):
    request = {"eval_tps": 84.1, "ttft_s": 0.18, "latency_s": 0.9} | {field: value}
    text = json.dumps({"test": "chat", "run": 1, "requests": [request]}).replace('"Infinity"', "Infinity")
    for folder in ("history", "candidates"):
        (tmp_path / folder).mkdir()
    (tmp_path / "history" / "a.json").write_text(json.dumps({"test": "chat", "run": 0, "requests": []}))
    (tmp_path / "candidates" / "b.json").write_text(text)
    options = ["--history", str(tmp_path / "history"), "--candidates", str(tmp_path / "candidates")]
    assert main(["judge", *options]) == 2
    assert f"requests[0].{field} must be null or a finite number of at least 0" in capsys.readouterr().err
