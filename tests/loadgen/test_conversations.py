"""Chats of several turns, retries, connections of one request, mixes and datasets: what is sent, in virtual time."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from run_makers import run_of
from run_makers import sample as sample_of
from scripted import SECOND, Scripted, fired

from pytest_ollama_perf.analysis.client_checks import find_cached_prompts
from pytest_ollama_perf.config.load_spec import build_load_spec
from pytest_ollama_perf.core import ConfigError
from pytest_ollama_perf.core.sample import Counters, Outcome, Sample
from pytest_ollama_perf.core.workload import Workload, compute_identity
from pytest_ollama_perf.loadgen import Request, engine
from pytest_ollama_perf.loadgen.plan import LoadPlan, validate_workload
from pytest_ollama_perf.loadgen.prompts import PromptPicker
from pytest_ollama_perf.metrics.per_request import list_request_values


def workload(**words) -> Workload:
    return build_load_spec({"model": "m", "warmup": 0, **words}).workload


class Speaking(Scripted):
    """Answers every question with its number; ``broken`` are the indexes that fail."""

    broken: frozenset[int] = frozenset()

    async def serve(self, request: Request) -> None:
        await super().serve(request)
        if request.answer_parts is not None:
            request.answer_parts.extend(["answer ", str(request.index)])

    def sample(self, request: Request, sent_ns: int, outcome: Outcome) -> Sample:
        failed = request.index in self.broken
        return super().sample(request, sent_ns, Outcome.CUT_OFF if failed else outcome)


def chats(backend: Scripted) -> list[list[tuple[str, str]]]:
    """Return the messages of each request, a nonce as ``...``."""
    found = []
    for request in backend.requests:
        messages = json.loads(request.body)["messages"]
        found.append([(each["role"], each["content"].rpartition("\n")[2]) for each in messages])
    return found


def test_a_client_keeps_a_chat_with_the_answers_in_it_and_begins_anew_after_its_turns() -> None:
    backend = Speaking(1.0)
    asked = workload(turns=3, requests=4, prompts=["q0", "q1", "q2", "q3"], prefix="warm")
    samples = fired(asked, backend)
    assert chats(backend) == [
        [("user", "q0")],
        [("user", "q0"), ("assistant", "answer 0"), ("user", "q1")],
        [
            ("user", "q0"),
            ("assistant", "answer 0"),
            ("user", "q1"),
            ("assistant", "answer 1"),
            ("user", "q2"),
        ],
        [("user", "q3")],
    ]
    assert [sample.turn for sample in samples] == [1, 2, 3, 1]
    assert asked.endpoint.value == "chat"


def test_clients_keep_their_own_chats() -> None:
    backend = Speaking(1.0)
    fired(workload(turns=2, concurrency=2, requests=4, prompts=["a", "b", "c", "d"], prefix="warm"), backend)
    asked = sorted(
        (request.client, request.turn, chat[0][1])
        for request, chat in zip(backend.requests, chats(backend), strict=True)
    )
    assert asked == [(0, 1, "a"), (0, 2, "a"), (1, 1, "b"), (1, 2, "b")]


def test_a_chat_that_was_cut_short_is_not_taken_up_again() -> None:
    backend = Speaking(1.0)
    backend.broken = frozenset({1})
    fired(workload(turns=3, requests=4, prompts=["q"], prefix="warm"), backend)
    assert [len(chat) for chat in chats(backend)] == [1, 3, 1, 3]


def test_the_first_turn_alone_carries_the_nonce_that_keeps_chats_out_of_the_cache() -> None:
    backend = Speaking(1.0)
    fired(workload(turns=2, requests=4, prompts=["q"]), backend)
    messages = [json.loads(request.body)["messages"] for request in backend.requests]
    assert [chat[0]["role"] for chat in messages] == ["system"] * 4
    assert messages[1][:2] == messages[0]
    assert messages[1][-1] == {"role": "user", "content": "q"}
    assert messages[2][0] != messages[0][0]


def test_later_turns_meet_the_prompt_cache_by_nature_and_void_nothing() -> None:
    def cached(index: int, turn: int, tokens: int) -> Sample:
        one = sample_of(index, turn=turn)
        return msgspec.structs.replace(
            one, counters=msgspec.structs.replace(one.counters, prompt_eval_cached_count=tokens)
        )

    assert find_cached_prompts(run_of(cached(0, 1, 0), cached(1, 2, 29), cached(2, 3, 29))) is None
    found = find_cached_prompts(run_of(cached(0, 1, 29), cached(1, 2, 29)))
    assert found is not None
    assert (found.requests, found.of) == (1, 1)


class Full(Scripted):
    """Rejects each request a number of times, with 503."""

    times = 2
    status = 503

    def sample(self, request: Request, sent_ns: int, outcome: Outcome) -> Sample:
        one = super().sample(request, sent_ns, outcome)
        tries = Counter(each.index for each in self.requests)[request.index]
        if tries > self.times:
            return msgspec.structs.replace(one, status=200)
        return msgspec.structs.replace(
            one, outcome=Outcome.BUSY, status=self.status, error="server busy", counters=Counters()
        )


def test_a_request_that_is_turned_away_is_sent_again_after_a_pause_that_doubles() -> None:
    backend = Full(1.0)
    (only,) = fired(workload(requests=1, retries=3), backend)
    pauses = [engine.compute_retry_pause_s(1, 0, tries) for tries in (1, 2)]
    assert 0.25 <= pauses[0] <= 0.75 <= 2 * pauses[1] <= 3.0
    assert (only.outcome, only.attempt, only.first_error) == (Outcome.OK, 3, "busy: server busy")
    assert only.first_sent_ns == SECOND // 2
    assert only.sent_ns / SECOND == pytest.approx(0.5 + 1 + pauses[0] + 1 + pauses[1])
    # what a user waits for begins with the first attempt
    assert list_request_values("latency", [only]) == [pytest.approx(3 + sum(pauses))]


def test_without_retries_the_first_answer_stands() -> None:
    (only,) = fired(workload(requests=1), Full(1.0))
    assert (only.outcome, only.attempt, only.first_sent_ns, only.first_error) == (Outcome.BUSY, 1, None, "")


def test_retries_end_where_they_were_to_end_and_the_failure_is_a_failure() -> None:
    backend = Full(1.0)
    (only,) = fired(workload(requests=1, retries=1), backend)
    assert (only.outcome, only.attempt, len(backend.requests)) == (Outcome.BUSY, 2, 2)


@pytest.mark.parametrize(("status", "tries"), [(502, 2), (503, 2), (504, 2), (500, 1), (404, 1)])
def test_only_a_full_or_restarting_server_is_asked_again(status: int, tries: int) -> None:
    backend = Full(1.0)
    backend.status, backend.times = status, 1
    fired(workload(requests=1, retries=5), backend)
    assert len(backend.requests) == tries


def test_connections_that_are_not_reused_are_not_opened_before_the_clock_either() -> None:
    backend = Scripted(1.0)
    fired(workload(requests=3, reuse_connections=False), backend)
    assert [request.reuse_connection for request in backend.requests] == [False] * 3
    assert LoadPlan(workload(concurrency=4, reuse_connections=False)).connections == 0
    assert LoadPlan(workload(concurrency=4)).connections == 4


def test_a_mix_sends_each_prompt_by_its_weight() -> None:
    picker = PromptPicker(workload(prompts={"short": 3, "long": 1}))
    for requests in (40, 400, 4000):
        sent = Counter(picker.pick(index) for index in range(requests))
        assert sent[0] / requests == pytest.approx(0.75, abs=3 / requests)
    # and never in long rows
    rare = [index for index in range(400) if picker.pick(index) == 1]
    assert max(later - earlier for earlier, later in pairwise(rare)) <= 5


def test_the_mix_is_the_same_in_every_run_of_a_seed_and_another_in_another() -> None:
    one, again, other = (PromptPicker(workload(prompts={"a": 1, "b": 2}, seed=seed)) for seed in (1, 1, 2))
    assert [one.pick(index) for index in range(50)] == [again.pick(index) for index in range(50)]
    assert [one.pick(index) for index in range(50)] != [other.pick(index) for index in range(50)]


def bodies(asked: Workload, count: int) -> list[dict]:
    plan = LoadPlan(asked)
    return [json.loads(plan.get_body(index)) for index in range(count)]


def dataset(folder: Path, *rows: object) -> str:
    path = folder / "set.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def test_a_dataset_of_prompts_is_sent_in_turn(tmp_path: Path) -> None:
    asked = workload(dataset=dataset(tmp_path, {"prompt": "a"}, "", {"prompt": "b"}), prefix="warm")
    assert [body["prompt"] for body in bodies(asked, 3)] == ["a", "b", "a"]
    assert asked.raw is False


def test_a_dataset_with_messages_is_a_chat(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    asked = workload(dataset=dataset(tmp_path, {"messages": chat}, {"prompt": "How?"}))
    first, second = bodies(asked, 2)
    assert [each["role"] for each in first["messages"]] == ["system", "user"]
    assert first["messages"][0]["content"].endswith("\nBe brief.")
    assert first["messages"][0]["content"].startswith(" ")
    assert [each["role"] for each in second["messages"]] == ["system", "user"]
    assert second["messages"][1]["content"] == "How?"


def test_lines_of_a_dataset_may_have_weights(tmp_path: Path) -> None:
    asked = workload(dataset=dataset(tmp_path, {"prompt": "a", "weight": 9}, {"prompt": "b"}), prefix="warm")
    assert Counter(body["prompt"] for body in bodies(asked, 100)) == {"a": 90, "b": 10}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", 'Input data was truncated; expected {"prompt": ...} or {"messages": [...]}'),
        ('{"promt": "a"}', 'Object contains unknown field `promt`; expected {"prompt": ...} or'),
        ('{"prompt": 3}', "Expected `str | null`, got `int` - at `$.prompt`; expected"),
        ("{}", 'expected one of "prompt" and "messages"'),
        ('{"prompt": "a", "messages": []}', 'expected one of "prompt" and "messages"'),
        ('{"prompt": " "}', "the prompt is empty, and an empty prompt only loads the model"),
        ('{"messages": []}', "the chat has no message of the user"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "asistant", "content": "b"}]}',
            "no role 'asistant'; did you mean 'assistant'?",
        ),
        ('{"prompt": "a", "weight": 0}', "weight 0.0: expected a number above 0"),
    ],
)
def test_a_wrong_line_of_a_dataset_is_told_with_file_and_number(tmp_path: Path, row: str, message: str) -> None:
    path = dataset(tmp_path, {"prompt": "fine"}, row)
    with pytest.raises(ConfigError) as caught:
        workload(dataset=path)
    assert str(caught.value).startswith(f"{path}:2: {message}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_dataset_that_is_missing_or_empty_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^dataset: cannot read .*nope.jsonl: No such file or directory$"):
        workload(dataset=str(tmp_path / "nope.jsonl"))
    with pytest.raises(ConfigError, match=r"the file has no lines$"):
        workload(dataset=dataset(tmp_path, ""))


PNG, JPEG = b"\x89PNG\r\n\x1a\n1", b"\xff\xd8\xff2"


def test_images_go_out_one_a_request_in_turn(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.jpg").write_bytes(JPEG)
    paths = [str(tmp_path / "a.png"), tmp_path / "b.jpg"]
    sent = [body["images"] for body in bodies(workload(images=paths), 3)]
    assert sent == [["iVBORw0KGgox"], ["/9j/Mg=="], ["iVBORw0KGgox"]]
    chat = bodies(workload(images=paths, endpoint="chat"), 1)[0]["messages"]
    assert [each.get("images") for each in chat] == [None, ["iVBORw0KGgox"]]


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"hello")
    with pytest.raises(ConfigError, match=r"a\.txt is no PNG, JPEG, WebP or GIF image$"):
        workload(images=str(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"stages": []}, "stages=[]: expected a list such as"),
        ({"stages": [{"concurrency": 2}]}, "stages[0]={'concurrency': 2}: expected one of concurrency and rate, and"),
        ({"stages": [{"concurency": 2, "for": 1}]}, "stages[0]: unknown key 'concurency'; did you mean 'concurrency'?"),
        (
            {"stages": [{"concurrency": 2.5, "for": 1}]},
            "stages[0]: concurrency=2.5: expected a whole number of clients",
        ),
        ({"stages": [{"rate": 2, "for": 0}]}, "stages[0]: for=0: must be more than 0"),
        (
            {"stages": [{"rate": 2, "for": 1}, {"concurrency": 2, "for": 1}]},
            "stages: concurrency and rate contradict each other: give one of them in every stage",
        ),
        ({"stages": [{"rate": 0, "for": 1}]}, "rate=0: must be more than 0 requests a second"),
        ({"stages": [{"rate": 1, "for": 1}], "requests": 4}, "stages and requests contradict each other"),
        ({"stages": [{"rate": 1, "for": 1}], "concurrency": 4}, "stages and concurrency contradict each other"),
        ({"stages": [{"concurrency": 0, "for": 1}]}, "stages: concurrency must be 0 or more, and more than 0 in one"),
        ({"turns": 2, "endpoint": "generate"}, "turns=2 and endpoint='generate' exclude each other"),
        ({"turns": 2, "rate": 1}, "turns=2 and a rate exclude each other: each client has a separate chat"),
        ({"prompts": {"a": 0}}, "prompts['a']: weight 0: expected a number above 0"),
        ({"prompts": {}}, "prompts={}: expected texts and their weights"),
        ({"prompts": ["a"], "dataset": "x"}, "prompts and dataset contradict each other: give one of them"),
        ({"retries": -1}, "retries=-1: expected a whole number from 0"),
        ({"reuse_connections": "no"}, "reuse_connections='no': expected True or False"),
        ({"images": []}, "images=[]: expected a path, or a list of paths"),
    ],
)
def test_wrong_shapes_are_refused_in_one_line(words: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        workload(**words)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


def test_what_changes_the_load_changes_its_identity_and_defaults_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    plain = Workload(model="m")
    validate_workload(plain)
    assert compute_identity(plain) == "9f3b339f05f3a8bb"  # as stored before there were shapes
    shaped = [
        workload(stages=[{"concurrency": 1, "for": 20}]),
        workload(stages=[{"concurrency": 1, "ramp": 20}]),
        workload(turns=2),
        workload(retries=1),
        workload(reuse_connections=False),
        workload(prompts=["a", "b"]),
        workload(prompts={"a": 1, "b": 2}),
        workload(dataset=dataset(tmp_path, {"messages": [{"role": "user", "content": "a"}]})),
        workload(images=str(tmp_path / "a.png")),
        workload(),
    ]
    assert len({compute_identity(each) for each in shaped}) == len(shaped)
