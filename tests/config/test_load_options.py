"""The words of a load: what each becomes, what it is by default, and what a wrong one is told."""

from __future__ import annotations

import collections
import contextlib
import enum
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_ollama_perf.analysis.limits import Limit, list_limit_options
from pytest_ollama_perf.config.load_options import LOAD_OPTIONS
from pytest_ollama_perf.config.load_spec import (
    LoadSpec,
    build_load_spec,
    list_option_names,
    merge_options,
    parse_limits,
)
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.workload import ANY_MODEL, Arrival, Balance, Endpoint, Prefix, Stage, Timeouts, Workload


def workload(**words: object) -> Workload:
    return build_load_spec({"model": "tiny", **words}).workload


def refused(**words: object) -> str:
    with pytest.raises(ConfigError) as caught:
        build_load_spec({"model": "tiny", **words})
    return str(caught.value)


DATASET = Path(__file__).with_name("dataset.jsonl")
IMAGE = Path(__file__).with_name("nothing.png")

GOOD = [
    ("model", "llama3.2:3b", "model", "llama3.2:3b"),
    ("endpoint", "chat", "endpoint", Endpoint.CHAT),
    ("endpoint", Endpoint.EMBED, "endpoint", Endpoint.EMBED),
    ("stream", False, "stream", False),
    ("concurrency", 4, "concurrency", 4),
    ("rate", 2.5, "rate", 2.5),
    ("arrival", "constant", "arrival", Arrival.CONSTANT),
    ("requests", 7, "requests", 7),
    ("duration", "90s", "duration_s", 90.0),
    ("duration", 90, "duration_s", 90.0),
    ("drain", "500ms", "drain_s", 0.5),
    ("warmup", 0, "warmup", 0),
    ("think_time", 0.5, "think_time_s", (0.5, 0.5)),
    ("think_time", ("100ms", 2), "think_time_s", (0.1, 2.0)),
    ("prompt", "Why?", "prompts", ("Why?",)),
    ("prompts", ["Why?", "How?"], "prompts", ("Why?", "How?")),
    ("prompts", "Why?", "prompts", ("Why?",)),
    ("prompts", {"Why?": 3, "How?": 1}, "prompts", ("Why?", "How?")),
    ("prompts", {"Why?": 3, "How?": 1}, "weights", (3.0, 1.0)),
    ("dataset", str(DATASET), "prompts", ("Why?", "How?")),
    ("images", str(IMAGE), "images", ("iVBORw0KGgo=",)),
    ("turns", 3, "turns", 3),
    ("stages", [{"rate": 2, "ramp": "30s"}], "stages", (Stage(level=2.0, seconds=30.0, ramp=True),)),
    ("balance", "random", "balance", Balance.RANDOM),
    ("retries", 2, "retries", 2),
    ("abort_error_rate", "50%", "abort_error_rate", 0.5),
    ("reuse_connections", False, "reuse_connections", False),
    ("prompt_words", 100, "prompt_words", 100),
    ("prefix", "warm", "prefix", Prefix.WARM),
    ("raw", False, "raw", False),
    ("num_predict", 16, "num_predict", 16),
    ("num_ctx", 8192, "num_ctx", 8192),
    ("temperature", 0.7, "temperature", 0.7),
    ("seed", 42, "seed", 42),
    ("think", True, "think", True),
    ("think", "high", "think", "high"),
    ("keep_alive", "1h30m", "keep_alive", "1h30m"),
    ("keep_alive", "-1s", "keep_alive", "-1s"),
    ("keep_alive", -1, "keep_alive", -1.0),
    ("options", {"num_thread": 4}, "options", {"num_thread": 4}),
    ("cold", True, "cold", True),
    ("timeout", 30, "timeouts", Timeouts(total_s=30)),
    ("timeout", {"first_token": "20m", "idle": 5}, "timeouts", Timeouts(first_token_s=1200, idle_s=5)),
]


def test_every_word_of_a_load_is_held_to_its_field_here() -> None:
    assert {word for word, *_ in GOOD} == {name for name, option in LOAD_OPTIONS.items() if option.in_workload}


def test_a_baseline_text_says_nothing_about_the_load() -> None:
    spec = build_load_spec({"baseline": "2026-11: agreed"})
    assert spec.baseline == "2026-11: agreed"
    assert spec.workload == build_load_spec({}).workload
    with pytest.raises(ConfigError, match=r"baseline=' ': expected a text"):
        build_load_spec({"baseline": " "})


