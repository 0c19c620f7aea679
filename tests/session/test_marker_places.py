"""Where the marker may stand, and which one counts where several do."""

from __future__ import annotations

import pytest

LOAD = "model='tiny', requests=20, warmup=0, num_predict=4"


def asked(found, *words: str) -> dict[str, list[object]]:
    """What was sent, test by test."""
    return {
        test["test"].partition("::")[2]: [load["workload"][word] for load in test["loads"] for word in words]
        for test in found.report["tests"]
    }


def test_the_marker_alone_fires_and_judges(perf) -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD}, min_tps=1)
        def test_good():
            pass

        @pytest.mark.ollama_load({LOAD}, min_tps=1e9)
        def test_bad():
            pass
    """)
    found = perf.run()
    assert (found.status, found.counts) == (1, {"passed": 1, "failed": 1})
    assert [(test["test"], test["verdict"]) for test in found.report["tests"]] == [
        ("test_it.py::test_good", "ok"),
        ("test_it.py::test_bad", "broken"),
    ]


def test_the_fixture_gives_the_numbers_the_samples_and_the_verdict(perf) -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD})
        def test_it(ollama_load, ollama_url):
            assert ollama_load.error_rate == 0
            assert ollama_load.tps > 0
            assert 0 < ollama_load.ttft.p50 <= ollama_load.ttft.p95 <= ollama_load.latency.max
            assert ollama_load.metric("latency").n == 20
            assert [sample.url for sample in ollama_load.samples] == [ollama_url] * 20
            assert ollama_load.run.workload.model == "tiny"
            assert ollama_load.verdict.status.value == "ok"
    """)
    found = perf.run()
    assert found.counts == {"passed": 1}
    assert [len(test["loads"]) for test in found.report["tests"]] == [1]


def test_a_number_that_does_not_exist_says_so(perf) -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD})
        def test_it(ollama_load):
            with pytest.raises(AttributeError) as caught:
                ollama_load.latencey
            assert str(caught.value) == "a load's result has no 'latencey'; did you mean 'latency'?"
            with pytest.raises(AttributeError) as caught:
                ollama_load.ttft.p42
            with pytest.raises(Exception) as caught:
                ollama_load.metric("tsp")
            assert str(caught.value).startswith("no metric 'tsp'; did you mean 'tps'? (valid: tps, throughput,")
            with pytest.raises(Exception) as caught:
                ollama_load.check(min_tsp=1)
            assert str(caught.value).startswith("unknown argument 'min_tsp'; did you mean 'min_tps'?")
    """)
    assert perf.run().counts == {"passed": 1}


def test_the_marker_counts_for_a_whole_module(perf) -> None:
    perf.write(f"""
        pytestmark = pytest.mark.ollama_load({LOAD})

        def test_one():
            pass

        class TestTwo:
            def test_two(self):
                pass
    """)
    found = perf.run()
    assert found.counts == {"passed": 2}
    assert asked(found, "requests") == {"test_one": [20], "TestTwo::test_two": [20]}


def test_nearer_markers_win_word_by_word(perf) -> None:
    perf.write(f"""
        pytestmark = pytest.mark.ollama_load({LOAD}, seed=1, temperature=0.1, num_ctx=1024)

        @pytest.mark.ollama_load(seed=2, temperature=0.2)
        class TestIt:
            def test_class(self):
                pass

            @pytest.mark.ollama_load(seed=3)
            def test_function(self):
                pass

        def test_module():
            pass
    """)
    assert asked(perf.run(), "seed", "temperature", "num_ctx") == {
        "TestIt::test_class": [2, 0.2, 1024],
        "TestIt::test_function": [3, 0.2, 1024],
        "test_module": [1, 0.1, 1024],
    }


def test_a_class_wins_over_the_class_it_comes_from(perf) -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD}, seed=1)
        class Base:
            def test_it(self):
                pass

        @pytest.mark.ollama_load(seed=2)
        class TestDerived(Base):
            pass

        class TestWritten(Base):
            pytestmark = pytest.mark.ollama_load(seed=3)

        class TestNone(TestWritten):
            @pytest.mark.ollama_load(temperature=0.5)
            def test_it(self):
                pass
    """)
    assert asked(perf.run(), "seed") == {
        "TestDerived::test_it": [2],
        "TestWritten::test_it": [3],
        "TestNone::test_it": [3],
    }


