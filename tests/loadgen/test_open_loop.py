from __future__ import annotations

import itertools
import statistics

import trio
from scripted import SECOND, Scripted, fired, opened, outcomes, since_start, timed

from pytest_ollama_perf.core.sample import Phase
from pytest_ollama_perf.core.workload import Arrival


def test_a_constant_rate_sends_at_exact_times():
    samples = fired(opened(rate=4.0, requests=5), Scripted(0.1))
    assert since_start(samples) == [0, 0.25, 0.5, 0.75, 1]
    assert since_start(samples, "scheduled_ns") == [0, 0.25, 0.5, 0.75, 1]


def test_an_overloaded_server_does_not_slow_the_schedule():
    backend = Scripted(1000.0)
    samples = fired(opened(rate=10.0, requests=50), backend)
    assert since_start(samples) == [round(index / 10, 6) for index in range(50)]
    assert backend.peak == 50


def test_rounding_does_not_accumulate_over_a_long_schedule():
    samples = fired(opened(rate=3.0, requests=3001), Scripted(0.01))
    assert samples[-1].scheduled_ns - samples[0].scheduled_ns == 1000 * SECOND


def test_a_schedule_is_on_the_clock_of_the_samples():
    epoch_ns = 7_000_000_000_123
    samples = fired(opened(rate=2.0, requests=3), Scripted(0.1, epoch_ns=epoch_ns))
    assert [sample.scheduled_ns - epoch_ns for sample in samples] == [500_000_000, 1_000_000_000, 1_500_000_000]


def test_poisson_arrivals_are_the_same_for_the_same_seed():
    first, second, other = (
        since_start(fired(opened(arrival=Arrival.POISSON, requests=50, seed=seed), Scripted())) for seed in (1, 1, 2)
    )
    assert first == second != other


def test_poisson_gaps_are_exponential():
    times = since_start(fired(opened(arrival=Arrival.POISSON, rate=10.0, requests=4000), Scripted(0.001)))
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert abs(statistics.mean(gaps) - 0.1) < 0.006  # four standard errors of an exponential
    assert abs(statistics.stdev(gaps) - 0.1) < 0.012


def test_warm_up_is_the_beginning_of_the_schedule():
    samples = fired(opened(rate=10.0, requests=2, warmup=3), Scripted())
    assert [sample.stage for sample in samples] == [Phase.WARMUP] * 3 + [Phase.MEASURED] * 2
    assert since_start(samples) == [0, 0.1, 0.2, 0.3, 0.4]


def test_a_duration_counts_from_the_first_measured_arrival():
    samples = fired(opened(**timed(rate=10.0, duration_s=1.0, warmup=5)), Scripted(0.1))
    assert len(samples) == 15
    assert since_start(samples)[-1] == 1.4


def test_requests_in_flight_after_the_drain_are_late():
    backend = Scripted(lambda request: 0.5 if request.index < 3 else 100.0)
    samples = fired(opened(**timed(rate=1.0, duration_s=5.0, drain_s=2.0)), backend)
    assert outcomes(samples) == ["ok"] * 3 + ["late"] * 2
    assert since_start(samples, "done_ns") == [0.5, 1.5, 2.5, 7, 7]


class Stalling(Scripted):
    """Blocks the whole client for a while when it gets its first request."""

    stall_s = 0.35

    async def serve(self, request):
        if request.index == 0:
            trio.lowlevel.current_clock().jump(self.stall_s)
        await super().serve(request)


def test_a_stalled_client_sends_late_and_shows_it():
    samples = fired(opened(rate=10.0, requests=6), Stalling(0.1))
    lateness = [round((sample.sent_ns - sample.scheduled_ns) / SECOND, 6) for sample in samples]
    assert lateness == [0, 0.25, 0.15, 0.05, 0, 0]
    assert since_start(samples, "scheduled_ns") == [0, 0.1, 0.2, 0.3, 0.4, 0.5]


def test_latency_counts_from_the_schedule_of_a_stalled_client():
    samples = fired(opened(rate=10.0, requests=2), Stalling(0.1))
    assert samples[1].start_ns == samples[1].scheduled_ns < samples[1].sent_ns


def test_a_stall_over_the_deadline_loses_no_scheduled_request():
    samples = fired(opened(**timed(rate=10.0, duration_s=0.3)), Stalling(0.1))
    assert len(samples) == 3
    assert outcomes(samples) == ["ok"] * 3


def test_the_lowest_free_connection_is_taken_up_again():
    backend = Scripted(lambda request: 0.25 if request.index == 0 else 0.05)
    samples = fired(opened(rate=10.0, requests=5), backend)
    assert [sample.client for sample in samples] == [0, 1, 1, 0, 0]


def test_connections_for_two_seconds_of_arrivals_stand_before_the_clock():
    backend = Scripted()
    fired(opened(rate=10.0, requests=100), backend)
    assert backend.events[0] == "connect 20"


def test_no_more_connections_are_opened_than_there_are_requests():
    backend = Scripted()
    fired(opened(rate=100.0, requests=3), backend)
    assert backend.events[0] == "connect 3"


def test_a_rate_beyond_any_client_still_sends_everything():
    samples = fired(opened(rate=1e9, requests=200), Scripted(0.1))
    assert outcomes(samples) == ["ok"] * 200
