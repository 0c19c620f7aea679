"""What this package's client costs and how far its clock is off: ``python benchmarks/client.py [--quick]``.

Each client runs in a separate process, pinned to one core, against a server pinned to another core that records
times (``bench_server.py``). Prints a table of target and result; the exit status is 1 where a target was missed.
Seconds of CPU depend on the machine, so ratios within one run are shown as well. TTFT errors count from the server's
read of the request and from its arrival there: the difference is a delay of the server, not of the client.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
GAP_S = 1 / 43
Report = dict[str, float | dict[str, list[int]]]


@dataclass
class Row:
    name: str
    target: str
    result: str
    met: bool


@contextmanager
def server(tokens: int, gap_s: float, core: int) -> Iterator[int]:
    command = [sys.executable, str(HERE / "bench_server.py"), "--tokens", str(tokens), "--gap", str(gap_s)]
    with subprocess.Popen([*command, "--core", str(core)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def run(client: str, port: int, streams: int, each: int, core: int) -> Report:
    command = [sys.executable, str(HERE / "client_worker.py"), client, "--port", str(port), "--streams", str(streams)]
    done = subprocess.run(
        [*command, "--each", str(each), "--core", str(core)], stdout=subprocess.PIPE, check=True, text=True
    )
    report: Report = json.loads(done.stdout)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/times") as answer:
        report["server"] = json.load(answer)["times"]
    if report["failed"]:
        raise SystemExit(f"{client}: {report['failed']} requests failed")
    return report


def per_million(report: Report) -> float:
    return report["cpu_s"] / report["chunks"] * 1e6


def errors_ms(report: Report) -> tuple[float, ...]:
    """TTFT of the client less that of the server, P50 and P99: from its read of the request, and from its arrival."""
    served = report["server"]
    values = []
    for since in (0, 2):
        errors = [
            (first - sent - served[name][1] + served[name][since]) / 1e6
            for name, (sent, first) in report["ttft"].items()
        ]
        values += [statistics.median(errors), statistics.quantiles(errors, n=100, method="inclusive")[98]]
    return tuple(values)


def cost(core: int, other: int, quick: bool) -> list[Row]:
    """512 streams of 43 tokens/s: CPU against the bare loop, interleaved with it, and against httpx."""
    each, rounds = (1, 1) if quick else (2, 3)
    ours, bare, errors = [], [], []
    with server(86, GAP_S, other) as port:
        for _ in range(rounds):
            bare.append(per_million(run("bare", port, 512, each, core)))
            report = run("ours", port, 512, each, core)
            ours.append(per_million(report))
            errors.append(errors_ms(report))
        plain = per_million(run("httpx", port, 512, 1, core))
    mine, least = statistics.median(ours), statistics.median(bare)
    return [
        Row("512 streams: CPU s per million chunks", "<= 16", f"{mine:.1f}", mine <= 16),
        Row(
            "  against a bare recvmsg + httptools loop",
            "<= 1.5 x",
            f"{mine / least:.2f} x {least:.1f}",
            mine <= 1.5 * least,
        ),
        Row(
            "  against httpx aiter_lines + json.loads",
            "<= 0.1 x",
            f"{mine / plain:.3f} x {plain:.0f}",
            mine <= 0.1 * plain,
        ),
        *ttft_rows(512, errors),
    ]


def ttft(core: int, other: int, quick: bool) -> list[Row]:
    with server(43, GAP_S, other) as port:
        errors = [errors_ms(run("ours", port, 32, 3 if quick else 8, core)) for _ in range(1 if quick else 3)]
    return ttft_rows(32, errors)


def ttft_rows(streams: int, errors: list[tuple[float, ...]]) -> list[Row]:
    p50, p99, *since_arrival = (statistics.median(values) for values in zip(*errors, strict=True))
    shown = [f"{value:.3f} ms ({own:.3f} from arrival)" for value, own in zip((p50, p99), since_arrival, strict=True)]
    return [
        Row(f"{streams} streams: TTFT error P50, first wave included", "<= 0.05 ms", shown[0], p50 <= 0.05),
        Row(f"{streams} streams: TTFT error P99, first wave included", "<= 0.5 ms", shown[1], p99 <= 0.5),
    ]


def flood(core: int, other: int, quick: bool) -> list[Row]:
    with server(5_000 if quick else 20_000, 0, other) as port:
        report, limit = run("ours", port, 32, 2, core), run("bare", port, 32, 2, core)
    rate, most = report["chunks"] / report["wall_s"], limit["chunks"] / limit["wall_s"]
    shown = f"{rate:,.0f}/s (server: {most:,.0f}/s)"
    return [Row("flood, 32 streams, one token a chunk", ">= 250,000/s", shown, rate >= min(250_000, 0.95 * most))]


def memory(core: int, other: int, quick: bool) -> list[Row]:
    seconds = 5 if quick else 60
    with server(43 * seconds, GAP_S, other) as port:
        rss_mb = run("ours", port, 200, 1, core)["rss_mb"]
    return [Row(f"200 streams for {seconds} s: resident", "<= 150 MB", f"{rss_mb:.0f} MB", rss_mb <= 150)]


PARTS: dict[str, Callable[[int, int, bool], list[Row]]] = {
    "cost": cost,
    "ttft": ttft,
    "flood": flood,
    "memory": memory,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the client.")
    parser.add_argument("--quick", action="store_true", help="shorter runs, one of each")
    parser.add_argument("--only", choices=PARTS, action="append", help="only this part; may be repeated")
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("needs two cores: one for the client, one for the server")
    missed = False
    for name in given.only or PARTS:
        for row in PARTS[name](cores[0], cores[1], given.quick):
            missed |= not row.met
            print(f"{row.name:52} {row.target:>13}  {'met' if row.met else 'MISSED':6}  {row.result}", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