@pytest.mark.parametrize(("word", "value", "field", "made"), GOOD)
def test_a_word_becomes_its_field(word: str, value: object, field: str, made: object) -> None:
    beside = {"rate": 2} if word == "arrival" else {}  # an arrival is that of a rate
    assert getattr(workload(**{word: value}, **beside), field) == made


def test_a_load_without_words_is_twenty_requests_one_at_a_time_behind_one_warmup() -> None:
    spec = build_load_spec({})
    assert spec == LoadSpec(
        workload=Workload(model=ANY_MODEL, concurrency=1, requests=20, warmup=1, raw=True),
        limits=(Limit(metric="error_rate", stat="", op="<=", bound=0.0, text="max_error_rate=0"),),
        margins={},
    )


def test_the_model_of_the_settings_serves_where_the_marker_names_none() -> None:
    assert build_load_spec({}, default_model="mid").workload.model == "mid"
    assert build_load_spec({"model": "tiny"}, default_model="mid").workload.model == "tiny"


@pytest.mark.parametrize(
    ("words", "made"),
    [
        ({"concurrency": 4}, {"concurrency": 4, "rate": None, "requests": 20, "warmup": 4}),
        ({"concurrency": 8}, {"requests": 40, "warmup": 8}),
        ({"concurrency": 8, "requests": 3, "warmup": 0}, {"requests": 3, "warmup": 0}),
        ({"concurrency": 2, "duration": 5}, {"requests": None, "duration_s": 5.0, "warmup": 2}),
        ({"rate": 3}, {"concurrency": None, "rate": 3.0, "requests": 20, "warmup": 1, "arrival": Arrival.POISSON}),
        ({"rate": 3, "duration": "10s"}, {"concurrency": None, "requests": None, "duration_s": 10.0}),
        ({"endpoint": "chat"}, {"raw": False, "stream": True}),
        ({"endpoint": "embed"}, {"raw": False, "stream": False}),
        ({"prompt": "Why?"}, {"raw": False}),
        ({"prompt": "Why?", "raw": True}, {"raw": True}),
        ({"endpoint": "generate"}, {"raw": True}),
    ],
)
def test_defaults_follow_from_the_other_words(words: dict[str, object], made: dict[str, object]) -> None:
    found = msgspec.structs.asdict(workload(**words))
    assert {name: found[name] for name in made} == made


WHOLE = "expected a whole number from {} to 2147483647"
SECONDS = "expected seconds, as a number or with a unit such as '300ms', '2.5s' or '10m'"


