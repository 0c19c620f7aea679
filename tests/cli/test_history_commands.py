"""history, show, accept, trend and compare, as a person types them."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import pytest
from run_makers import one_after_another, run_of

from pytest_ollama_perf import cli
from pytest_ollama_perf.analysis.epochs import RunKind
from pytest_ollama_perf.core.run import Fingerprint, Run
from pytest_ollama_perf.core.sample import Sample
from pytest_ollama_perf.core.workload import Workload
from pytest_ollama_perf.store import open_store
from pytest_ollama_perf.store.record import encode_run

CHAT = "tests/test_llm.py::test_chat_speed"
PRINT = Fingerprint(
    server_version="0.32.10",
    model="llama3.2:3b",
    model_digest="ab" * 32,
    gpu="NVIDIA L4",
    driver="550",
    vram_share=1.0,
    server_env={"OLLAMA_NUM_PARALLEL": "4"},
    client={"python": "3.11"},
)
DAY = 86_400


def whole(sample: Sample) -> Sample:
    """Return ``sample`` with whole nanoseconds."""
    counters = msgspec.structs.replace(
        sample.counters,
        eval_duration_ns=round(sample.counters.eval_duration_ns or 0),
        total_duration_ns=round(sample.counters.total_duration_ns or 0),
    )
    times = {name: round(getattr(sample, name)) for name in ("sent_ns", "first_token_ns", "first_answer_ns", "done_ns")}
    return msgspec.structs.replace(sample, counters=counters, chunk_ns=tuple(map(round, sample.chunk_ns)), **times)


class Shelf:
    """A store in a folder, and the command that looks into it."""

    def __init__(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.place = place
        self._capsys = capsys

    def put(
        self, run_id: str, step: float = 10.0, kind: RunKind = RunKind.SAVED, requests: int = 20, **fields: Any
    ) -> Run:
        """Store a run with a token every ``step`` ms."""
        fields = {
            "fingerprint": PRINT,
            "id": run_id,
            "test": CHAT,
            "git_commit": "c0ffee" + "0" * 34,
            "session": run_id,
        } | fields
        run = msgspec.structs.replace(run_of(*map(whole, one_after_another(requests, step=step))), **fields)
        open_store(str(self.place)).add(run, kind)
        return run

    def many(self, count: int, step: float = 10.0, start: int = 1, **fields: Any) -> None:
        """Store ``count`` runs, one a day, with a spread of about 1 %."""
        for number in range(start, start + count):
            wobble = 1 + 0.01 * ((number * 7) % 5 - 2) / 2
            self.put(f"r{number:02}", step * wobble, started_at=float(number * DAY), **fields)

    def call(self, *words: str, status: int = 0) -> str:
        """Return what the command prints; its exit status must be ``status``."""
        place = () if "--store" in words else ("--store", str(self.place))
        assert cli.main([*words, *place]) == status
        return self._capsys.readouterr().out

    def json(self, *words: str, status: int = 0) -> Any:
        return json.loads(self.call(*words, "--json", status=status))

    def error(self, *words: str) -> str:
        """Return what the command says on standard error when it refuses."""
        place = () if "--store" in words else ("--store", str(self.place))
        assert cli.main([*words, *place]) == 2
        captured = self._capsys.readouterr()
        assert captured.err.startswith("pytest-ollama-perf: ")
        return captured.err.removeprefix("pytest-ollama-perf: ").rstrip("\n")

    def warnings(self, *words: str, status: int = 0) -> str:
        assert cli.main([*words, "--store", str(self.place)]) == status
        return self._capsys.readouterr().err


@pytest.fixture
def shelf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shelf:
    return Shelf(tmp_path / "history", capsys)


def words(text: str) -> str:
    return " ".join(text.split())


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_history_of_one_test(shelf: Shelf) -> None:
    shelf.put("aaaaaaaaaa", 10.0, started_at=1 * DAY)
    shelf.put("bbbbbbbbbb", 12.5, started_at=2 * DAY)
    other = msgspec.structs.replace(PRINT, driver="570")
    shelf.put("cccccccccc", 5.0, started_at=3 * DAY, fingerprint=other)
    shelf.put("dddddddddd", 20.0, RunKind.REGRESSED, started_at=4 * DAY)
    # Versions of rich pad the first columns differently.
    assert [" ".join(line.split()) for line in lines(shelf.call("history", "test_chat_speed"))] == [
        "tests/test_llm.py::test_chat_speed",
        "started (UTC) commit kind run tps ttft p50 latency",
        "1970-01-02 00:00 c0ffee0 saved aaaaaaaa 110 /s 100 ms 200 ms",
        "1970-01-03 00:00 c0ffee0 saved bbbbbbbb 88 /s 100 ms 225 ms",
        "-- driver 550 -> 570",
        "1970-01-04 00:00 c0ffee0 saved cccccccc 220 /s 100 ms 150 ms",
        "regressed, not part of the baseline until accepted (1):",
        "1970-01-05 00:00 c0ffee0 regressed dddddddd 55 /s 100 ms 300 ms",
        "tps ▂▁█ 88 /s .. 220 /s",
        "ttft p50 ▅▅▅ 100 ms .. 100 ms",
        "latency p50 ▆█▁ 150 ms .. 225 ms",
    ]


def test_one_run_has_no_sparkline(shelf: Shelf) -> None:
    shelf.put("a")
    assert len(shelf.call("history", "test_chat_speed").splitlines()) == 3


def test_history_of_every_test(shelf: Shelf) -> None:
    shelf.many(3)
    shelf.put(
        "x1", test="tests/deep/folder/test_more.py::TestClass::test_with_a_long_name[llama3.2:3b-4]", started_at=9 * DAY
    )
    assert lines(shelf.call("history")) == [
        "test                runs  newest (UTC)     tps       ttft p50",
        "tests/d....2:3b-4]     1    1970-01-10  110 /s  ▅      100 ms",
        "tests/t...at_speed     3    1970-01-04  111 /s  ▆▁█    100 ms",
    ]


@pytest.mark.parametrize("command", [["history"], ["history", "test_chat_speed"], ["trend"], ["show", "r01"]])
def test_everything_fits_80_columns_without_colour(shelf: Shelf, command: list[str]) -> None:
    shelf.many(24)
    shelf.put("x", 99.0, test="tests/" + "very_" * 30 + "long.py::test_" + "long_" * 20)
    out = shelf.call(*command)
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_history_as_json(shelf: Shelf) -> None:
    shelf.put("a", 10.0, started_at=1.5)
    shelf.put("b", 20.0, RunKind.REGRESSED, started_at=2.5)
    shelf.call("accept", "test_chat_speed", "--why", "because", "--who", "ada")
    found = shelf.json("history", "test_chat_speed")
    assert found["test"] == CHAT
    first, second = found["runs"]
    assert first == {
        "load": "",
        "run": "a",
        "started_at": 1.5,
        "git_commit": "c0ffee" + "0" * 34,
        "kind": "saved",
        "epoch_starts": [],
        "requests": 20,
        "ok": 20,
        "tps": pytest.approx(110.0),
        "ttft_p50_s": 0.1,
        "latency_p50_s": pytest.approx(0.2),
    }
    assert second["kind"] == "accepted"
    assert "because" in second["epoch_starts"][0]
    assert second["epoch_starts"][0].startswith("accepted ")
    assert (found["regressed"], found["damaged"]) == ([], [])
    assert found["acceptances"][0]["who"] == "ada"
    assert [one["test"] for one in shelf.json("history")] == [CHAT]


def test_a_limit_shows_the_newest(shelf: Shelf) -> None:
    shelf.many(5)
    assert [run["run"] for run in shelf.json("history", "test_chat_speed", "--limit", "2")["runs"]] == ["r04", "r05"]
    assert shelf.error("history", "--limit", "0") == "--limit 0: expected 1 or more"


def test_an_empty_history_says_how_to_fill_it(shelf: Shelf) -> None:
    say = f"no run is stored in {shelf.place} yet: run pytest with --ollama-save"
    assert words(shelf.call("history")) == words(say)
    assert words(shelf.call("trend")) == words(say)
    assert shelf.error("history", "test_x") == say
    assert shelf.json("history") == []


def test_a_test_is_known_by_any_unique_end(shelf: Shelf) -> None:
    shelf.put("a", test="a/test_x.py::T::test_one[1]")
    shelf.put("b", test="b/test_x.py::T::test_one[2]")
    shelf.put("c", test="b/test_x.py::test_two[3]")
    for words in ("a/test_x.py::T::test_one[1]", "test_one[1]", "T::test_one[1]"):
        assert shelf.json("history", words)["test"] == "a/test_x.py::T::test_one[1]"
    for words in ("test_two", "test_x.py::test_two", "test_two[3]"):
        assert shelf.json("history", words)["test"] == "b/test_x.py::test_two[3]"
    assert shelf.error("history", "test_one") == (
        "'test_one' matches 2 tests; give one of them: a/test_x.py::T::test_one[1], b/test_x.py::T::test_one[2]"
    )
    assert (
        shelf.error("history", "est_two[3]")
        == f"no runs of a test 'est_two[3]' in {shelf.place}; did you mean 'test_two[3]'?"
    )
    assert shelf.error("history", "zzz").startswith(f"no runs of a test 'zzz' in {shelf.place}; it has a/test_x.py::")


def test_damaged_records_are_named_beside_the_rest(shelf: Shelf) -> None:
    shelf.many(3)
    victim = next(shelf.place.glob("*/*-r02.json"))
    victim.write_bytes(victim.read_bytes()[:100])
    for command in (["history"], ["history", "test_chat_speed"], ["trend"]):
        assert f"{victim.name} is damaged or foreign" in shelf.warnings(*command, status=2)
    found = shelf.json("history", "test_chat_speed", status=2)
    assert [run["run"] for run in found["runs"]] == ["r01", "r03"]
    assert len(found["damaged"]) == 1


def test_show_prints_the_run_whole(shelf: Shelf) -> None:
    shelf.put("0123456789abcdef", 10.0, started_at=1.0, load_time_s=1.25)
    assert lines(shelf.call("show", "01234"))[:13] == [
        CHAT,
        "run         0123456789abcdef",
        "started     1970-01-01 00:00 UTC",
        "commit      c0ffee0000000000000000000000000000000000",
        "session     0123456789abcdef",
        "server      ollama 0.32.10, model llama3.2:3b, digest abababababab, gpu NVIDIA",
        "            L4, driver 550, gpu offload 100 %, OLLAMA_NUM_PARALLEL 4",
        "load        endpoint generate, concurrency 1, requests 20, prompt_words 16,",
        "            num_predict 11",
        "client      python 3.11",
        "requests    20 measured, 20 ok, 1 warm-up dropped",
        "model load  1.25 s",
        "metric             value     p50     p95     p99     min     max",
    ]


def test_show_as_json_has_every_number(shelf: Shelf) -> None:
    shelf.put("abc", 10.0)
    found = shelf.json("show", "abc")
    assert (found["id"], found["test"], found["fingerprint"]["gpu"]) == ("abc", CHAT, "NVIDIA L4")
    assert found["summary"]["metrics"]["tps"]["value"] == pytest.approx(110.0)
    assert found["summary"]["metrics"]["ttft"]["p95"] == pytest.approx(0.1)
    assert "samples" not in found
    assert len(found["identity"]) == 16


def test_show_reads_a_record_from_anywhere(shelf: Shelf, tmp_path: Path) -> None:
    file = tmp_path / "artifact.json"
    file.write_bytes(encode_run(shelf.put("abc")))
    assert shelf.json("show", str(file), "--store", str(tmp_path / "none"))["id"] == "abc"
    file.write_bytes(b"{}")
    assert shelf.error("show", str(file)).startswith(f"{file} is damaged or foreign")


def test_a_run_without_a_success_has_no_numbers(shelf: Shelf) -> None:
    run = run_of(test=CHAT)
    open_store(str(shelf.place)).add(run)
    assert "no request succeeded" in shelf.call("show", "r")
    assert "-" in shelf.call("history", "test_chat_speed")


def test_show_needs_one_run(shelf: Shelf) -> None:
    shelf.put("abc1")
    shelf.put("abc2")
    assert shelf.error("show", "abc") == "2 run ids begin with 'abc': abc1, abc2"
    assert shelf.error("show", "zz") == (
        f"no run 'zz' in {shelf.place}: give the id that history shows, or the file of a record"
    )
    assert shelf.error("show", "").startswith("no run ''")


def test_accept_starts_an_epoch_with_the_regressed_runs(shelf: Shelf) -> None:
    shelf.many(3)
    for number in (5, 6):
        shelf.put(f"bad{number}", 15.0, RunKind.REGRESSED, started_at=float(number * DAY), session="build")
    out = shelf.call("accept", "test_chat_speed", "--why", "bigger model")
    assert out.split() == (f"{CHAT}: a new epoch, which starts with the 2 runs of the newest regressed build").split()
    shown = shelf.call("history", "test_chat_speed")
    assert "bigger model" in shown
    assert "regressed" not in shown
    assert shown.count("accepted") == 3


def test_accept_without_a_regression_says_what_happens(shelf: Shelf) -> None:
    shelf.many(1)
    assert "the next saved run is its first" in words(shelf.call("accept", "test_chat_speed", "--why", "x"))


def test_accept_as_json(shelf: Shelf) -> None:
    shelf.put("a", kind=RunKind.REGRESSED)
    found = shelf.json("accept", CHAT, "--why", "x", "--who", "ada")
    assert (found["test"], found["why"], found["who"], found["runs"]) == (CHAT, "x", "ada", ["a"])


def test_accept_needs_a_reason_and_a_test(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    shelf.many(1)
    assert shelf.error("accept", "test_chat_speed", "--why", " ").startswith("--why is empty")
    assert shelf.error("accept", "test_chatspeed", "--why", "x").endswith("did you mean 'test_chat_speed'?")
    with pytest.raises(SystemExit):
        cli.main(["accept", "test_chat_speed"])
    assert "--why" in capsys.readouterr().err


def test_trend_finds_slow_drift_and_stays_green(shelf: Shelf) -> None:
    shelf.many(20)
    shelf.many(15, 10.5, start=21)
    tps, ttft = shelf.json("trend")
    assert (tps["metric"], tps["warns"], tps["runs"], tps["missing"]) == ("tps", True, 35, 0)
    assert tps["slowdown"] == pytest.approx(0.05, abs=0.01)
    assert tps["since"] == 21 * DAY
    assert (ttft["metric"], ttft["warns"], ttft["text"]) == ("ttft", False, "no drift above 3.76 %")
    out = words(shelf.call("trend", "test_chat_speed"))
    assert "slower since 1970-01-22" in out
    assert "no drift above 3.76 %" in out


def test_trend_says_how_many_runs_are_missing(shelf: Shelf) -> None:
    shelf.many(3)
    assert "not enough runs yet (24 more runs)" in shelf.call("trend", "--metric", "latency")
    assert shelf.error("trend", "--metric", "latenzy").endswith("did you mean 'latency'?")


def test_history_and_trend_keep_the_levels_of_a_sweep_apart(shelf: Shelf) -> None:
    for level, step in ((1, 10.0), (4, 20.0)):
        load = {"model": "m", "concurrency": level, "num_predict": 11, "requests": 20}
        for number in range(3):
            shelf.put(f"c{level}-{number}", step, started_at=float(number * DAY), workload=Workload(**load))
    out = words(shelf.call("history", "test_chat_speed"))
    assert "concurrency=1: started" in out
    assert "concurrency=4: started" in out
    rows = [line.split() for line in lines(shelf.call("history"))[1:]]
    assert [(row[1], row[2], row[4]) for row in rows] == [("concurrency=1", "3", "110"), ("concurrency=4", "3", "55")]
    assert {row["load"]: row["runs"] for row in shelf.json("trend")} == {"concurrency=1": 3, "concurrency=4": 3}
    assert [run["load"] for run in shelf.json("history", "test_chat_speed")["runs"]][::3] == [
        "concurrency=1",
        "concurrency=4",
    ]
    assert "concurrency=4" in shelf.call("trend")


def test_history_and_trend_keep_cold_and_warm_apart(shelf: Shelf) -> None:
    for cold in (True, False):
        load = Workload(model="m", num_predict=11, requests=1 if cold else 20, cold=cold)
        shelf.put(f"cold-{cold}", started_at=float(cold), workload=load)
    assert [row["load"] for row in shelf.json("trend", "--metric", "ttft")] == ["warm", "cold"]


def test_repair_moves_damaged_records_and_lists_them(shelf: Shelf) -> None:
    shelf.many(3)
    victim = next(shelf.place.glob("*/*-r02.json"))
    victim.write_bytes(victim.read_bytes()[:100])
    out = words(shelf.call("repair", "--dry-run", status=2))
    assert f"{victim.name} is damaged".replace(" ", "") in out.replace(" ", "")  # long paths are wrapped
    assert out.endswith("1 unreadable record")
    assert victim.exists()
    assert shelf.call("repair").endswith("1 repaired\n")
    assert shelf.call("repair") == "0 unreadable records\n"
    assert not victim.exists()
    assert [path.name for path in shelf.place.glob("*/damaged/*")] == [victim.name]
    shelf.call("history")


def test_prune_keeps_the_newest_builds(shelf: Shelf) -> None:
    shelf.many(5)
    assert shelf.call("prune", "--keep", "2", "--dry-run").endswith("3 runs would be deleted\n")
    assert shelf.call("prune", "test_chat_speed", "--keep", "2").endswith("3 runs deleted\n")
    assert [run["run"] for run in shelf.json("history", "test_chat_speed")["runs"]] == ["r04", "r05"]
    assert shelf.json("prune", "--days", "1e4") == {CHAT: 2}, "they started in 1970"
    assert "expected 1 or more" in shelf.error("prune", "--keep", "0")
    assert "--days inf: expected" in shelf.error("prune", "--days", "inf")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_an_output_that_cannot_be_written_is_one_line(shelf: Shelf) -> None:
    shelf.many(2)
    command = [sys.executable, "-m", "pytest_ollama_perf", "history", "--store", str(shelf.place)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "pytest-ollama-perf: output: No space left on device\n")


@pytest.mark.parametrize("at", [1e300, -1e300, 1e18, -5.0])
def test_an_absurd_time_is_shown_as_unknown(shelf: Shelf, at: float) -> None:
    shelf.put("a", started_at=at)
    for command in (["history"], ["history", "test_chat_speed"], ["show", "a"], ["trend"], ["prune", "--keep", "1"]):
        shelf.call(*command)


def test_two_runs_are_compared(shelf: Shelf) -> None:
    shelf.put("fast", 10.0)
    shelf.put("slow", 20.0)
    assert shelf.call("compare", "fast", "fast").startswith(f"unsure: {CHAT}\n"), "one run cannot show 5 %"
    assert shelf.call("compare", "fast", "fast", "--margin", "tps=30%", "--margin", "ttft=50%").startswith("ok: ")
    assert shelf.call("compare", "fast", "fast", "--strict", status=1)
    shown = lines(shelf.call("compare", "fast", "slow", status=1))
    assert shown[:3] == [
        f"regressed: {CHAT}",
        "  metric       A       B  change             95 % CI  margin    verdict",
        "  tps     110 /s   55 /s   -50 %  -54.3 % .. -45.3 %     5 %  regressed",
    ]
    assert shelf.call("compare", "slow", "fast").startswith(f"faster: {CHAT}\n")


def test_margins_and_metrics_are_the_callers(shelf: Shelf) -> None:
    shelf.put("fast", 10.0)
    shelf.put("slow", 20.0)
    found = shelf.json("compare", "fast", "slow", "--metric", "latency", "--margin", "latency=200%")
    assert [row["metric"] for row in found["tests"][0]["metrics"]] == ["latency"]
    assert found["verdict"] == "ok"
    assert "did you mean 'latency'" in shelf.error("compare", "fast", "slow", "--metric", "latenzy")
    assert "expected METRIC=PERCENT" in shelf.error("compare", "fast", "slow", "--margin", "5%")


def test_two_stores_are_compared_test_by_test(shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shelf.many(6)
    shelf.many(6, test="t.py::test_same")
    new = Shelf(tmp_path / "new", capsys)
    for number in range(3):
        new.put(f"n{number}", 12.0, session="build", started_at=float(number))
        new.put(f"s{number}", 10.0, session="build", started_at=float(number), test="t.py::test_same")
    new.put("only", test="t.py::test_new")
    found = shelf.json("compare", str(shelf.place), str(new.place), status=1)
    assert found["verdict"] == "regressed"
    by_test = {one["test"]: one for one in found["tests"]}
    assert {test: one["verdict"] for test, one in by_test.items()} == {
        CHAT: "regressed",
        "t.py::test_same": "ok",
        "t.py::test_new": "new",
    }
    assert by_test[CHAT]["before"] == [f"r{number:02}" for number in range(1, 7)]
    assert by_test[CHAT]["after"] == ["n0", "n1", "n2"]
    assert "no run of this test in A" in shelf.call("compare", str(shelf.place), str(new.place), status=1)


def test_another_server_is_named_but_compared(shelf: Shelf) -> None:
    other = msgspec.structs.replace(PRINT, gpu="NVIDIA T4")
    shelf.put("a")
    shelf.put("b", fingerprint=other)
    assert "changed: gpu NVIDIA L4 -> NVIDIA T4" in shelf.call("compare", "a", "b")


def test_what_may_not_be_compared_is_an_error(shelf: Shelf) -> None:
    newer = msgspec.structs.replace(PRINT, server_version="0.33.3")
    shelf.put("a")
    shelf.put("b", fingerprint=newer)
    shelf.put("c", requests=30)
    assert "meaning of the counters 0.30.1-0.33.2 -> from 0.33.3" in shelf.call("compare", "a", "b", status=2)
    assert "may not be compared: requests 20 -> 30" in shelf.call("compare", "a", "c", status=2)


def test_nothing_to_compare_is_never_green(shelf: Shelf, tmp_path: Path) -> None:
    shelf.many(1)
    (tmp_path / "empty").mkdir()
    assert "nothing to compare" in shelf.error("compare", str(shelf.place), str(tmp_path / "empty"))
    assert "no run of this test in A" in shelf.call("compare", str(tmp_path / "empty"), str(shelf.place), status=2)
    assert shelf.error("compare", str(shelf.place), "r01") == "A is a store and B is a run: give two runs or two stores"


def test_a_password_in_an_address_is_not_repeated(shelf: Shelf) -> None:
    shelf.many(1)
    url = "postgresql://ada:hunter2@127.0.0.1:1/perf"
    for words in (["compare", url, "r01"], ["compare", "r01", url], ["compare", url, url], ["history", "--store", url]):
        assert "hunter2" not in shelf.error(*words)


def test_a_damaged_side_is_an_error_though_the_rest_is_judged(shelf: Shelf, tmp_path: Path) -> None:
    shelf.many(4)
    victim = next(shelf.place.glob("*/*-r02.json"))
    victim.write_bytes(b"")
    assert victim.name in shelf.warnings("compare", str(shelf.place), str(shelf.place), status=2)


def test_help_names_every_command() -> None:
    command = [sys.executable, "-m", "pytest_ollama_perf", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in ("history", "show", "accept", "trend", "compare"):
        assert f"\n    {name}" in done.stdout


def test_commands_start_without_what_only_judging_needs() -> None:
    script = """
import sys
from pytest_ollama_perf import cli
cli.build_parser(only="")
print(sorted({'scipy', 'numpy', 'rich', 'sqlalchemy', 'httpx'} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_terminal_without_unicode_gets_plain_bars(shelf: Shelf) -> None:
    shelf.many(3)
    words = ["-m", "pytest_ollama_perf", "history", "test_chat_speed", "--store", str(shelf.place)]
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, check=True, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    )
    assert b"?" not in done.stdout
    assert any(line.startswith(b"tps  ") for line in done.stdout.splitlines())


def test_the_command_tells_its_version(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"pytest-ollama-perf {version('pytest-ollama-perf')}\n"
