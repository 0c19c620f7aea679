"""False alarms and power on a real server: the same model again and again, then the same model slowed by a fifth.

    OLLAMA_HOST=... python benchmarks/real_aa.py [--model tiny] [--sessions 20] [--slow 10] [--stored 5]

Every session is what one build does: up to three runs, each on a freshly loaded model, judged at default margins
against the runs stored so far, and added to them. First ``--stored`` runs make a history, then ``--sessions`` unchanged
builds may not raise an alarm, then ``--slow`` builds on a server slowed to ``--factor`` must each be called regressed.

The slow server is the same server and model: its engine is stopped and continued every few milliseconds, as a CPU quota
does it, so that only its speed changes and the runs stay comparable (another model or num_thread would rightly begin a
new epoch). That needs Linux and a server on this machine that may be sent signals.

On a machine of few cores the system moves server, engine and this program about, and short runs show it. On one core,
and with longer runs, they differ less:

    taskset -c 0 COMMAND-THAT-SERVES -- python benchmarks/real_aa.py --requests 200

The CPU share of other programs is printed for every build, because a busy machine looks like a slower model.
``--quiet 0.2`` waits before every build, stored, unchanged or slowed, until they use less than that share, for at most
``--patience`` seconds. Exit status 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from pytest_ollama_perf.analysis.epochs import RunKind
from pytest_ollama_perf.analysis.noise import find_noise_problems, measure_noise
from pytest_ollama_perf.analysis.run_value import GATING_METRICS, build_evidence, get_policy
from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.config.load_spec import LoadSpec, build_load_spec
from pytest_ollama_perf.core.run import Run
from pytest_ollama_perf.core.verdict import VerdictStatus
from pytest_ollama_perf.harness import Harness
from pytest_ollama_perf.harness.evaluation import Evaluation, ExperimentContext, run_load
from pytest_ollama_perf.harness.history import RunHistory, count_gating_pairs
from pytest_ollama_perf.metrics import format_percent
from pytest_ollama_perf.report.progress import LiveProgress
from pytest_ollama_perf.store import open_store

TEST = "real_aa"
PERIOD_S = 0.006


def main() -> int:
    given = arguments()
    if given.throttle:
        throttle(given.throttle, given.factor)
        return 0
    spec = build_load_spec(
        {"model": given.model, "requests": given.requests, "num_predict": given.tokens, "num_ctx": 2048}
    )
    with tempfile.TemporaryDirectory() as store:
        settings = Settings(urls=(os.environ["OLLAMA_HOST"],), store=store, save=True)
        bench = Harness(settings, root=Path.cwd())
        try:
            return examine(bench, spec, given)
        finally:
            bench.close()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--slow", type=int, default=10)
    parser.add_argument("--stored", type=int, default=5)
    parser.add_argument("--factor", type=float, default=1.2)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--quiet", type=float, default=1.0, metavar="SHARE")
    parser.add_argument("--patience", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--throttle", type=int, metavar="PID", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.throttle and not os.environ.get("OLLAMA_HOST"):
        parser.error("OLLAMA_HOST must name a real server")
    return given


def examine(bench: Harness, spec: LoadSpec, given: argparse.Namespace) -> int:
    began = time.perf_counter()
    say(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    others = Others(listening(urlsplit(bench.servers[0].address.url).port or 0), given.quiet, given.patience)
    remember(bench, spec, given.stored, others)
    unchanged = [build(bench, spec, f"unchanged {number}", others) for number in range(1, given.sessions + 1)]
    noise(bench, spec)
    slow = []
    if given.slow:
        bench.settings = replace(bench.settings, save=False)
        with slowed(others.server, given.factor):
            slow = [build(bench, spec, f"slowed {number}", others) for number in range(1, given.slow + 1)]
    say(f"load average {os.getloadavg()[0]:.2f}, {time.perf_counter() - began:.0f} s; {others.summary()}")
    return verdict(unchanged, slow, given)


class Others:
    """What programs other than this one and process ``server`` with its children take of the cores."""

    def __init__(self, server: int, quiet: float, patience_s: float) -> None:
        self.server, self._quiet, self._patience_s = server, quiet, patience_s
        self._shares: list[float] = []

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[float]]:
        """Wait for quiet, then hold what others took while the block ran."""
        self._wait()
        found: list[float] = []
        before = self._look()
        yield found
        found.append(self._share(before, self._look()))
        self._shares += found

    def summary(self) -> str:
        ordered = sorted(self._shares)
        return f"other programs took {ordered[len(ordered) // 2]:.0%} of the cores (median), up to {ordered[-1]:.0%}"

    def _wait(self) -> None:
        until = time.monotonic() + self._patience_s
        while self._quiet < 1 and time.monotonic() < until:
            before = self._look()
            time.sleep(1.0)
            if self._share(before, self._look()) < self._quiet:
                return

    def _look(self) -> tuple[float, float, float]:
        """Return the elapsed time in core seconds, the CPU seconds of all processes and those of this benchmark."""
        fields = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        ticks = os.sysconf("SC_CLK_TCK")
        own = os.times()
        ours = own.user + own.system + sum(cpu_ticks(pid) for pid in [self.server, *children(self.server)]) / ticks
        return sum(fields) / ticks, (sum(fields) - fields[3] - fields[4]) / ticks, ours

    @staticmethod
    def _share(before: tuple[float, float, float], after: tuple[float, float, float]) -> float:
        passed, busy, ours = (late - early for early, late in zip(before, after, strict=True))
        return max(0.0, busy - ours) / max(1e-9, passed)


def cpu_ticks(pid: int) -> int:
    """Return the CPU time of a process and of its children that have ended."""
    with contextlib.suppress(OSError):
        return sum(int(text) for text in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15])
    return 0


def remember(bench: Harness, spec: LoadSpec, count: int, others: Others) -> None:
    """Make a history of ``count`` runs."""
    store = open_store(bench.settings.store)
    for number in range(1, count + 1):
        with others.watched() as share, LiveProgress(sys.stderr) as progress:
            run = bench.measure(spec.workload, TEST, fresh=True, listener=progress)
        store.add(run, RunKind.SAVED)
        say(f"stored {number}: {readings([run])}; others {share[0]:.0%}")
    store.close()


def build(bench: Harness, spec: LoadSpec, title: str, others: Others) -> Evaluation:
    """Do what one build does."""
    past = RunHistory(bench.settings, count_gating_pairs(spec.margins))
    with others.watched() as share, LiveProgress(sys.stderr) as progress:
        trial = run_load(ExperimentContext(bench, past, progress), spec, TEST)
    past.close()
    runs = [load.run for load in trial.loads]
    word = trial.verdict.status.value
    say(f"{title}: {word} after {len(runs)} ({readings(runs)}); others {share[0]:.0%}: {trial.verdict.reason}")
    return trial


def readings(runs: Sequence[Run]) -> str:
    def one(run: Run, name: str) -> str:
        cost = build_evidence(run).compute_cost(get_policy(name))
        return f"{math.exp(-cost):.0f} /s" if name == "tps" else f"{math.exp(cost) * 1e3:.2f} ms"

    return "; ".join(", ".join(one(run, name) for name in GATING_METRICS) for run in runs)


def noise(bench: Harness, spec: LoadSpec) -> None:
    """Say how much the unchanged runs differ."""
    store = open_store(bench.settings.store)
    evidence = [build_evidence(run) for run in store.read_history(TEST, limit=None).runs]
    store.close()
    for name in GATING_METRICS:
        found = measure_noise(get_policy(name), [run.compute_cost(get_policy(name)) for run in evidence])
        if found:
            say(
                f"{name}: sd between {len(found.costs)} unchanged runs {format_percent(round(found.sd, 4))}, "
                f"range {format_percent(round(math.expm1(max(found.costs) - min(found.costs)), 4))}, "
                f"three runs show {format_percent(round(found.detectable[-1], 4))}"
            )
            for problem in find_noise_problems([found]):
                say(f"  {problem.text}")


def verdict(unchanged: Sequence[Evaluation], slow: Sequence[Evaluation], given: argparse.Namespace) -> int:
    alarms = sum(trial.verdict.status is VerdictStatus.REGRESSED for trial in unchanged)
    caught = sum(trial.verdict.status is VerdictStatus.REGRESSED for trial in slow)
    for name, trials in (("unchanged", unchanged), ("slowed", slow)):
        words = Counter(trial.verdict.status.value for trial in trials)
        runs = sum(len(trial.loads) for trial in trials) / max(1, len(trials))
        print(f"{name:10} {len(trials):3} builds, {runs:.2f} runs each: {dict(words)}")
    checks = [("false alarms", f"{alarms}", "0", alarms == 0)]
    if given.slow:
        checks.append((f"{given.factor:g} x slower, caught", f"{caught}", f"{given.slow}", caught == given.slow))
    for name, found, bar, met in checks:
        print(f"{name:24} {found:>4}   bar {bar:>3}   {'met' if met else 'MISSED'}")
    return 0 if all(met for *_, met in checks) else 1


@contextlib.contextmanager
def slowed(server: int, factor: float) -> Iterator[None]:
    """Let the engines of process ``server`` run only ``1 / factor`` of the time; runs in a separate process."""
    command = [sys.executable, __file__, "--throttle", str(server), "--factor", str(factor)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        try:
            yield
        finally:
            child.terminate()


def throttle(server: int, factor: float) -> None:
    """Stop and continue the children of process ``server`` until stopped."""
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    stopped_s = PERIOD_S * (1 - 1 / factor)
    while not ended and os.getppid() != 1:
        engines = children(server)
        began = time.perf_counter()
        send(engines, signal.SIGSTOP)
        time.sleep(max(0.0, stopped_s - (time.perf_counter() - began)))
        send(engines, signal.SIGCONT)
        paused = time.perf_counter() - began
        # A late wake-up makes the pause longer; running longer after it keeps the share.
        time.sleep(paused / (factor - 1))


def send(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return []


def listening(port: int) -> int:
    """Return the process that listens on ``port`` of this machine."""
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:] + Path("/proc/net/tcp6").read_text().splitlines()[1:]
    inodes = {row.split()[9] for row in rows if row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A"}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link).removeprefix("socket:[").removesuffix("]") in inodes:
                return int(link.parts[2])
    raise SystemExit(
        f"no process on this machine listens on port {port}: the slow builds need one (--slow 0 leaves them out)"
    )


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
