"""What the installed plugin costs a pytest run that has nothing to do with it.

    python benchmarks/startup.py [--runs 40]

Runs pytest on one empty test, with the plugin and with ``-p no:ollama_perf``, in turn and in changing order, each in a
fresh process; other installed plugins are switched off, their noise would drown the difference. Printed are medians,
the median of the paired differences with its 95 % interval (of the order statistics), and the difference of the fastest
runs, which others disturbed least. Exit status 1 when the plugin costs more than 15 ms of CPU or wall time. For
comparison, and without a bar, the plugin of anyio: it is installed wherever httpx is, and so with this package.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import entry_points
from pathlib import Path

BAR_MS = 15.0
OURS = "ollama_perf"
# Where byte code is not kept, every run pays for compiling what was changed last.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
PLUGINS = sorted({point.name for point in entry_points(group="pytest11")})


def only(*plugins: str) -> tuple[str, ...]:
    """Return the arguments that leave of the installed plugins these."""
    return tuple(word for name in PLUGINS if name not in plugins for word in ("-p", f"no:{name}"))


WITH, ANYIO, WITHOUT = only(OURS), only("anyio"), only()


def once(folder: Path, *arguments: str) -> tuple[float, float]:
    """Run pytest; return CPU (user and system, of the children alone) and wall time in milliseconds."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, "test_nothing.py"]
    before, began = children_cpu_s(), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - began, children_cpu_s()
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return 1e3 * (after - before), 1e3 * wall


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40, help="pairs of runs (default: %(default)s)")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "test_nothing.py").write_text("def test_nothing():\n    pass\n", encoding="utf-8")
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        for arguments in (WITH, ANYIO, WITHOUT):  # byte code and disk cache
            once(folder, *arguments)
        pairs = [pair(folder, WITH, turn) for turn in range(runs)]
        beside = [pair(folder, ANYIO, turn) for turn in range(max(3, runs // 4))]
    if OURS not in PLUGINS:
        raise SystemExit(f"the plugin {OURS} is not installed here")
    met = [report(name, pairs, column, BAR_MS) for column, name in enumerate(("CPU", "wall"))]
    report("anyio's plugin, CPU", beside, 0, None)
    return 0 if all(met) else 1


Pair = tuple[tuple[float, float], tuple[float, float]]


def pair(folder: Path, with_: tuple[str, ...], turn: int) -> Pair:
    """Run both, with a plugin and without any, the one first in every other turn."""
    order = (with_, WITHOUT) if turn % 2 else (WITHOUT, with_)
    found = {arguments: once(folder, *arguments) for arguments in order}
    return found[with_], found[WITHOUT]


def report(name: str, pairs: list[Pair], column: int, bar_ms: float | None) -> bool:
    """Print one row; return whether the bar is met."""
    with_, without = (statistics.median(one[side][column] for one in pairs) for side in (0, 1))
    differences = sorted(one[0][column] - one[1][column] for one in pairs)
    typical = statistics.median(differences)
    reach = math.ceil(0.98 * math.sqrt(len(differences)))
    middle = len(differences) / 2
    low = differences[max(0, math.floor(middle - reach))]
    high = differences[min(len(differences) - 1, math.ceil(middle + reach) - 1)]
    met = bar_ms is None or typical <= bar_ms
    judged = "" if bar_ms is None else f"   bar {bar_ms:g} ms: {'met' if met else 'MISSED'}"
    both = f"with {with_:6.1f} ms   without {without:6.1f} ms"
    quiet = min(one[0][column] for one in pairs) - min(one[1][column] for one in pairs)
    shown = f"difference {typical:6.1f} ms ({low:.1f} .. {high:.1f}), of the fastest runs {quiet:.1f} ms"
    print(f"{name:20} {both}   {shown}{judged}")
    return met


if __name__ == "__main__":
    sys.exit(main())
