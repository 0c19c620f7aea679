"""What every store promises, whoever keeps the runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_makers import FINGERPRINT, TEST, make_run

from pytest_ollama_perf.analysis.epochs import Acceptance, RunKind, StoredRuns, select_current_epoch
from pytest_ollama_perf.core import StoreError
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.workload import Workload, compute_identity
from pytest_ollama_perf.store import open_store
from pytest_ollama_perf.store.base import Store
from pytest_ollama_perf.store.files import encode_checked
from pytest_ollama_perf.store.record import decode_run, encode_run

HERE = Path(__file__).parent


def test_postgresql_is_one_of_them(request: pytest.FixtureRequest) -> None:
    if not os.environ.get("OLLAMA_PERF_TEST_POSTGRESQL"):
        pytest.skip("no PostgreSQL: run under tests/postgres.sh or set OLLAMA_PERF_TEST_POSTGRESQL")
    names = [item.name for item in request.session.items if item.path == request.path]
    assert any("[postgresql" in name for name in names) or len(names) == 1


def stored(run: Run) -> Run:
    return decode_run(encode_run(run), "x")


def ids(history: StoredRuns) -> list[str]:
    return [run.id for run in history.runs]


def fill(store: Store, names: str, kind: RunKind = RunKind.SAVED, start: float = 100.0, **changed: object) -> list[Run]:
    runs = [make_run(name, started_at=start + i, **changed) for i, name in enumerate(names)]
    for run in runs:
        store.add(run, kind)
    return runs


def test_an_empty_store_has_nothing_and_is_no_error(store: Store) -> None:
    assert store.read_history(TEST) == StoredRuns()
    assert store.read_pending(TEST) == StoredRuns()
    assert store.list_tests() == ()
    assert store.read_run("r1") is None


def test_a_run_comes_back_as_it_was_added(store: Store) -> None:
    run = make_run()
    store.add(run)
    assert store.read_history(TEST).runs == (stored(run),)
    assert store.read_run("r1") == stored(run)
    assert store.list_tests() == (TEST,)


def test_a_second_opening_sees_what_the_first_added(store: Store, place: str) -> None:
    fill(store, "ab")
    other = open_store(place)
    assert ids(other.read_history(TEST)) == ["a", "b"]
    other.close()


def test_the_history_is_the_newest_runs_newest_last(store: Store) -> None:
    for at in (5.0, 1.0, 4.0, 2.0, 3.0):
        store.add(make_run(f"at-{at:.0f}", started_at=at))
    assert ids(store.read_history(TEST)) == ["at-1", "at-2", "at-3", "at-4", "at-5"]
    assert ids(store.read_history(TEST, limit=2)) == ["at-4", "at-5"]
    assert ids(store.read_history(TEST, limit=None)) == ["at-1", "at-2", "at-3", "at-4", "at-5"]


def test_twenty_runs_are_enough_unless_asked_for_more(store: Store) -> None:
    for number in range(23):
        store.add(make_run(f"r{number:02}", started_at=float(number), requests=1, tokens=2))
    assert len(store.read_history(TEST).runs) == 20
    assert len(store.read_history(TEST, limit=22).runs) == 22


def test_tests_do_not_see_each_others_runs(store: Store) -> None:
    store.add(make_run("a", test="t.py::test[x]"))
    store.add(make_run("b", test="t.py::test[X]"))
    assert ids(store.read_history("t.py::test[x]")) == ["a"]
    assert store.list_tests() == ("t.py::test[X]", "t.py::test[x]")


def test_a_test_with_several_loads_has_a_history_of_each(store: Store) -> None:
    one, two = (Workload(model="m", concurrency=number) for number in (1, 2))
    fill(store, "abc", workload=one)
    fill(store, "def", workload=two)
    assert ids(store.read_history(TEST, identity=compute_identity(one), limit=2)) == ["b", "c"]
    assert sorted(ids(store.read_history(TEST))) == list("abcdef")


def test_adding_the_same_run_again_changes_nothing(store: Store) -> None:
    run = make_run()
    store.add(run)
    store.add(run)
    assert ids(store.read_history(TEST)) == ["r1"]


def test_a_run_is_never_changed(store: Store) -> None:
    store.add(make_run())
    with pytest.raises(StoreError, match=r"run r1 could not be saved: .* stored runs are immutable"):
        store.add(make_run(git_commit="other"))
    assert store.read_history(TEST).runs == (stored(make_run()),)


def test_regressed_runs_are_kept_apart(store: Store) -> None:
    fill(store, "ab")
    fill(store, "xy", RunKind.REGRESSED, start=200.0)
    assert ids(store.read_history(TEST)) == ["a", "b"]
    assert ids(store.read_pending(TEST)) == ["x", "y"]
    assert store.read_run("x") is not None


def test_accepting_moves_the_newest_regressed_session_into_the_history(store: Store) -> None:
    fill(store, "ab")
    fill(store, "vw", RunKind.REGRESSED, start=200.0, session="old-build")
    fill(store, "xy", RunKind.REGRESSED, start=300.0, session="new-build")
    accepted = store.accept(TEST, why="bigger model", who="ada", at=400.0)
    assert accepted == Acceptance(test=TEST, at=400.0, why="bigger model", who="ada", runs=("x", "y"))
    assert ids(store.read_history(TEST)) == ["a", "b", "x", "y"]
    assert store.read_history(TEST).acceptances == (accepted,)
    assert ids(store.read_pending(TEST)) == [], "what was passed over at an acceptance does not wait for the next one"
    assert store.accept(TEST, why="again", who="ada", at=500.0).runs == ()


def test_a_regression_after_an_acceptance_waits_for_its_own(store: Store) -> None:
    fill(store, "x", RunKind.REGRESSED, start=100.0)
    store.accept(TEST, why="one", who="", at=200.0)
    fill(store, "y", RunKind.REGRESSED, start=300.0)
    assert ids(store.read_pending(TEST)) == ["y"]
    assert store.accept(TEST, why="two", who="", at=400.0).runs == ("y",)
    assert [item.why for item in store.read_history(TEST).acceptances] == ["one", "two"]
    assert ids(store.read_history(TEST)) == ["x", "y"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    test=st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=500),
    run_id=st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=80),
)
def test_any_node_id_and_run_id_can_be_stored(store: Store, test: str, run_id: str) -> None:
    run = make_run(run_id, test=test, requests=1, tokens=2)
    if store.read_run(run_id) is None:
        store.add(run)
        assert stored(run) in store.read_history(test, limit=None).runs
        assert stored(run).test in store.list_tests()


@pytest.mark.parametrize(
    "test", ["a/../../x.py::t", "t.py::t[" + "é/" * 240 + "]", "CON", "..", "t.py::T::t[ü\n\x1b[31m]"]
)
def test_odd_node_ids_stay_inside_the_store(store: Store, test: str, tmp_path: Path) -> None:
    before = {path.name for path in tmp_path.parent.iterdir()}
    store.add(make_run("odd", test=test))
    assert ids(store.read_history(test)) == ["odd"]
    assert {path.name for path in tmp_path.parent.iterdir()} == before


WRITER = """
import sys
sys.path.insert(0, sys.argv[3])
from store_makers import make_run
from pytest_ollama_perf.store import open_store
store = open_store(sys.argv[1])
for number in range(5):
    store.add(make_run(f"w{sys.argv[2]}-{number}", started_at=float(number), requests=2, tokens=4))
    store.add(make_run(f"shared-{number}", started_at=100.0 + number, requests=2, tokens=4, seed=number))
