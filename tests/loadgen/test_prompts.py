from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from scripted import closed

from pytest_ollama_perf.core.workload import Prefix
from pytest_ollama_perf.loadgen.prompts import NONCE_WORDS, WORDS, PromptGenerator

INDEX = st.integers(0, 2**24 - 1)
SALT = st.text(max_size=12)


def test_the_words_are_256_different_ones_of_four_letters():
    assert len(set(WORDS)) == len(WORDS) == 256
    assert all(len(word) == 4 and word.isascii() and word.islower() for word in WORDS)


@given(st.integers(NONCE_WORDS, 3000), INDEX)
def test_a_synthetic_prompt_has_exactly_the_words_asked_for(words, index):
    text = PromptGenerator(closed(prompt_words=words)).build_prompt(index)
    assert text == "".join(f" {word}" for word in text.split())
    assert len(text.split()) == words
    assert set(text.split()) <= set(WORDS)


@given(SALT, st.integers(0, 2**31 - 1), INDEX)
def test_equal_seeds_and_salts_give_equal_prompts(salt, seed, index):
    first, second = (PromptGenerator(closed(salt=salt, seed=seed)) for _ in range(2))
    assert first.build_prompt(index) == second.build_prompt(index)


@given(SALT, INDEX)
def test_first_words_differ_within_any_256_requests(salt, start):
    prompts = PromptGenerator(closed(salt=salt))
    firsts = {prompts.build_prompt(index).split()[0] for index in range(start, start + 256)}
    assert len(firsts) == 256


def test_nonces_never_repeat_within_a_run():
    prompts = PromptGenerator(closed(salt="a"))
    assert len({prompts.build_nonce(index) for index in range(20_000)}) == 20_000


@given(st.sets(st.integers(0, 2**40), max_size=300))
def test_nonces_of_requests_far_apart_differ(indices):
    prompts = PromptGenerator(closed(salt="a"))
    assert len({prompts.build_nonce(index) for index in indices}) == len(indices)


@given(SALT, SALT, INDEX, INDEX)
def test_nonces_of_different_salts_differ(one, other, index, elsewhere):
    if one != other:
        assert PromptGenerator(closed(salt=one)).build_nonce(index) != PromptGenerator(closed(salt=other)).build_nonce(
            elsewhere
        )


@given(SALT, INDEX)
def test_the_first_two_words_differ_within_any_65536_requests(salt, start):
    prompts = PromptGenerator(closed(salt=salt))
    same_first = (prompts.build_nonce(start + 256 * step).split()[:2] for step in range(256))
    assert len({tuple(words) for words in same_first}) == 256


def after_nonce(text: str) -> list[str]:
    return text.split()[NONCE_WORDS:]


@given(SALT, SALT, INDEX)
def test_what_follows_the_nonce_depends_on_the_seed_alone(one, other, index):
    first, second = (PromptGenerator(closed(salt=salt)).build_prompt(index) for salt in (one, other))
    assert after_nonce(first) == after_nonce(second)


def test_another_seed_gives_other_words():
    first, second = (after_nonce(PromptGenerator(closed(seed=seed)).build_prompt(3)) for seed in (1, 2))
    assert first != second


def test_texts_differ_between_requests():
    prompts = PromptGenerator(closed(prompt_words=40))
    assert len({tuple(after_nonce(prompts.build_prompt(index))) for index in range(8192)}) == 8192


def test_a_warm_load_repeats_one_synthetic_text():
    prompts = PromptGenerator(closed(prefix=Prefix.WARM, prompt_words=10))
    assert prompts.build_nonce(0) == ""
    assert len({prompts.build_prompt(index) for index in range(50)}) == 1
    assert len(prompts.build_prompt(0).split()) == 10


def test_given_prompts_are_cycled_behind_a_nonce():
    prompts = PromptGenerator(closed(prompts=("Why?", "How?")))
    texts = [prompts.build_prompt(index) for index in range(3)]
    assert [text.partition("\n")[2] for text in texts] == ["Why?", "How?", "Why?"]
    assert [text.partition("\n")[0] for text in texts] == [prompts.build_nonce(index) for index in range(3)]


def test_given_prompts_of_a_warm_load_go_out_as_they_are():
    prompts = PromptGenerator(closed(prompts=("Why?", "How?"), prefix=Prefix.WARM))
    assert [prompts.build_prompt(index) for index in range(3)] == ["Why?", "How?", "Why?"]


def test_prompts_stay_the_same_from_version_to_version():
    # a stored history holds only as long as the load is the same
    prompts = PromptGenerator(closed(prompt_words=12, seed=1, salt="monday"))
    assert prompts.build_prompt(0) == " band clay look even cope jump even boot done date gulf able"
    assert prompts.build_prompt(70_000) == " feel data kept blow half atom deep door good ease hair bill"
