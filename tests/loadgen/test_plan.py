from __future__ import annotations

import json

import pytest
from scripted import closed, opened, timed

from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.workload import Endpoint, Prefix, Timeouts, Workload
from pytest_ollama_perf.loadgen import plan
from pytest_ollama_perf.loadgen.plan import LoadPlan, validate_workload
from pytest_ollama_perf.loadgen.prompts import PromptGenerator


def body(workload: Workload, index: int = 0) -> dict:
    return json.loads(LoadPlan(workload).get_body(index))


def test_generate_sends_everything_that_decides_the_measurement():
    workload = closed(model="llama3.2:3b", num_predict=7, num_ctx=512, seed=3, temperature=0.5, keep_alive="1h")
    assert body(workload) == {
        "model": "llama3.2:3b",
        "prompt": PromptGenerator(workload).build_prompt(0),
        "raw": True,
        "stream": True,
        "keep_alive": "1h",
        "options": {"num_ctx": 512, "num_predict": 7, "temperature": 0.5, "seed": 3},
    }


def test_generate_through_the_template_puts_the_nonce_before_the_models_own_system_message():
    workload = closed(raw=False, prompts=("Why?",))
    sent = body(workload)
    assert sent["system"] == PromptGenerator(workload).build_nonce(0)
    assert sent["prompt"] == f"{sent['system']}\nWhy?"
    assert sent["raw"] is False


def test_chat_puts_the_nonce_first_in_the_system_message_and_in_the_prompt():
    workload = closed(endpoint=Endpoint.CHAT, prompts=("Why?",), stream=False)
    sent = body(workload, 1)
    nonce = PromptGenerator(workload).build_nonce(1)
    assert sent["messages"] == [
        {"role": "system", "content": nonce},
        {"role": "user", "content": f"{nonce}\nWhy?"},
    ]
    assert sent["stream"] is False
    assert "raw" not in sent


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.GENERATE])
def test_a_warm_load_sends_no_nonce_anywhere(endpoint):
    sent = body(closed(endpoint=endpoint, prompts=("Why?",), prefix=Prefix.WARM, raw=False))
    assert "system" not in sent
    assert sent.get("messages", [{"role": "user", "content": sent.get("prompt")}]) == [
        {"role": "user", "content": "Why?"}
    ]


def test_embed_sends_input_and_options():
    workload = closed(endpoint=Endpoint.EMBED, model="e")
    sent = body(workload)
    assert set(sent) == {"model", "input", "keep_alive", "options"}
    assert sent["input"] == PromptGenerator(workload).build_prompt(0)


def test_thinking_goes_through_the_template():
    sent = body(closed(think="high"))
    assert (sent["think"], sent["raw"]) == ("high", False)


def test_options_of_the_user_are_added():
    assert body(closed(options={"top_k": 1, "stop": ["\u2028"]}))["options"] == {
        "num_predict": 64,
        "top_k": 1,
        "stop": ["\u2028"],
    }


def test_an_option_that_agrees_with_a_named_word_is_no_contradiction():
    assert body(closed(num_ctx=512, options={"num_ctx": 512}))["options"]["num_ctx"] == 512


def test_bodies_encoded_ahead_and_later_are_the_same(monkeypatch):
    ahead = LoadPlan(closed(requests=30))
    monkeypatch.setattr(plan, "_MAX_PRE_ENCODED_BYTES", 2000)
    bounded = LoadPlan(closed(requests=30))
    later = LoadPlan(closed(**timed(duration_s=1.0)))
    indices = range(30)
    assert (
        [ahead.get_body(i) for i in indices]
        == [bounded.get_body(i) for i in indices]
        == [later.get_body(i) for i in indices]
    )
    assert (len(ahead._pre_encoded), len(bounded._pre_encoded) < 30, len(later._pre_encoded)) == (30, True, 0)


def test_equal_workloads_give_equal_bytes_and_salts_differ():
    one, same, other = (LoadPlan(closed(salt=salt)).get_body(2) for salt in ("a", "a", "b"))
    assert one == same != other


