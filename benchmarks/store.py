"""How long does reading the history of one test take in a store of 10 000 runs?

    python benchmarks/store.py [--runs 10000] [--repeats 15] [--postgresql URL]

Each store holds runs of 50 requests of 64 tokens, 20 runs per test, and one test with 1 000 runs. The benchmark reads
the newest 20 runs of a test, cold (the first read by this process; the file cache may be warm) and repeatedly.
PostgreSQL is measured if ``OLLAMA_PERF_TEST_POSTGRESQL`` or ``--postgresql`` names one (its tables ``ollama_perf_*``
are dropped). The exit status is 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "store"))

from store_makers import make_run

from pytest_ollama_perf.store import open_store
from pytest_ollama_perf.store.base import Store
from pytest_ollama_perf.store.record import decode_run, encode_run

TARGET_MS = 50.0
TARGET_BYTES = 10_000
PER_TEST = 20
LONG = "tests/test_long.py::test_with_a_thousand_runs"
LONG_RUNS = 1000


def runs(count: int):
    """Yield ``count`` runs: ``LONG_RUNS`` of one test, the others 20 to a test."""
    templates = [make_run(f"{seed:032x}", requests=50, tokens=64) for seed in range(20)]
    long = min(LONG_RUNS, count // 2)
    for number in range(count):
        test = LONG if number < long else f"tests/test_llm.py::test_load[{(number - long) // PER_TEST}]"
        yield msgspec.structs.replace(
            templates[number % 20], id=f"{number:032x}", test=test, started_at=1_700_000_000.0 + number
        )


def fill(store: Store, count: int) -> None:
    started = time.perf_counter()
    for run in runs(count):
        store.add(run)
    took = time.perf_counter() - started
    print(f"  {count} runs added in {took:.1f} s, {1000 * took / count:.2f} ms each")


def milliseconds(store: Store, test: str) -> float:
    started = time.perf_counter()
    history = store.read_history(test)
    took = 1000 * (time.perf_counter() - started)
    assert len(history.runs) == PER_TEST
    assert not history.damaged
    return took


def measure(place: str, count: int, repeats: int) -> bool:
    store = open_store(place)
    print(store.name.partition(":")[0] if "://" in store.name else "directory")
    fill(store, count)
    store.close()
    met = True
    for name, test in (("20 of 20 runs", "tests/test_llm.py::test_load[7]"), (f"20 of {LONG_RUNS} runs", LONG)):
        store = open_store(place)
        first = milliseconds(store, test)
        rest = statistics.median(milliseconds(store, test) for _ in range(repeats))
        store.close()
        good = max(first, rest) < TARGET_MS
        met = met and good
        print(
            f"  history of one test, {name}: first {first:.1f} ms, then {rest:.1f} ms; "
            f"target < {TARGET_MS:.0f} ms: {'met' if good else 'MISSED'}"
        )
    return met


def size() -> bool:
    worst = max(len(encode_run(run)) for run in runs(40))
    good = worst < TARGET_BYTES
    print(f"a run of 50 requests of 64 tokens: {worst} bytes; target < {TARGET_BYTES}: {'met' if good else 'MISSED'}")
    data = encode_run(next(runs(40)))
    started = time.perf_counter()
    for _ in range(100):
        decode_run(data, "x")
    print(f"decoding it: {10 * (time.perf_counter() - started):.2f} ms")
    return good


@contextlib.contextmanager
def places(postgresql: str | None) -> Iterator[list[str]]:
    with tempfile.TemporaryDirectory(prefix="ollama-perf-bench-") as folder:
        found = [f"{folder}/history", f"sqlite:///{folder}/history.db"]
        if postgresql:
            drop(postgresql)
            found.append(postgresql)
        yield found
        if postgresql:
            drop(postgresql)


def drop(url: str) -> None:
    import psycopg

    with psycopg.connect(url) as connection:
        connection.execute("DROP TABLE IF EXISTS ollama_perf_runs, ollama_perf_acceptances, ollama_perf_schema")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--postgresql", default=os.environ.get("OLLAMA_PERF_TEST_POSTGRESQL"))
    options = parser.parse_args()
    met = [size()]
    with places(options.postgresql) as found:
        met += [measure(place, options.runs, options.repeats) for place in found]
    print("all targets met" if all(met) else "a target was MISSED")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
