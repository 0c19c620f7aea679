"""The texts of sweeps, searches and cold starts, as whoever has to act on them sees them in 80 columns."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual import TEST, conducted, settings_of

from pytest_ollama_perf.analysis import Finding
from pytest_ollama_perf.analysis.cold_warm import ColdStart, ColdStartRepeat
from pytest_ollama_perf.analysis.scaling import Curve, Knee, Saturation, Sweep, SweepPoint
from pytest_ollama_perf.analysis.sustained import MaxConcurrency, Probe
from pytest_ollama_perf.core.verdict import VerdictStatus
from pytest_ollama_perf.experiments import capacity, cold_start, sweep
from pytest_ollama_perf.harness.evaluation import merge_evaluations
from pytest_ollama_perf.report.document import ReportMeta, build_report
from pytest_ollama_perf.report.experiments import render_finding
from pytest_ollama_perf.report.tables import count_columns
from pytest_ollama_perf.report.terminal import build_section, format_failure
from pytest_ollama_perf.simulator.settings import SimulatedModel

QUICK = settings_of(slots=4, tps=100.0, scaling=0.5, prefill_tps=10_000.0)
SLOW = settings_of(models=(SimulatedModel(name="m", tps=100.0, prefill_tps=1000.0, load_time_s=4.0),))


def text_of(read, words, sim=QUICK):
    return format_failure(merge_evaluations(TEST, [conducted(read, words, sim).trial]))


SWEEP = """\
throughput stops growing at concurrency 4 (205 tokens/s), limit min_knee=8

                      tok/s  tok/s             ttft  ttft  lat. queue
  clients   ok tokens  each system eff. req/s   p50   p95   p95  mean  wall
  1       100%    640   107    104 100%  6.53 3.2ms 3.2ms 153ms    0s 6.13s
  2       100%    640  75.4    146  70%  9.15 6.4ms 6.4ms 219ms    0s 4.37s
  4       100%    640  53.3    205  49%  12.8  13ms  13ms 313ms    0s 3.13s
  8       100%    640  53.3    205  24%  11.6 326ms 326ms 626ms 313ms 3.44s
  knee: concurrency 4; throughput stops growing there, between 2 and 4, at 205
    tokens/s
  saturation: from concurrency 4 to 8 the load grew 2-fold, the mean TTFT
    25-fold to 326ms
  slots: 4 requests ran concurrently while others waited (OLLAMA_NUM_PARALLEL)

            limit    found
  x knee     >= 8        4
  4 loads, 160 requests, 15 warm-up dropped, 0 errors
  ollama 0.32.15, m
  hint: at most 4 requests ran concurrently and waited 313 ms for a slot;
    OLLAMA_NUM_PARALLEL is probably 4"""


def test_a_sweep_is_a_table_with_what_it_shows_below():
    words = {"concurrency": [1, 2, 4, 8], "requests": 40, "num_predict": 16, "min_knee": 8}
    assert text_of(sweep.parse_options, words) == SWEEP


SEARCH = """\
maximum concurrency 4, limit >= 8; concurrency 5: ttft p95 326 ms, limit <= 200
  ms: 6 of 25 requests over

    clients      ok     tps    ttft p95    latency p95    requests    decided by
    1          100%     107      3.2 ms         153 ms          20      ttft p95
    2          100%    75.4      6.4 ms         219 ms          20      ttft p95
    4          100%    53.3     12.8 ms         313 ms          20      ttft p95
  x 5          100%    54.6      326 ms         626 ms          25      ttft p95
  x 6          100%    53.3      326 ms         626 ms          30      ttft p95
  x 8          100%    53.3      326 ms         626 ms          40      ttft p95
  first breach: concurrency 5: ttft p95 326 ms, limit <= 200 ms: 6 of 25
    requests over

                           limit    found
  x maximum concurrency     >= 8        4
  6 loads, 155 requests, 26 warm-up dropped, 0 errors
  ollama 0.32.15, m
  hint: at most 4 requests ran concurrently and waited 313 ms for a slot;
    OLLAMA_NUM_PARALLEL is probably 4"""


def test_a_search_is_one_line_a_probe_and_the_first_breach():
    assert text_of(capacity.parse_options, {"max_ttft": 0.2, "min_concurrency": 8, "num_predict": 16}) == SEARCH


COLD = """\
load time 4 s, limit <= 3 s

  m          load time    cold ttft    latency    warm ttft    latency    ratio
  start 1          4 s       4.03 s     4.13 s        32 ms     132 ms    126 x
  start 2          4 s       4.03 s     4.13 s        32 ms     132 ms    126 x
  median           4 s       4.03 s     4.13 s        32 ms     132 ms    126 x

                  limit    found
  x load time    <= 3 s      4 s
  4 loads, 22 requests, 2 warm-up dropped, 0 errors
  ollama 0.32.15, m"""


def test_cold_starts_are_a_line_each_and_their_medians():
    assert text_of(cold_start.parse_options, {"num_predict": 11, "repeats": 2, "max_load_time": 3}, SLOW) == COLD


def test_a_search_that_could_not_go_on_does_not_claim_an_end():
    told = text_of(capacity.parse_options, {"max_latency": 60}, settings_of(eos_after=4))
    assert "  the search ended before a breach was found" in told.splitlines()
    assert "no breach" not in told


def test_the_section_after_the_run_has_the_tables_of_passing_tests_too():
    found = conducted(sweep.parse_options, {"concurrency": [1, 2], "num_predict": 16}, QUICK)
    told = [line.text for line in build_section([merge_evaluations(TEST, [found.trial])], verbosity=0)]
    assert told[0].endswith(" ok")
    assert told[2].split()[:3] == ["clients", "ok", "tokens"]
    assert any(line.startswith("  knee: not reached, concurrency 2 still brought more") for line in told)


def test_findings_stand_in_the_json_report_with_their_units_in_their_names():
    import json

    found = conducted(sweep.parse_options, {"concurrency": [1, 4], "num_predict": 16}, QUICK)
    made = json.loads(
        build_report([merge_evaluations(TEST, [found.trial])], meta=ReportMeta(plugin_version="1", started_at=0.0))
    )
    (finding,) = made["tests"][0]["findings"]
    assert finding["kind"] == "sweep"
    (curve,) = finding["curves"]
    assert [level["at"] for level in curve["levels"]] == [{"concurrency": 1}, {"concurrency": 4}]
    assert curve["levels"][1]["ttft_p95_s"] == found.result.level(concurrency=4).ttft.p95
    assert curve["knee"]["at"] == 4


times = st.none() | st.floats(0, 1e6) | st.just(float("inf"))
rates = st.none() | st.floats(0, 1e9)
names = st.text(max_size=60)
levels = st.builds(
    SweepPoint,
    at=st.fixed_dictionaries({"concurrency": st.integers(1, 10**6)}),
    run_id=st.just("r"),
    status=st.just(VerdictStatus.OK),
    reason=names,
    requests=st.integers(1, 10**6),
    ok=st.just(1),
    output_tokens=st.integers(0, 10**9),
    wall_s=st.floats(0, 1e6),
    **dict.fromkeys(("tps", "throughput", "qps", "efficiency"), rates),
    **{f"{name}_s": times for name in ("ttft_p50", "ttft_p95", "latency_p95", "queue_mean")},
    slots=st.none() | st.integers(1, 512),
)
curves = st.builds(
    Curve,
    at=st.dictionaries(st.sampled_from(["model", "num_ctx"]), names, max_size=2),
    levels=st.lists(levels, min_size=1, max_size=3).map(tuple),
    knee=st.none()
    | st.builds(
        Knee,
        axis=st.just("concurrency"),
        at=st.floats(1, 1e6),
        throughput=st.floats(0, 1e9),
        reached=st.booleans(),
        after=st.none() | st.floats(1, 1e6),
    ),
    saturation=st.none()
    | st.builds(
        Saturation,
        axis=st.just("concurrency"),
        **{name: st.floats(1, 1e6) for name in ("at", "after", "load_growth", "ttft_growth", "ttft_s")},
    ),
    slots=st.none() | st.integers(1, 512),
    stopped=names,
)
probes = st.builds(
    Probe,
    concurrency=st.integers(1, 10**6),
    sustained=st.booleans(),
    conclusive=st.booleans(),
    runs=st.integers(1, 9),
    requests=st.integers(9, 10**6),
    ok=st.just(3),
    metric=st.just("prefill_tps"),
    stat=st.just("p95"),
    value=rates,
    op=st.just(">="),
    bound=st.just(1.0),
    reason=names,
    tps=rates,
    throughput=rates,
    ttft_p95_s=times,
    latency_p95_s=times,
)
starts = st.builds(
    ColdStartRepeat,
    cold_run=names,
    warm_run=names,
    warm_requests=st.integers(1, 99),
    **{f"{name}_s": times for name in ("load_time", "cold_ttft", "cold_latency", "warm_ttft", "warm_latency")},
)
findings: list[st.SearchStrategy[Finding]] = [
    st.builds(Sweep, axis=st.just("concurrency"), curves=st.lists(curves, min_size=1, max_size=2).map(tuple)),
    st.builds(
        MaxConcurrency,
        concurrency=st.integers(0, 64),
        maximum=st.integers(1, 64),
        criteria=st.just(()),
        probes=st.lists(probes, max_size=3).map(tuple),
        breach=st.none() | probes,
    ),
    st.builds(ColdStart, model=names, starts=st.lists(starts, max_size=3).map(tuple), load_time_s=times, ratio=rates),
]


@pytest.mark.parametrize("made", findings, ids=["sweep", "search", "cold start"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_finding_is_wider_than_the_terminal_or_lets_control_characters_through(made, data):
    for line in render_finding(data.draw(made), 80):
        assert count_columns(line) <= 80
        assert line.isprintable()
