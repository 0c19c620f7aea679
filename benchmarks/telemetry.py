"""What does reading GPU and host telemetry cost during a load?

    python benchmarks/telemetry.py [--seconds 10]

Reads this machine's GPUs if there are any. Otherwise a stand-in whose calls take no time measures only the code of
the plugin and the two files of ``/proc``. A thread keeps one core busy, as a load at its ceiling does, and counts:
once with the sampler running and once without it.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "telemetry"))

from fake_nvml import FakeNvml

from pytest_ollama_perf.telemetry import SAMPLE_INTERVAL_S, LocalSampler, make_host_meter
from pytest_ollama_perf.telemetry.nvml import NvmlGpus, import_nvml

TURN_S = 0.5


def counted(seconds):
    """Return how far a busy thread counts in ``seconds`` of its CPU time, per second of wall time."""
    stop, counts = threading.Event(), [0]

    def count():
        while not stop.is_set():
            for _ in range(1000):
                counts[0] += 1

    thread = threading.Thread(target=count)
    began = time.perf_counter()
    thread.start()
    time.sleep(seconds)
    stop.set()
    thread.join()
    return counts[0] / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    seconds = parser.parse_args().seconds
    gpus = NvmlGpus(import_nvml())
    what = "this machine's GPUs"
    if not gpus:
        gpus, what = NvmlGpus(FakeNvml(gpus=8)), "a stand-in for 8 GPUs"
    sampler = LocalSampler(gpus, make_host_meter())
    with sampler.record() as log:
        time.sleep(seconds)
    print(f"{what}: {len(log.host)} readings, one every {SAMPLE_INTERVAL_S} s, {log.cpu_share:.3%} of a core")
    print(f"one reading: {log.cpu_share * seconds / len(log.host) * 1e3:.2f} ms of CPU")
    ratios = []
    for _ in range(max(4, int(seconds / TURN_S / 2))):
        pair = []
        for beside in (sampler.record(), nullcontext()):
            with beside:
                pair.append(counted(TURN_S))
        ratios.append(pair[0] / pair[1])
    ratios.sort()
    median = ratios[len(ratios) // 2]
    print(f"a busy thread counts {median:.3f} times as fast with the sampler running (median of {len(ratios)} pairs)")
    gpus.close()


if __name__ == "__main__":
    main()