@pytest.mark.parametrize(
    ("word", "value", "message"),
    [
        ("model", "", "model='': expected a text"),
        ("model", None, "model=None: expected a text"),
        ("endpoint", "caht", "endpoint='caht': expected one of generate, chat, embed; did you mean 'chat'?"),
        ("endpoint", 1, "endpoint=1: expected one of generate, chat, embed"),
        ("stream", "yes", "stream='yes': expected True or False"),
        ("concurrency", 0, "concurrency=0: " + WHOLE.format(1)),
        ("concurrency", 2.0, "concurrency=2.0: " + WHOLE.format(1)),
        ("concurrency", True, "concurrency=True: " + WHOLE.format(1)),
        ("concurrency", "4", "concurrency='4': " + WHOLE.format(1)),
        ("rate", 0, "rate=0: expected a number above 0"),
        ("rate", float("inf"), "rate=inf: expected a number above 0"),
        ("rate", "2/s", "rate='2/s': expected a number above 0"),
        ("arrival", "poison", "arrival='poison': expected one of constant, poisson; did you mean 'poisson'?"),
        ("requests", 0, "requests=0: " + WHOLE.format(1)),
        ("requests", 2**31, "requests=2147483648: " + WHOLE.format(1)),
        ("duration", "soon", f"duration='soon': {SECONDS}"),
        ("duration", 0, "duration=0s: must be more than 0"),
        ("drain", -1, f"drain=-1: {SECONDS}"),
        ("warmup", -1, "warmup=-1: " + WHOLE.format(0)),
        ("think_time", (2, 1), "think_time=(2, 1): the lower bound comes first"),
        ("think_time", (1, 2, 3), f"think_time=(1, 2, 3): {SECONDS}"),
        ("prompt", "", "prompt='': expected a text, not empty"),
        ("prompt", 5, "prompt=5: expected a text, not empty"),
        ("prompts", [], "prompts=[]: expected a list of texts, not empty"),
        ("prompts", ["a", ""], "prompts=['a', '']: expected a list of texts, not empty"),
        ("prompt_words", 0, "prompt_words=0: " + WHOLE.format(1)),
        ("prefix", "cold", "prefix='cold': expected one of unique, warm"),
        ("raw", 1, "raw=1: expected True or False"),
        ("num_predict", 0, "num_predict=0: " + WHOLE.format(1)),
        ("num_ctx", "4k", "num_ctx='4k': " + WHOLE.format(1)),
        ("temperature", -0.1, "temperature=-0.1: expected a number of at least 0"),
        ("seed", -1, "seed=-1: " + WHOLE.format(0)),
        ("think", "hard", "think='hard': expected True, False, 'low', 'medium', 'high', 'max'"),
        (
            "keep_alive",
            "forever",
            "keep_alive='forever': expected seconds or a duration such as '10m'; -1 keeps the model loaded",
        ),
        (
            "keep_alive",
            "300",
            "keep_alive='300': expected seconds or a duration such as '10m'; -1 keeps the model loaded",
        ),
        (
            "options",
            [("num_thread", 4)],
            "options=[('num_thread', 4)]: expected a mapping of Ollama options such as {'num_thread': 4}",
        ),
        ("options", {"stop": {1}}, "options={'stop': {1}}: a value cannot be written as JSON"),
        ("options", {"top_p": float("nan")}, "options={'top_p': nan}: a value cannot be written as JSON"),
        ("cold", None, "cold=None: expected True or False"),
        ("timeout", 0, "timeout=0: a timeout must be above 0"),
        (
            "timeout",
            {"first": 3},
            "timeout: no timeout 'first'; did you mean 'first_token'? (valid: connect, first_token, idle, total)",
        ),
        ("timeout", {"idle": "x"}, f"timeout['idle']='x': {SECONDS}"),
        (
            "limits",
            ["ttft.p95 <= 1s"],
            "limits=['ttft.p95 <= 1s']: expected a mapping such as {'ttft.p95': '<= 300ms'}",
        ),
        ("limits", {"tps": 5}, "limit 'tps': 5: expected a text such as '>= 150'"),
        (
            "max_regression",
            5,
            "max_regression=5: expected a percentage above 0%, such as 5%, or a share up to 1, such as 0.05",
        ),
        (
            "max_regression",
            {"tps": 0},
            "max_regression={'tps': 0}: expected a percentage above 0%, such as 5%, or a share up to 1, such as 0.05",
        ),
        (
            "max_regression",
            {"ttft.p59": "5%"},
            "max_regression={'ttft.p59': '5%'}: no percentile 'p59'; did you mean 'p99'? (valid: p50, p90, p95, p99)",
        ),
        ("max_ttft", 1, "max_ttft=1: ttft has one value per request, say which statistic: max_p50_ttft, max_p95_ttft"),
        ("min_ttft", 1, "min_ttft=1: lower is better for ttft; write max_p50_ttft or max_p95_ttft"),
        ("max_tps", 1, "max_tps=1: higher is better for tps; write min_tps"),
        ("max_p95_qps", 1, "max_p95_qps=1: higher is better for qps; write min_qps"),
        (
            "max_p98_ttft",
            1,
            "max_p98_ttft=1: unknown statistic 'p98'; did you mean 'p99'?; valid: mean, p50, p90, p95, p99, min, max",
        ),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_that_says_what_is_right(word: str, value: object, message: str) -> None:
    assert refused(**{word: value}) == message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"prompt": "a", "prompts": ["b"]}, "prompt and prompts contradict each other: give one of them"),
        ({"concurrency": 4, "rate": 2}, "concurrency=4 and rate=2 exclude each other: give one of them"),
        ({"requests": 5, "duration": 2}, "requests=5 and duration=2s exclude each other: give one of them"),
        (
            {"rate": 2, "think_time": 1},
            "think_time=1s..1s and rate=2 exclude each other: a rate has its own schedule",
        ),
        ({"endpoint": "embed", "think": True}, "think=True and endpoint='embed' exclude each other"),
        (
            {"num_ctx": 16, "prompt_words": 64},
            "prompt_words=64 do not fit into num_ctx=16: raise num_ctx",
        ),
        (
            {"num_ctx": 4096, "options": {"num_ctx": 8192}},
            "options {'num_ctx': 8192} contradicts num_ctx=4096: give num_ctx=8192 alone",
        ),
    ],
)
def test_words_that_contradict_each_other_are_refused(words: dict[str, object], message: str) -> None:
    assert refused(**words) == message


