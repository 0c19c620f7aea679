"""Several servers as one: their URLs and weights, which answer, and what they are together."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from run_makers import failure, run_of, sample

from pytest_ollama_perf.analysis.epochs import compare_fingerprints
from pytest_ollama_perf.analysis.load_profile import summarise_servers
from pytest_ollama_perf.analysis.validity import find_problems
from pytest_ollama_perf.client.address import parse_address
from pytest_ollama_perf.core import ConfigError, ModelNotFoundError, ServerUnreachableError
from pytest_ollama_perf.core.run import Fingerprint, ServerInfo
from pytest_ollama_perf.harness.servers import (
    TargetServer,
    count_replicas,
    merge_fingerprints,
    parse_target,
    parse_weight,
    probe_servers,
    repeat_until_stable,
)
from pytest_ollama_perf.metrics.summary import summarise

A, B, C = (f"http://{name}:11434" for name in "abc")


def server(url, weight=1.0):
    return TargetServer(url, parse_address(url), None, weight=weight)


def known(**changed):
    return Fingerprint(
        **{"server_version": "0.32.15", "model": "m", "model_digest": "d1", "context_length": 4096} | changed
    )


@pytest.mark.parametrize(("url", "expected"), [(A, 1.0), (f"{A}#weight=2", 2.0), ("sim:?tps=9#weight=0.5", 0.5)])
def test_a_weight_stands_behind_the_url(url, expected):
    assert parse_weight(url) == expected
    assert parse_target(url) == parse_target(url.partition("#")[0])


@pytest.mark.parametrize("text", ["weight=0", "weight=-1", "wieght=2", "weight=two", ""])
def test_a_wrong_weight_is_refused(text):
    with pytest.raises(ConfigError, match="expected a weight above 0, for example"):
        parse_target(f"{A}#{text}")


def looked(**answers):
    def look(one):
        answer = answers[one.address.host]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return look


def test_a_server_that_is_down_stays_in_the_load_and_is_named():
    used, facts = probe_servers(
        [server(A), server(B)], looked(a=known(), b=ServerUnreachableError("no")), leave_out=False
    )
    assert [one.name for one in used] == [A, B]
    assert (facts[A].down, facts[B].down) == ("", "no")


def test_a_server_that_is_down_is_left_out_where_that_is_allowed():
    used, facts = probe_servers(
        [server(A), server(B)], looked(a=known(), b=ServerUnreachableError("no")), leave_out=True
    )
    assert [one.name for one in used] == [A]
    assert merge_fingerprints(facts, used) == known()


def test_without_any_server_there_is_no_load():
    with pytest.raises(ServerUnreachableError, match="first"):
        probe_servers(
            [server(A), server(B)],
            looked(a=ServerUnreachableError("first"), b=ServerUnreachableError("no")),
            leave_out=True,
        )


def test_a_missing_model_is_no_server_down():
    with pytest.raises(ModelNotFoundError):
        probe_servers([server(A), server(B)], looked(a=known(), b=ModelNotFoundError("pull")), leave_out=True)


def test_the_fingerprint_is_that_of_all_servers():
    other = known(server_version="0.33.0", context_length=2048, vram_share=0.5)
    used, facts = probe_servers([server(A, 2.0), server(B)], looked(a=known(vram_share=1.0), b=other), leave_out=False)
    found = merge_fingerprints(facts, used)
    assert (found.server_version, found.context_length, found.vram_share) == ("0.32.15, 0.33.0", 2048, 0.5)
    assert found.servers == "2:1"


def test_one_server_is_what_it_always_was():
    used, facts = probe_servers([server(A)], looked(a=known()), leave_out=False)
    assert merge_fingerprints(facts, used) == known()


def test_more_servers_are_another_epoch():
    (change,) = compare_fingerprints(known(), known(servers="4"))
    assert (str(change), change.separates) == ("servers 1 -> 4", True)


@dataclass
class Taking:
    """Some servers behind one address, each answering in its turn."""

    loaded: list[bool]
    at: int = 0

    def load(self):
        self.loaded[self._next()] = True

    def is_loaded(self):
        return self.loaded[self._next()]

    def _next(self):
        self.at += 1
        return self.at % len(self.loaded)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_every_server_behind_an_address_is_reached(count):
    taking = Taking([False] * count)
    taking.load()
    repeat_until_stable(taking.load, taking.is_loaded)
    assert all(taking.loaded)


def test_what_never_holds_is_given_up():
    acted = []
    repeat_until_stable(lambda: acted.append(1), lambda: False)
    assert 8 <= len(acted) <= 100


def test_answers_that_name_several_servers_are_part_of_the_fingerprint():
    assert count_replicas(["a:1", "", "b:1", "a:1"], known()).servers == "2 behind one address"
    assert count_replicas(["a:1", ""], known()) == known()


def several(*samples, **facts):
    urls = {"a": A, "b": B, "c": C}
    return run_of(*samples, servers={urls[name]: fact for name, fact in facts.items()})


def named(run):
    return {problem.name: problem for problem in find_problems(run, summarise(run))}


def test_a_server_down_is_told_with_its_requests():
    run = several(
        sample(0, url=A),
        failure(1, url=B),
        a=ServerInfo(fingerprint=known()),
        b=ServerInfo(down="nothing answers; start it"),
    )
    problem = named(run)["server down"]
    assert problem.text == f"{B} was down before the load: 1 of its 1 request failed (nothing answers)"
    assert not problem.invalidates


def test_a_server_left_out_is_told_and_expected_to_do_nothing():
    run = several(sample(0, url=A), sample(1, url=C), a=ServerInfo(), b=ServerInfo(down="no"), c=ServerInfo())
    assert "left out of the load" in named(run)["server down"].text
    (found,) = summarise_servers(run, summarise(run))
    assert [(one.requests, one.expected, one.down) for one in found.servers] == [
        (1, 0.5, False),
        (0, 0, True),
        (1, 0.5, False),
    ]


@pytest.mark.parametrize(
    ("changed", "invalidates"),
    [
        ({"model_digest": "d2"}, True),
        ({"context_length": 2048}, True),
        ({"server_version": "0.24.0"}, True),
        ({"server_version": "0.32.16"}, False),
        ({"vram_share": 0.5}, False),
    ],
)
def test_servers_that_differ_are_named(changed, invalidates):
    run = several(
        sample(0, url=A),
        sample(1, url=B),
        a=ServerInfo(fingerprint=known()),
        b=ServerInfo(fingerprint=known(**changed)),
    )
    problem = named(run)["servers differ"]
    assert problem.invalidates is invalidates
    assert problem.text.startswith(f"{B} is not like {A}: ")


def test_servers_alike_are_no_trouble():
    facts = ServerInfo(fingerprint=known())
    assert "servers differ" not in named(several(sample(0, url=A), sample(1, url=B), a=facts, b=facts))


def test_a_server_with_more_than_its_part_is_named():
    samples = [sample(index, sent=200 * index, url=B if index % 10 == 0 else A) for index in range(60)]
    run = several(*samples, a=ServerInfo(), b=ServerInfo())
    (found,) = summarise_servers(run, summarise(run))
    assert (found.servers[found.uneven].name, found.imbalance) == (A, pytest.approx(1.8))
