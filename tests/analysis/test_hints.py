import msgspec
from run_makers import failure, one_after_another, run_of, sample, transcript

from pytest_ollama_perf.analysis.limits import count_slots, find_hints
from pytest_ollama_perf.core.sample import Outcome
from pytest_ollama_perf.core.verdict import HintCode
from pytest_ollama_perf.metrics.summary import summarise


def hinted(*samples, **fields):
    run = run_of(*samples, **fields)
    return [(hint.code, hint.text) for hint in find_hints(run, summarise(run))]


def on_slots(slots, clients, rounds=3):
    """A closed loop of equal requests (90 ms prefill, 100 ms decode) on a server with so many slots."""
    free, ready, samples = [0] * slots, [0] * clients, []
    for index in range(clients * rounds):
        client = index % clients
        slot = free.index(min(free))
        start = max(free[slot], ready[client])
        waited = start - ready[client]
        samples.append(
            sample(index, sent=ready[client], ttft=waited + 100, queue=waited, client=client, prefill=90, load=1)
        )
        free[slot] = ready[client] = start + 200
    return samples


def test_requests_that_ran_one_at_a_time_on_the_real_server_are_seen():
    served = transcript("queue-one-slot")[1:]
    assert count_slots(served) == 1
    text = "requests ran one at a time and waited 166 ms for a slot; OLLAMA_NUM_PARALLEL is probably 1"
    assert hinted(*served) == [(HintCode.SLOTS, text)]


def test_four_requests_on_four_slots_of_the_real_server_waited_for_nothing():
    assert count_slots(transcript("four-slots")[1:]) is None


def test_the_number_of_slots_is_counted():
    assert count_slots(on_slots(1, 4)) == 1
    assert count_slots(on_slots(2, 4)) == 2
    assert count_slots(on_slots(3, 8)) == 3
    assert count_slots(on_slots(4, 4)) is None
    assert "at most 2 requests ran concurrently" in hinted(*on_slots(2, 4))[0][1]


def test_one_client_is_not_told_of_slots():
    assert hinted(*one_after_another(20)) == []
    assert count_slots([sample(0)]) is None


def test_in_a_cluster_the_server_is_named():
    elsewhere = [msgspec.structs.replace(one, url="http://other:1") for one in on_slots(1, 4)]
    ((_, hint),) = hinted(*on_slots(4, 4), *elsewhere)
    assert hint.startswith("http://other:1: requests ran one at a time")


def test_refused_and_impatient_requests_are_explained():
    busy, slow = failure(1, outcome=Outcome.BUSY), failure(2, outcome=Outcome.FIRST_TOKEN_TIMEOUT)
    assert hinted(sample(0), busy, slow) == [
        (HintCode.SERVER_BUSY, "the server turned 1 request away: its OLLAMA_MAX_QUEUE was full during a load"),
        (HintCode.FIRST_TOKEN_TIMEOUT, "1 request got no first token in time; raise the timeout or lower the load"),
    ]