EVERY_WORD = (
    "model, endpoint, stream, concurrency, rate, arrival, stages, requests, duration, drain, warmup, think_time, "
    "prompt, prompts, dataset, turns, images, prompt_words, prefix, raw, num_predict, num_ctx, temperature, seed, "
    "think, keep_alive, options, cold, balance, timeout, retries, abort_error_rate, reuse_connections, "
    "baseline, limits, "
    "max_regression, min_tps, min_throughput, min_qps, max_error_rate, and max_<stat>_<metric> such as max_p95_latency"
)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("concurency", "concurrency"),
        ("min_tsp", "min_tps"),
        ("max_regresion", "max_regression"),
        ("max_p95_latancy", "max_p95_latency"),
        ("Model", "model"),
    ],
)
def test_an_unknown_word_is_told_which_was_meant_and_which_there_are(word: str, meant: str) -> None:
    assert refused(**{word: 1}) == f"unknown argument '{word}'; did you mean '{meant}'? (valid: {EVERY_WORD})"


def test_a_word_like_no_other_is_told_which_there_are() -> None:
    assert refused(zzz=1) == f"unknown argument 'zzz' (valid: {EVERY_WORD})"


def test_known_words_are_those_of_the_load_and_those_that_judge() -> None:
    assert list_option_names() == (*LOAD_OPTIONS, "limits", "max_regression", *list_limit_options())


def test_limits_of_every_form_are_read_in_their_order() -> None:
    words = {
        "min_tps": 150,
        "max_p95_latency": "2.5s",
        "limits": {"ttft.p95": "<= 300ms", "itl": ["p99 <= 50ms", "max <= 1s"]},
    }
    assert [(each.metric, each.stat, each.op, each.bound) for each in build_load_spec(words).limits] == [
        ("tps", "", ">=", 150.0),
        ("latency", "p95", "<=", 2.5),
        ("ttft", "p95", "<=", 0.3),
        ("itl", "p99", "<=", 0.05),
        ("itl", "max", "<=", 1.0),
        ("error_rate", "", "<=", 0.0),
    ]


@pytest.mark.parametrize("words", [{"max_error_rate": "5%"}, {"limits": {"error_rate": "<= 5%"}}])
def test_a_limit_on_errors_replaces_the_one_of_none(words: dict[str, object]) -> None:
    assert [(each.metric, each.bound) for each in build_load_spec(words).limits] == [("error_rate", 0.05)]


def test_a_check_of_a_result_adds_no_limit_of_its_own() -> None:
    assert [each.text for each in parse_limits({"min_tps": 5})] == ["min_tps=5"]


def test_a_check_of_a_result_takes_no_word_of_the_load() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_limits({"concurrency": 4})
    assert str(caught.value) == (
        "unknown argument 'concurrency' (valid: limits, min_tps, min_throughput, min_qps, max_error_rate, "
        "and max_<stat>_<metric> such as max_p95_latency)"
    )


@pytest.mark.parametrize(
    ("given", "margins"),
    [
        ("10%", {"tps": 0.1, "ttft": 0.1}),
        (0.1, {"tps": 0.1, "ttft": 0.1}),
        ({"tps": "5%", "ttft.p95": 0.25}, {"tps": 0.05, "ttft.p95": 0.25}),
        ({}, {}),
    ],
)
def test_max_regression_is_one_margin_or_one_for_each_number(given: object, margins: dict[str, float]) -> None:
    assert build_load_spec({"max_regression": given}).margins == margins


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {"endpoint": "embed", "min_tps": 5},
            "tps: embeddings generate no tokens, so this load does not have it; leave it out",
        ),
        (
            {"stream": False, "max_p95_itl": 0.1},
            "itl p95: with stream=False the arrival of tokens is unknown, so this load does not have it; leave it out",
        ),
        (
            {"endpoint": "embed", "limits": {"queue.p50": "<= 1s"}},
            "queue p50: embeddings generate no tokens, so this load does not have it; leave it out",
        ),
        (
            {"stream": False, "max_regression": {"ttft.p95": "25%"}},
            "max_regression: ttft.p95: with stream=False the arrival of tokens is unknown, so this load does not "
            "have it; leave it out",
        ),
        (
            {"endpoint": "embed", "max_regression": "10%"},
            "max_regression='10%' is about tps and ttft: embeddings generate no tokens; write {'latency': '10%'}",
        ),
        (
            {"min_goodput": 2, "max_mean_latency": 3},
            "goodput counts the requests that meet every limit on a time: add one, such as max_p95_latency",
        ),
    ],
)
def test_what_no_such_load_can_have_is_refused_before_it_is_fired(words: dict[str, object], message: str) -> None:
    assert refused(**words) == message


