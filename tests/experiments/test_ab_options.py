"""The words of a comparison, and what is wrong with them."""

from __future__ import annotations

import pytest

from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.experiments.ab import parse_options

BOTH = {"baseline": {"model": "a"}, "candidate": {"model": "b"}}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({}, "nothing to compare: pass baseline={...} and candidate={...}"),
        ({"baseline": "a"}, "baseline='a': expected a mapping such as {'model': 'llama3.2:3b'}"),
        ({"baseline": {"modle": "a"}}, "baseline: unknown argument 'modle'; did you mean 'model'? (valid: url, model"),
        ({**BOTH, "baselin": {}}, "unknown argument 'baselin'; did you mean 'baseline'?"),
        ({**BOTH, "requests": 7}, "requests=7: expected an even number from 2"),
        ({**BOTH, "requests": 0}, "requests=0: expected an even number from 2"),
        ({**BOTH, "requests": True}, "requests=True: expected an even number from 2"),
        ({**BOTH, "duration": 5}, "duration: both sides must send the same number of requests"),
        ({**BOTH, "min_tps": 5}, "min_tps: a comparison has no absolute limits, ollama_load has"),
        ({"candidate": {"requests": 8}}, "candidate: 'requests' applies to both sides; pass it next to"),
        ({"candidate": {"max_regression": "5%"}}, "candidate: 'max_regression' applies to both sides"),
        ({"candidate": {"num_ctx": "big"}}, "candidate: num_ctx='big': expected a whole number"),
        ({"candidate": {"url": ""}}, "candidate: url='': expected a server"),
        ({"candidate": {"url": "ftp://x"}}, "wrong server address 'ftp://x': scheme 'ftp' is not http or https"),
        ({**BOTH, "max_regression": {"ttft.p95": "5%"}}, "ttft.p95 cannot gate on 8 requests a side and block"),
        ({**BOTH, "max_regression": "5"}, "max_regression='5': expected a percentage above 0%"),
    ],
)
def test_wrong_words_are_refused_in_one_line(words, text):
    with pytest.raises(ConfigError) as error:
        parse_options(words, Settings())
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_words_of_a_side_win_over_those_of_both():
    test = parse_options({"model": "m", "num_ctx": 2048, "candidate": {"num_ctx": 8192}}, Settings())
    assert [side.spec.workload.num_ctx for side in (test.baseline, test.candidate)] == [2048, 8192]
    assert test.models == ("m",)


def test_a_prompt_of_one_side_replaces_the_prompts_of_both():
    test = parse_options({"prompts": ["x", "y"], "candidate": {"prompt": "z"}}, Settings())
    assert [side.spec.workload.prompts for side in (test.baseline, test.candidate)] == [("x", "y"), ("z",)]


def test_requests_are_so_many_a_side_and_block():
    test = parse_options({**BOTH, "requests": 20}, Settings())
    assert test.candidate.spec.workload.requests == 10


def test_a_baseline_url_alone_is_enough():
    test = parse_options({}, Settings(baseline_url="http://old:11434"))
    assert (test.baseline.url, test.candidate.url) == ("http://old:11434", None)
