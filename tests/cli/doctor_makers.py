"""A healthy client, and campaigns made of runs written by hand."""

from __future__ import annotations

import msgspec
from run_makers import one_after_another, run_of

from pytest_ollama_perf.analysis.client_checks import ClientMeasurement
from pytest_ollama_perf.cli.doctor_report import Campaign
from pytest_ollama_perf.core.run import Fingerprint

HEALTHY = ClientMeasurement(
    cpus=8,
    uvloop=True,
    receive_stamps=True,
    timer_resolution_s=50e-9,
    idle_lag_p99_s=0.0004,
    idle_lag_max_s=0.001,
    flood_chunks_s=2_340_000.0,
    chunks_s=50_000.0,
    paced_streams=64,
    paced_tps=50.0,
    ttft_error_p50_s=0.00004,
    ttft_error_p99_s=0.0004,
    open_files=1024,
    open_files_needed=65,
    load_average=0.3,
)
SEEN = Fingerprint(
    model="m:latest", parameter_size="3.2B", quantization="Q4_K_M", server_version="0.32.15", vram_share=1.0
)


def client(**fields):
    return msgspec.structs.replace(HEALTHY, **fields)


def campaign(steps=(10, 10, 10, 10, 10, 10), **fields):
    """Runs of 20 requests; a token every ``step`` ms in each."""
    runs = tuple(
        msgspec.structs.replace(
            run_of(*one_after_another(20, step=step), fingerprint=SEEN, load_time_s=0.5), id=f"run {number}"
        )
        for number, step in enumerate(steps)
    )
    return Campaign("http://box:11434", runs[0].workload, runs, **fields)
