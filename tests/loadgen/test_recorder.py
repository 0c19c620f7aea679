from __future__ import annotations

from scripted import SECOND

from pytest_ollama_perf.core.sample import Counters, Outcome, Phase, Sample
from pytest_ollama_perf.loadgen import StreamProgress
from pytest_ollama_perf.loadgen.recorder import LoadProgress, SampleRecorder


def sample(index=0, outcome=Outcome.OK, **fields) -> Sample:
    values = {"client": 0, "url": "u", "request_id": str(index), "stage": Phase.MEASURED, "sent_ns": 0, "done_ns": 1}
    return Sample(**{"index": index, "outcome": outcome, **values, **fields})


def test_before_it_begins_nothing_has_happened():
    assert SampleRecorder(5).compute_progress() == LoadProgress(
        sent=0, done=0, failed=0, tokens=0, elapsed_s=0.0, total=5
    )


def test_progress_counts_what_is_sent_done_and_failed():
    now = [7 * SECOND]
    recorder = SampleRecorder(9, clock=lambda: now[0])
    recorder.start(123)
    for _ in range(4):
        recorder.count_sent()
    recorder.add(sample(counters=Counters(eval_count=64)))
    recorder.add(sample(1, Outcome.TRUNCATED))
    now[0] = 9 * SECOND
    progress = recorder.compute_progress()
    assert progress == LoadProgress(sent=4, done=2, failed=1, tokens=64, elapsed_s=2.0, total=9)
    assert progress.in_flight == 2
    assert recorder.started_ns == 123


def test_chunks_count_as_tokens_where_the_server_counted_none():
    recorder = SampleRecorder()
    recorder.add(sample(chunk_ns=(1, 2, 3), outcome=Outcome.CUT_OFF))
    assert recorder.compute_progress().tokens == 3


def test_samples_come_in_the_order_of_the_requests():
    recorder = SampleRecorder()
    for index in (2, 0, 1):
        recorder.add(sample(index))
    assert [kept.index for kept in recorder.get_samples()] == [0, 1, 2]


def test_samples_taken_during_a_load_do_not_change_later():
    recorder = SampleRecorder()
    recorder.add(sample(0))
    taken = recorder.get_samples()
    recorder.add(sample(1))
    assert len(taken) == 1


def test_tokens_of_running_streams_count_and_their_first_tokens_too():
    recorder = SampleRecorder()
    recorder.get_stream_progress = lambda: [StreamProgress(7, 300_000_000), StreamProgress(0, None)]
    recorder.add(sample(counters=Counters(eval_count=64), first_token_ns=100_000_000, chunk_ns=(1,)))
    recorder.add(sample(1, first_token_ns=200_000_000))
    progress = recorder.compute_progress()
    assert progress.tokens == 71
    assert progress.ttft_s == 0.2


def test_ttft_of_an_open_loop_counts_from_the_scheduled_time():
    recorder = SampleRecorder()
    recorder.add(sample(scheduled_ns=1 * SECOND, sent_ns=2 * SECOND, first_token_ns=3 * SECOND, done_ns=4 * SECOND))
    assert recorder.compute_progress().ttft_s == 2.0


def test_the_latest_first_tokens_decide_what_ttft_is_now():
    recorder = SampleRecorder()
    for index in range(3000):
        recorder.add(sample(index, first_token_ns=1 * SECOND if index < 2000 else 3 * SECOND))
    assert recorder.compute_progress().ttft_s == 3.0