def test_the_upper_of_two_decorators_is_further_away(perf) -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD}, seed=1)
        @pytest.mark.ollama_load(seed=2)
        def test_it():
            pass
    """)
    assert asked(perf.run(), "seed") == {"test_it": [2]}


def test_parameters_named_like_words_count(perf) -> None:
    perf.write("""
        @pytest.mark.parametrize("model", ["tiny", "mid"])
        @pytest.mark.parametrize("concurrency", [1, 2])
        @pytest.mark.ollama_load(requests=20, warmup=0, num_predict=4)
        def test_it(model, concurrency, ollama_load):
            assert ollama_load.run.workload.model == model
            assert ollama_load.run.workload.concurrency == concurrency
    """)
    found = perf.run()
    assert found.counts == {"passed": 4}
    assert asked(found, "model", "concurrency") == {
        "test_it[1-tiny]": ["tiny", 1],
        "test_it[1-mid]": ["mid", 1],
        "test_it[2-tiny]": ["tiny", 2],
        "test_it[2-mid]": ["mid", 2],
    }


def test_the_mark_of_a_parameter_set_is_nearest(perf) -> None:
    perf.write(f"""
        @pytest.mark.parametrize(
            "limit",
            [
                pytest.param("loose", marks=pytest.mark.ollama_load(min_tps=1)),
                pytest.param("tight", marks=pytest.mark.ollama_load(min_tps=1e9, seed=7)),
            ],
        )
        @pytest.mark.ollama_load({LOAD}, seed=5)
        def test_it(limit):
            pass
    """)
    found = perf.run()
    assert found.counts == {"passed": 1, "failed": 1}
    assert asked(found, "seed") == {"test_it[loose]": [5], "test_it[tight]": [7]}


def test_the_nearer_of_two_alternatives_replaces_the_other(perf) -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD}, concurrency=4, prompts=["a b c"])
        class TestIt:
            @pytest.mark.ollama_load(rate=200)
            def test_rate(self):
                pass

            @pytest.mark.ollama_load(duration="50ms")
            def test_duration(self):
                pass

            @pytest.mark.ollama_load(prompt="d e f")
            def test_prompt(self):
                pass
    """)
    assert asked(perf.run(), "concurrency", "rate", "requests", "duration_s", "prompts") == {
        "TestIt::test_rate": [None, 200.0, 20, None, ["a b c"]],
        "TestIt::test_duration": [4, None, None, 0.05, ["a b c"]],
        "TestIt::test_prompt": [4, None, 20, None, ["d e f"]],
    }


def test_the_model_of_the_command_line_serves_markers_without_one(perf) -> None:
    perf.write("""
        @pytest.mark.ollama_load(requests=20, warmup=0, num_predict=4)
        def test_none():
            pass

        @pytest.mark.ollama_load(model="mid", requests=20, warmup=0, num_predict=4)
        def test_one():
            pass
    """)
    assert asked(perf.run("--ollama-model=tiny"), "model") == {"test_none": ["tiny"], "test_one": ["mid"]}


def test_unittest_classes_are_measured_and_judged(perf) -> None:
    perf.write(f"""
        import unittest

        class TestIt(unittest.TestCase):
            @pytest.mark.ollama_load({LOAD}, min_tps=1e9)
            def test_it(self):
                self.assertTrue(True)
    """)
    found = perf.run()
    assert found.counts == {"failed": 1}
    assert [test["verdict"] for test in found.report["tests"]] == ["broken"]


@pytest.mark.parametrize("why", ["skip", "skipif(True, reason='no')"])
def test_a_skipped_test_fires_nothing(perf, sim, why: str) -> None:
    perf.write(f"""
        @pytest.mark.{why}
        @pytest.mark.ollama_load({LOAD})
        def test_it():
            pass
    """)
    sim.reset()
    found = perf.run()
    assert (found.counts, found.report["tests"], sim.requests()) == ({"skipped": 1}, [], [])


def test_deselected_tests_fire_nothing(perf, sim) -> None:
    perf.write(f"""
        @pytest.mark.ollama_load({LOAD})
        def test_it():
            pass

        def test_other():
            pass
    """)
    sim.reset()
    found = perf.run("-k", "other")
    assert (found.counts, sim.requests()) == ({"passed": 1, "deselected": 1}, [])
    assert found.section == []


def test_tests_without_the_marker_are_left_alone(perf) -> None:
    perf.write("def test_it():\n    pass")
    found = perf.run(url="http://127.0.0.1:1")
    assert (found.status, found.counts, found.section) == (0, {"passed": 1}, [])
    assert "ollama" not in found.out.partition("rootdir:")[2].partition("\n")[2]