WRONG = [
    (
        closed(concurrency=None),
        "neither concurrency nor rate is given: "
        "concurrency keeps that many requests running, rate starts that many a second",
    ),
    (opened(concurrency=4, rate=2.0), "concurrency=4 and rate=2 exclude each other: give one of them"),
    (closed(concurrency=0), "concurrency=0: must be at least 1"),
    (opened(rate=0.0), "rate=0: must be more than 0 requests a second"),
    (opened(rate=float("inf")), "rate=inf: must be more than 0 requests a second"),
    (closed(requests=None), "neither requests nor duration is given: the load would never stop"),
    (closed(duration_s=9.5), "requests=4 and duration=9.5s exclude each other: give one of them"),
    (closed(requests=0), "requests=0: must be at least 1"),
    (closed(**timed(duration_s=0.0)), "duration=0s: must be more than 0"),
    (closed(warmup=-1), "warmup=-1: must be 0 or more requests"),
    (closed(think_time_s=(2.0, 1.0)), "think_time=2s..1s: must be 0 or more seconds, the lower bound first"),
    (closed(think_time_s=(-1.0, 1.0)), "think_time=-1s..1s: must be 0 or more seconds, the lower bound first"),
    (opened(think_time_s=(1.0, 2.0)), "think_time=1s..2s and rate=10 exclude each other: a rate has its own schedule"),
    (closed(num_predict=0), "num_predict=0: must be at least 1 (Ollama takes 0 and less as unlimited)"),
    (closed(num_ctx=0), "num_ctx=0: must be at least 1"),
    (closed(seed=-1), "seed=-1: must be 0 to 2147483647 (Ollama takes a negative one as random)"),
    (closed(temperature=-0.5), "temperature=-0.5: must be 0 or more"),
    (closed(prompts=("Why?", " ")), "prompts: number 2 is empty, and an empty prompt only loads the model"),
    (
        closed(prompt_words=4),
        "prompt_words=4: must be at least 8, or prefix='warm': "
        "the first 8 words keep prompts out of the server's cache",
    ),
    (closed(prompt_words=0, prefix=Prefix.WARM), "prompt_words=0: must be at least 1"),
    (closed(prompt_words=512, num_ctx=512), "prompt_words=512 do not fit into num_ctx=512: raise num_ctx"),
    (closed(think="hihg"), "think='hihg' is no level; did you mean 'high'?"),
    (closed(think="x"), "think='x' is no level; valid are True, False, 'low', 'medium', 'high', 'max'"),
    (closed(think=True, endpoint=Endpoint.EMBED), "think=True and endpoint='embed' exclude each other"),
    (closed(seed=1, options={"seed": 9}), "options {'seed': 9} contradicts seed=1: give seed=9 alone"),
    (closed(timeouts=Timeouts(idle_s=0)), "timeout idle=0s: must be more than 0"),
    (closed(drain_s=-1.0), "drain=-1s: must be 0 or more"),
    (closed(concurrency="4"), "concurrency: expected `int | null`, got `str`"),
    (closed(prompt_set=5), "prompt_set: expected `str`, got `int`"),
    (closed(drain_s="1"), "drain: expected `float`, got `str`"),
    (closed(timeouts=Timeouts(connect_s="1")), "timeouts.connect: expected `float`, got `str`"),
    (closed(concurrency=True), "concurrency: expected `int | null`, got `bool`"),
    (closed(think_time_s=("a", 1.0)), "think_time[0]: expected `float`, got `str`"),
    (closed(timeouts=Timeouts(connect_s="x")), "timeouts.connect: expected `float`, got `str`"),
    (closed(options={"stop": object()}), "options: encoding objects of type object is unsupported"),
    (closed(prompts=("a\ud800",)), "prompts: a text holds half a character (U+D800), which is no Unicode"),
]


@pytest.mark.parametrize(("workload", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_an_impossible_workload_is_refused_in_one_line(workload, message):
    with pytest.raises(ConfigError) as refused:
        validate_workload(workload)
    assert str(refused.value) == message


def test_what_cannot_be_fired_makes_no_plan():
    with pytest.raises(ConfigError, match="requests=0"):
        LoadPlan(closed(requests=0))


@pytest.mark.parametrize(
    "workload",
    [
        Workload(model="m"),
        closed(requests=1, warmup=5, concurrency=9),
        opened(**timed(duration_s=0.1)),
        closed(prompt_words=1, prefix=Prefix.WARM),
        closed(prompts=("Why?",), prompt_words=0),
        closed(endpoint="chat"),
    ],
)
def test_a_possible_workload_passes(workload):
    validate_workload(workload)


def test_an_endpoint_given_as_text_is_that_endpoint():
    assert "messages" in body(closed(endpoint="chat"))
