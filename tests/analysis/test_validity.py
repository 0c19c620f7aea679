import msgspec
import pytest
from run_makers import MS, failure, one_after_another, run_of, sample, transcript

from pytest_ollama_perf.analysis.validity import find_problems
from pytest_ollama_perf.core.run import ClientStats, ModelState
from pytest_ollama_perf.core.sample import Counters
from pytest_ollama_perf.core.verdict import ProblemCode
from pytest_ollama_perf.core.workload import Endpoint, Prefix
from pytest_ollama_perf.metrics.summary import summarise

URL = "http://box:11434"
LOADED = ModelState(loaded=True, size=100, size_vram=100, context_length=4096, digest="a1")


def found(*samples, **fields):
    run = run_of(*samples, **fields)
    return find_problems(run, summarise(run))


def only(*samples, **fields):
    (problem,) = found(*samples, **fields)
    return problem


def state(**changes):
    return {URL: msgspec.structs.replace(LOADED, **changes)}


def counted(one, **counters):
    return msgspec.structs.replace(one, counters=msgspec.structs.replace(one.counters, **counters))


def test_a_plain_run_has_no_problem():
    assert found(*one_after_another(20), before=state(), after=state()) == ()


def test_a_model_partly_on_the_cpu_invalidates_the_run():
    problem = only(*one_after_another(20), before=state(), after=state(size_vram=57))
    assert (problem.name, problem.invalidates) == ("partly on the CPU", True)
    assert problem.text == "the model is partly on the CPU: 57 % of it is in GPU memory"


def test_a_model_wholly_on_the_cpu_is_a_server_like_any_other():
    assert found(*one_after_another(20), before=state(size_vram=0), after=state(size_vram=0)) == ()


def test_a_cut_context_invalidates_the_run_only_where_a_request_reached_its_end():
    cut = {"before": state(context_length=2048), "after": state(context_length=2048), "workload": {"num_ctx": 4096}}
    problem = only(*one_after_another(20), **cut)
    assert (problem.invalidates, problem.text) == (
        False,
        "the server cut the context to 2048 tokens, num_ctx asks for 4096",
    )
    problem = only(*one_after_another(20, prompt=2040), **cut)
    assert problem.invalidates
    assert problem.text.endswith(", and a request needed 2051")


def test_a_context_that_the_load_does_not_set_is_never_cut():
    small = {"before": state(context_length=2048), "after": state(context_length=2048)}
    assert found(*one_after_another(20), **small) == ()


def test_a_model_that_is_gone_at_the_end_was_evicted():
    problem = only(*one_after_another(20), before=state(), after={URL: ModelState()})
    assert (problem.name, problem.invalidates) == ("model evicted", True)
    asked_for = {"workload": {"keep_alive": 0}}
    assert found(*one_after_another(20), before=state(), after={URL: ModelState()}, **asked_for) == ()


def test_a_model_with_another_digest_is_another_model():
    problem = only(*one_after_another(20), before=state(), after=state(digest="b2"))
    assert problem.text == "the model changed while it was measured: digest a1 before, b2 after"


def test_a_model_with_another_context_was_loaded_again():
    problem = only(*one_after_another(20), before=state(), after=state(context_length=8192))
    assert problem.invalidates
    assert problem.text == (
        "the model was loaded with another context while it was measured: 4096 tokens before, 8192 after"
    )
    assert problem.invalidates


def test_a_reload_inside_the_window_invalidates_the_run():
    problem = only(*one_after_another(19), sample(19, sent=3800, load=254))
    assert (problem.name, problem.invalidates) == ("model reloaded", True)
    assert problem.text == "the model was loaded again inside the window: 1 of 20 requests waited up to 254 ms for it"


def test_the_first_wave_may_wait_for_the_model_only_where_a_cold_start_is_asked_for():
    cold = [sample(0, load=900), sample(1, load=880, client=1), sample(2, sent=400)]
    problem = only(*cold)
    assert (problem.name, problem.invalidates) == ("warm-up missing", True)
    assert "2 of 3 requests waited up to 900 ms" in problem.text
    assert found(*cold, warmup=0, workload={"cold": True}) == ()