def test_a_margin_for_the_usual_numbers_holds_for_those_the_load_has() -> None:
    assert build_load_spec({"stream": False, "max_regression": "10%"}).margins == {"tps": 0.1}


def test_a_long_value_is_cut_in_the_error() -> None:
    message = refused(prompts=["x" * 50, ""] * 1000)
    assert len(message) < 200
    assert message.endswith("…: expected a list of texts, not empty")


class Colour(enum.Enum):
    RED = "chat"


class Nasty:
    """An object of a user, at its worst."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __hash__ = None  # type: ignore[assignment]


CIRCLE: dict[str, object] = {}
CIRCLE["again"] = CIRCLE

ANYTHING = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.complex_numbers(),
        st.text(st.characters()),
        st.binary(),
        st.dates(),
        st.decimals(),
        st.fractions(),
        st.builds(object),
        st.sampled_from([Colour.RED, Endpoint.CHAT, Colour]),
        st.sampled_from([400, 5000]).map(lambda digits: 10**digits),
        st.just("\ud800"),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(), st.none()), inner, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=3).map(MappingProxyType),
        st.lists(inner, max_size=3).map(collections.deque),
    ),
    max_leaves=5,
)


@given(word=st.sampled_from(list_option_names()), value=ANYTHING)
@example(word="limits", value={"tps": 10**400})
@example(word="min_tps", value=10**5000)
@example(word="max_p95_ttft", value=10**400)
@example(word="options", value=CIRCLE)
@example(word="options", value={"seed": 10**400})
@example(word="options", value={"x": 10**30})
@example(word="max_regression", value={"tps": 10**5000})
@example(word="timeout", value={10**5000: 1})
@example(word="timeout", value={"total": 10**400})
@example(word="prompt", value="\ud800")
def test_any_value_of_any_word_is_taken_or_refused_in_one_line(word: str, value: object) -> None:
    lines: list[str] = []
    with contextlib.suppress(ConfigError):
        try:
            spec = build_load_spec({"model": "tiny", word: value})
            msgspec.json.encode(spec.workload)
        except ConfigError as error:
            lines = str(error).splitlines()
            raise
    assert len(lines) <= 1


@pytest.mark.parametrize("word", list_option_names())
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [value], lambda value: {"ttft.p95": value}])
def test_an_object_that_cannot_even_be_shown_is_refused_by_its_type(
    word: str, wrap: Callable[[object], object]
) -> None:
    message = refused(**{word: wrap(Nasty())})
    assert "RuntimeError" not in message


def test_an_arrival_without_a_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match="arrival='poisson' has no effect without rate: give one, or leave it out"):
        build_load_spec({"model": "m", "concurrency": 4, "arrival": "poisson"})


def test_the_arrival_of_a_replaced_rate_goes_with_it() -> None:
    assert merge_options([{"concurrency": 4}, {"rate": 2, "arrival": "constant"}]) == {"concurrency": 4}


def test_the_length_of_synthetic_prompts_contradicts_a_prompt_and_gives_way_to_a_nearer_one() -> None:
    with pytest.raises(ConfigError, match="prompt and prompt_words contradict each other"):
        build_load_spec({"model": "m", "prompt": "hello", "prompt_words": 64})
    assert merge_options([{"prompt": "hello"}, {"prompt_words": 64}]) == {"prompt": "hello"}


def test_the_name_of_an_unknown_argument_is_no_command_of_a_ci_system():
    with pytest.raises(ConfigError) as caught:
        build_load_spec({"a\n::error::b": 1})
    assert "\n" not in str(caught.value)