"""


def test_many_processes_may_write_at_once(store: Store, place: str) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, place, str(n), str(HERE)]) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    history = store.read_history(TEST, limit=None)
    expected = {f"w{n}-{number}" for n in range(3) for number in range(5)} | {f"shared-{n}" for n in range(5)}
    assert {run.id for run in history.runs} == expected
    assert len(history.runs) == len(expected)
    assert history.damaged == ()


def test_a_damaged_run_is_named_and_the_rest_still_used(store: Store) -> None:
    runs = fill(store, "abcde")
    damage(store, runs[3])
    history = store.read_history(TEST, limit=3)
    assert ids(history) == ["b", "c", "e"], "an older run takes the place of the damaged one"
    assert len(history.damaged) == 1
    assert "is damaged or foreign" in history.damaged[0]
    assert "restore it, or run pytest-ollama-perf repair" in history.damaged[0]


def test_only_damaged_runs_are_not_the_same_as_none(store: Store) -> None:
    (run,) = fill(store, "a")
    damage(store, run)
    history = store.read_history(TEST)
    assert history.runs == ()
    assert len(history.damaged) == 1


def compare_ids(store: Store, run: Run, *, first: int, newest: int) -> list[str]:
    return ids(store.read_comparable(TEST, run, first=first, newest=newest))


def test_the_first_and_the_newest_comparable_runs_are_read(store: Store) -> None:
    other = msgspec.structs.replace(FINGERPRINT, gpu="NVIDIA L4")
    runs = fill(store, "abcdefgh")
    fill(store, "ABCDEF", start=200.0, fingerprint=other)
    found = store.read_comparable(TEST, runs[0], first=2, newest=3)
    assert ids(found) == ["a", "b", "f", "g", "h"], "runs on another GPU are skipped, however many there are"
    assert found.total == 14
    assert compare_ids(store, runs[0], first=20, newest=20) == list("abcdefgh")


def test_an_epoch_begins_with_its_acceptance_however_few_runs_are_read(store: Store) -> None:
    fill(store, "abcd")
    fill(store, "xy", RunKind.REGRESSED, start=200.0, session="s")
    store.accept(TEST, why="agreed", who="", at=300.0)
    last = fill(store, "efghijk", start=400.0)[-1]
    assert compare_ids(store, last, first=2, newest=1) == ["x", "y", "k"]
    assert compare_ids(store, last, first=20, newest=20) == list("xyefghijk")


def test_an_acceptance_of_another_load_is_left_out(store: Store) -> None:
    one, two = (Workload(model="m", concurrency=number) for number in (1, 2))
    fill(store, "abc", workload=one)
    fill(store, "x", RunKind.REGRESSED, start=200.0, workload=two)
    store.accept(TEST, why="two", who="", at=300.0)
    assert store.read_history(TEST, identity=compute_identity(one)).acceptances == ()
    assert [one.why for one in store.read_history(TEST, identity=compute_identity(two)).acceptances] == ["two"]


def test_an_unreadable_acceptance_is_told_from_a_damaged_run(store: Store) -> None:
    runs = fill(store, "ab")
    store.accept(TEST, why="x", who="y", at=150.0)
    damage(store, runs[0])
    assert store.read_history(TEST).unreadable_acceptances == ()
    damage_acceptance(store)
    history = store.read_history(TEST)
    assert len(history.unreadable_acceptances) == 1
    assert len(history.damaged) == 2
    assert len(store.read_comparable(TEST, runs[1], first=1, newest=1).unreadable_acceptances) == 1


def test_repair_keeps_the_epoch_of_an_unreadable_acceptance(store: Store) -> None:
    runs = fill(store, "ab")
    store.accept(TEST, why="x", who="y", at=150.0)
    fill(store, "cd", start=200.0)
    damage(store, runs[0])
    damage_acceptance(store)
    assert len(store.find_damage()) == 2
    assert len(store.find_damage()) == 2, "looking changes nothing"
    done = store.find_damage(repair=True)
    assert [each.action.split()[0] for each in done] == ["moved", "moved"]
    assert store.find_damage() == ()
    history = store.read_history(TEST)
    assert history.damaged == ()
    assert [run.id for run in select_current_epoch(history)] == ["c", "d"]
    assert "repair" in history.acceptances[0].why


def test_repair_leaves_what_a_newer_version_wrote(store: Store) -> None:
    fill(store, "a")
    store.accept(TEST, why="x", who="y", at=150.0)
    damage_acceptance(store, encode_checked({"schema": 9}))
    (found,) = store.find_damage(repair=True)
    assert "upgrade" in found.action
    assert len(store.read_history(TEST).unreadable_acceptances) == 1


def test_old_runs_are_deleted_by_time(store: Store) -> None:
    fill(store, "abc")
    assert store.prune(TEST, before=102.0, dry_run=True) == 2
    assert ids(store.read_history(TEST)) == ["a", "b", "c"]
    assert store.prune(TEST, before=102.0) == 2
    assert ids(store.read_history(TEST)) == ["c"]


def test_the_newest_builds_of_every_load_are_kept(store: Store) -> None:
    one, two = (Workload(model="m", concurrency=number) for number in (1, 2))
    fill(store, "ab", workload=one, session="s1")
    fill(store, "cd", workload=one, session="s2", start=200.0)
    fill(store, "e", workload=two, session="s0")
    assert store.prune(TEST, builds=1) == 2
    assert sorted(ids(store.read_history(TEST))) == ["c", "d", "e"]


def damage_acceptance(store: Store, data: bytes = b"{}") -> None:
    """Replace the only acceptance, behind the store's back."""
    if hasattr(store, "root"):
        (file,) = store.root.glob("*/epochs/*.json")
        file.write_bytes(data)
        return
    store._database.execute("UPDATE ollama_perf_acceptances SET record = ?", (data,))  # type: ignore[attr-defined]


def damage(store: Store, run: Run) -> None:
    """Cut the record of ``run`` in the middle, behind the store's back."""
    if hasattr(store, "root"):
        (file,) = store.root.glob(f"*/*-{run.id}.json")
        file.write_bytes(file.read_bytes()[:-200])
        return
    store._database.execute(  # type: ignore[attr-defined]
        "UPDATE ollama_perf_runs SET record = ? WHERE id = ?", (encode_run(run)[:-200], run.id)
    )