def test_a_warm_load_time_is_no_reload():
    assert found(*one_after_another(20, load=30)) == ()


def test_a_run_without_warm_up_says_so():
    problem = only(*one_after_another(20), warmup=0)
    assert (problem.name, problem.invalidates) == ("no warm-up", False)


def test_outputs_cut_short_spoil_a_run_of_synthetic_prompts():
    short = sample(19, sent=3800, tokens=5, done_reason="stop")
    problem = only(*one_after_another(19), short)
    assert (problem.name, problem.invalidates) == ("short outputs", False)
    assert problem.text.startswith("1 of 20 responses ended before num_predict=11 (1 by a stop token): 2.73 % of the")
    problem = only(*one_after_another(20, tokens=5, done_reason="stop"), workload={"num_predict": 11})
    assert problem.invalidates
    assert "20 of 20 responses" in problem.text
    assert "54.5 % of the tokens are missing" in problem.text


def test_prompts_of_ones_own_may_end_where_the_answer_does():
    own = {"num_predict": 18, "prompts": ("Name a colour.",)}
    assert not only(*one_after_another(20), workload=own).invalidates
    assert only(*one_after_another(20), workload=own | {"num_predict": 23}).invalidates


def test_an_embedding_is_not_short():
    assert found(*one_after_another(20, tokens=1), workload={"endpoint": Endpoint.EMBED, "num_predict": 64}) == ()


def test_prompts_that_arrive_with_fewer_tokens_than_words_were_cut():
    problem = only(*one_after_another(20, prompt=1026), workload={"prompt_words": 3000, "num_ctx": 2048})
    assert (problem.name, problem.invalidates) == ("prompts cut", True)
    assert "the longest has 3000 words, the server read at most 1026 tokens; raise num_ctx=2048" in problem.text


def test_cached_prompts_spoil_the_run_where_the_server_says_so():
    cached = [counted(one, prompt_eval_cached_count=29) for one in one_after_another(20)]
    problem = only(*cached)
    assert (problem.name, problem.invalidates) == ("cached prompts", True)
    assert problem.text == "20 of 20 prompts came from the prompt cache (96.7 % of all prompt tokens)"
    assert not only(cached[0], *one_after_another(20)[1:]).invalidates
    assert found(*cached, workload={"prefix": Prefix.WARM}) == ()


def test_the_common_opening_of_a_template_is_no_cached_prompt():
    assert found(*(counted(one, prompt_eval_cached_count=12) for one in one_after_another(20))) == ()


def test_cached_prompts_of_the_real_server_are_seen_though_it_does_not_say_so():
    first, again, other, back = transcript("prompt-cache")
    calm = {"workload": {"prompt_words": 900}}
    assert [problem.name for problem in found(again, *[other] * 9, **calm)] == ["cached prompts"]
    problem = next(one for one in found(again, other, back, **calm) if one.name == "cached prompts")
    assert problem.invalidates
    assert problem.text.startswith("2 of 3 prompts came from the prompt cache (their prefill took no longer than")
    assert not [one for one in found(first, other, **calm) if one.name == "cached prompts"]


def test_a_fast_prefill_is_not_taken_for_the_cache():
    # 40 tokens for each decode step, the fastest that a GPU's arithmetic allows.
    fast = one_after_another(20, prompt=512, prefill=128, step=10)
    assert found(*fast) == ()
    stalled = sample(20, sent=9000, prompt=512, prefill=2000, step=90)
    assert found(*fast, stalled) == ()


