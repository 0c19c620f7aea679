import pytest
from run_makers import failure, sample

from pytest_ollama_perf.analysis.regression import compare_phases, compute_phase_medians, explain_phases
from pytest_ollama_perf.core.sample import Counters

USUAL = {"load": 0.0, "queue": 0.050, "prefill": 0.020, "decode": 0.700, "network": 0.002}
BASELINE = [{phase: seconds * spread for phase, seconds in USUAL.items()} for spread in (0.99, 1.0, 1.01)]


def now(**seconds):
    return [USUAL | seconds]


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({}, ""),
        ({"queue": 0.100}, "the server's queue grew, prefill and decode did not"),
        ({"decode": 1.0}, "decode grew, the server's queue and prefill did not"),
        ({"decode": 0.5}, "decode shrank, the server's queue and prefill did not"),
        ({"load": 2.0}, "loading the model grew, the server's queue, prefill and decode did not"),
        ({"network": 0.2}, "network and client grew, the server's queue, prefill and decode did not"),
        ({"queue": 0.3, "prefill": 0.2, "decode": 1.0}, "the server's queue, prefill and decode grew"),
        ({"prefill": 0.2, "queue": 0.0}, "prefill grew, the server's queue shrank, decode did not"),
    ],
)
def test_the_phase_that_moved_is_named(changed, text):
    assert explain_phases(compare_phases(BASELINE, now(**changed))) == text


def test_a_phase_within_its_usual_spread_did_not_move():
    wild = [USUAL | {"queue": seconds} for seconds in (0.01, 0.05, 0.09, 0.02, 0.08)]
    assert explain_phases(compare_phases(wild, now(queue=0.10))) == ""


def test_a_small_move_beside_a_large_one_is_not_named():
    assert (
        explain_phases(compare_phases(BASELINE, now(decode=1.4, prefill=0.030)))
        == "decode grew, the server's queue and prefill did not"
    )


def test_without_counters_on_one_side_nothing_is_said():
    assert compare_phases([], now()) == compare_phases(BASELINE, []) == compare_phases(BASELINE, [{}]) == ()


def test_the_phases_of_a_request_add_up_to_its_latency():
    one = sample(ttft=200, tokens=11, step=10, load=20, queue=50, prefill=90)
    medians = compute_phase_medians([one])
    assert medians == pytest.approx({"load": 0.02, "queue": 0.05, "prefill": 0.09, "decode": 0.1, "network": 0.04})
    assert sum(medians.values()) == pytest.approx(0.3)


def test_failed_requests_and_such_without_counters_have_no_phases():
    assert compute_phase_medians([failure(), sample(counters=Counters())]) == {}