@pytest.mark.parametrize("name", ["four-slots", "queue-one-slot", "prefill-stalls-others"])
def test_what_the_real_server_did_in_peace_raises_no_alarm(name):
    served = transcript(name)[1:]
    longest = {"num_predict": max(one.counters.eval_count for one in served), "prompt_words": 1}
    # The recorded requests ask for different lengths, so the shorter ones look cut.
    alarms = [problem for problem in found(*served, workload=longest) if problem.code is not ProblemCode.SHORT_OUTPUTS]
    assert alarms == []


def buffered(index, chunks_a_read, tokens=64):
    """A stream whose chunks a proxy holds until it has ``chunks_a_read`` of them, sampled every 10 ms."""
    arrivals = [100 + (1 + at // chunks_a_read) * chunks_a_read * 10 for at in range(tokens)]
    chunk_ns = tuple((index * 1000 + at) * MS for at in arrivals)
    return sample(
        index, sent=index * 1000, tokens=tokens, chunk_ns=chunk_ns, first_token_ns=chunk_ns[0], done_ns=chunk_ns[-1]
    )


@pytest.mark.parametrize("chunks_a_read", [64, 32, 16, 8])
def test_a_buffering_proxy_invalidates_the_run(chunks_a_read):
    problem = only(*(buffered(index, chunks_a_read) for index in range(20)))
    assert (problem.name, problem.invalidates) == ("buffered stream", True)
    assert f"20 of 20 responses came in bursts of {chunks_a_read} chunks" in problem.text
    assert ("the first 630 ms late" in problem.text) == (chunks_a_read == 64)


def test_a_stream_that_came_faster_than_it_was_made_was_held_back():
    trickle = counted(sample(0, tokens=64, step=4), eval_duration_ns=630 * MS)
    problem = only(trickle)
    assert problem.invalidates
    assert problem.text == (
        "the stream was buffered on its way: 1 of 1 response came in bursts, the first 378 ms late; is there a proxy?"
    )


@pytest.mark.parametrize(
    ("held", "invalidates"), [(1, []), (2, []), (3, [False]), (5, [False]), (6, [True]), (10, [True])]
)
def test_responses_that_are_held_back_invalidate_the_run_from_a_quarter_on(held, invalidates):
    streams = [sample(at, sent=at * 1000, tokens=64) for at in range(held, 20)]
    problems_found = found(*(buffered(index, 64) for index in range(held)), *streams)
    assert [problem.invalidates for problem in problems_found] == invalidates


@pytest.mark.parametrize("chunks_a_read", [4, 5, 6])
def test_short_bursts_that_delay_the_first_token_invalidate_the_run(chunks_a_read):
    problem = only(*(buffered(index, chunks_a_read, tokens=60) for index in range(20)))
    assert (problem.code, problem.invalidates) == (ProblemCode.BUFFERED_STREAM, True)
    assert f"in bursts of {chunks_a_read} chunks" in problem.text


def speculative(index, accepted, tokens=61):
    """A stream of speculative decoding: the first token alone, then ``accepted`` tokens at a time, 10 ms for each."""
    at = [100, *(100 + (1 + token // accepted) * accepted * 10 for token in range(tokens - 1))]
    chunk_ns = tuple((index * 1000 + each) * MS for each in at)
    return sample(
        index, sent=index * 1000, tokens=tokens, chunk_ns=chunk_ns, first_token_ns=chunk_ns[0], done_ns=chunk_ns[-1]
    )


@pytest.mark.parametrize("accepted", [1, 2, 4, 5, 6])
def test_speculative_decoding_is_no_proxy(accepted):
    assert found(*(speculative(index, accepted) for index in range(20))) == ()


@pytest.mark.parametrize(
    ("watch", "url", "code"),
    [
        (ClientStats(loop_lag_p99_s=0.3), "http://127.0.0.1:11434", ProblemCode.CLIENT_BOUND),
        (ClientStats(cpu_share=0.8), "http://localhost:11434", ProblemCode.CLIENT_BOUND),
        (ClientStats(loop_lag_p99_s=0.3), "http://box:11434", ProblemCode.BUFFERED_STREAM),
        (ClientStats(), "http://127.0.0.1:11434", ProblemCode.BUFFERED_STREAM),
    ],
)
def test_a_busy_machine_that_runs_the_server_itself_is_not_called_a_proxy(watch, url, code):
    samples = [msgspec.structs.replace(buffered(index, 32), url=url) for index in range(20)]
    first = found(*samples, watch=watch)[0]
    assert first.code is code
    assert ("proxy" in first.text) == (code is ProblemCode.BUFFERED_STREAM)
    assert ("this machine was busy" in first.text) == (code is ProblemCode.CLIENT_BOUND)


def test_a_pause_in_the_stream_is_no_proxy():
    paused = tuple((100 + at * 2 + (1000 if at > 32 else 0)) * MS for at in range(64))
    one = sample(0, tokens=64, chunk_ns=paused, done_ns=paused[-1])
    assert found(counted(one, eval_duration_ns=1126 * MS)) == ()


@pytest.mark.parametrize(
    ("watch", "invalidates"),
    [
        (ClientStats(cpu_share=0.95), [True]),
        (ClientStats(cpu_share=0.75), [False]),
        (ClientStats(cpu_share=0.5, loop_lag_p90_s=0.02, loop_lag_p99_s=0.02), []),
        (ClientStats(loop_lag_p90_s=0.01, loop_lag_p99_s=0.03), [False]),
        (ClientStats(loop_lag_p90_s=0.03, loop_lag_p99_s=0.03), [True]),
    ],
)
def test_a_client_that_could_not_keep_up_invalidates_the_run(watch, invalidates):
    # The first token comes after 100 ms.
    assert [problem.invalidates for problem in found(*one_after_another(20), watch=watch)] == invalidates


@pytest.mark.parametrize(("requests", "invalidates"), [(4, [True]), (5, [False]), (9, [False])])
def test_one_hiccup_is_a_note_where_a_trimmed_mean_leaves_it_out(requests, invalidates):
    first, *others = one_after_another(requests)
    assert [
        each.invalidates for each in found(msgspec.structs.replace(first, read_lag_ns=30 * MS), *others)
    ] == invalidates


@pytest.mark.parametrize(("late", "invalidates"), [(0, []), (2, [False]), (3, [True])])
def test_late_reading_invalidates_a_run_only_where_it_is_more_than_a_hiccup(late, invalidates):
    samples = one_after_another(20)
    lagged = [msgspec.structs.replace(each, read_lag_ns=30 * MS) for each in samples[:late]]
    assert [problem.invalidates for problem in found(*lagged, *samples[late:])] == invalidates


def test_a_lag_counts_against_what_is_measured():
    slow_server = one_after_another(20, ttft=2000)
    assert found(*slow_server, watch=ClientStats(loop_lag_p99_s=0.1)) == ()
    problem = only(*one_after_another(20), watch=ClientStats(loop_lag_p99_s=0.1))
    assert problem.text == (
        "the client's event loop lagged by 100 ms (p99; p90 0 s), where the server answers in 100 ms"
    )


def test_an_open_loop_that_sends_late_did_not_offer_its_load():
    def late(by):
        return [sample(at, sent=at * 100 + by, scheduled_ns=at * 100 * MS) for at in range(20)]

    assert found(*late(5)) == ()
    problem = only(*late(400))
    assert (problem.name, problem.invalidates) == ("behind schedule", True)
    assert problem.text == "requests left late: 400 ms (p95) and up to 400 ms after their scheduled time"


def test_what_invalidates_comes_first():
    problems_found = found(*one_after_another(20), warmup=0, watch=ClientStats(cpu_share=0.95))
    assert [problem.invalidates for problem in problems_found] == [True, False]


def test_a_run_of_failures_or_of_nothing_has_facts_to_judge_but_no_crash():
    assert found() == ()
    assert found(failure(0), failure(1), before=state(), after=state()) == ()
    assert found(sample(0, counters=Counters(), chunk_ns=(), first_token_ns=None), workload={"num_predict": 0}) == ()
