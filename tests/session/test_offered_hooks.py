"""The hooks offered to other plugins: the example of each docstring is run, and what it adds works end to end."""

from __future__ import annotations

import textwrap

import pytest

from pytest_ollama_perf.config.report_targets import REPORT_TYPES
from pytest_ollama_perf.hooks import specs
from pytest_ollama_perf.metrics import METRICS

LOAD = "model='tiny', requests=10, warmup=1, num_predict=4"


def read_example(hook: str) -> str:
    """Return the code block of a hook's docstring."""
    _, _, rest = (getattr(specs, hook).__doc__ or "").partition("::\n\n")
    lines = rest.splitlines()
    end = next((at for at, line in enumerate(lines) if line.strip() and not line.startswith(" " * 8)), len(lines))
    return textwrap.dedent("\n".join(lines[:end]))


@pytest.fixture
def with_example(perf):
    """Write the example of a hook as the conftest of a run."""

    def write(hook: str, test: str = f"@pytest.mark.ollama_load({LOAD})\ndef test_it():\n    pass") -> None:
        perf.write(test)
        (perf.path / "conftest.py").write_text(read_example(hook), encoding="utf-8")

    return write


def test_every_offered_hook_has_an_example_that_defines_it() -> None:
    hooks = [name for name in vars(specs) if name.startswith("pytest_ollama_")]
    assert len(hooks) == 5
    for hook in hooks:
        assert f"def {hook}(" in read_example(hook), hook


def test_an_added_metric_is_measured_limited_and_reported(with_example, perf) -> None:
    with_example(
        "pytest_ollama_metrics",
        f"""
        @pytest.mark.ollama_load({LOAD}, min_words=1)
        def test_met(ollama_load):
            assert ollama_load.metric("words").value == 4

        @pytest.mark.ollama_load({LOAD}, min_words=5)
        def test_broken():
            pass
        """,
    )
    outcome = perf.run("-v")
    assert outcome.counts == {"passed": 1, "failed": 1}, outcome.out
    loads = [test["loads"][0] for test in outcome.report["tests"]]
    assert [load["metrics"]["words"]["value"] for load in loads] == [4, 4]
    assert [test["verdict"] for test in outcome.report["tests"]] == ["ok", "broken"]
    assert any(line.split()[:1] == ["words"] for line in outcome.section), outcome.out
    assert "words" not in METRICS


def test_an_added_metric_per_request_has_statistics(perf) -> None:
    perf.write(f"@pytest.mark.ollama_load({LOAD}, max_p95_size=4)\ndef test_it(ollama_load):\n    pass")
    (perf.path / "conftest.py").write_text(
        "from pytest_ollama_perf.metrics import Better, Metric, Shape, Unit\n"
        "def pytest_ollama_metrics():\n"
        "    def compute(sample):\n"
        "        return sample.counters.eval_count\n"
        "    return [Metric('size', Unit.BYTES, Better.LOWER, Shape.PER_REQUEST, 'tokens', compute=compute)]\n",
        encoding="utf-8",
    )
    outcome = perf.run()
    assert "max_p95_size" in outcome.err + outcome.out  # bytes need a unit
    perf.write(f"@pytest.mark.ollama_load({LOAD}, max_p95_size='4B')\ndef test_it(ollama_load):\n    pass")
    outcome = perf.run()
    assert outcome.report["tests"][0]["loads"][0]["metrics"]["size"]["p95"] == 4, outcome.out


def test_a_metric_with_a_name_in_use_is_a_usage_error(perf) -> None:
    perf.write("def test_it():\n    pass")
    (perf.path / "conftest.py").write_text(
        "from pytest_ollama_perf.metrics import METRICS\ndef pytest_ollama_metrics():\n    return [METRICS['tps']]\n",
        encoding="utf-8",
    )
    outcome = perf.run()
    assert outcome.status == pytest.ExitCode.USAGE_ERROR
    assert "cannot add the metric 'tps': it already exists" in outcome.err


def test_an_added_report_format_is_written(with_example, perf) -> None:
    with_example("pytest_ollama_report_formats")
    outcome = perf.run("--ollama-report=names:names.txt")
    assert outcome.status == 0, outcome.out + outcome.err
    assert (perf.path / "names.txt").read_text() == "test_it.py::test_it ok"
    assert "names" not in REPORT_TYPES


def test_an_added_store_keeps_the_history(with_example, perf) -> None:
    with_example("pytest_ollama_stores")
    outcome = perf.run("--ollama-store=shared://history", "--ollama-save")
    assert outcome.status == 0, outcome.out + outcome.err
    assert [path for path in (perf.path / "history").rglob("*") if path.is_file()]
    assert perf.run("--ollama-store=shared2://history").status == pytest.ExitCode.USAGE_ERROR


def test_added_facts_are_part_of_the_fingerprint_and_compared(with_example, perf) -> None:
    with_example("pytest_ollama_fingerprint")
    perf.run("--ollama-save")
    conftest = perf.path / "conftest.py"
    conftest.write_text(conftest.read_text().replace("6.1.0", "6.2.0"))
    outcome = perf.run("--ollama-server-env=OTHER=1")
    (test,) = outcome.report["tests"]
    assert test["loads"][0]["fingerprint"]["server_env"] == {"kernel": "6.2.0", "OTHER": "1"}


def test_a_verdict_is_reported_once_for_each_test(with_example, perf) -> None:
    with_example(
        "pytest_ollama_verdict",
        f"""
        @pytest.mark.ollama_load({LOAD})
        def test_one():
            pass

        def test_two(ollama):
            ollama.load({LOAD})
            ollama.load({LOAD}, min_tps=1e9)
        """,
    )
    perf.run()
    assert (perf.path / "verdicts.txt").read_text().splitlines() == [
        "test_it.py::test_one ok",
        "test_it.py::test_two broken",
    ]


def test_an_error_in_the_verdict_hook_fails_the_session_and_keeps_the_reports(perf) -> None:
    perf.write(f"@pytest.mark.ollama_load({LOAD})\ndef test_it():\n    pass")
    (perf.path / "conftest.py").write_text("def pytest_ollama_verdict(result):\n    raise RuntimeError('no')\n")
    outcome = perf.run()
    assert outcome.status == pytest.ExitCode.TESTS_FAILED
    assert "pytest_ollama_verdict: RuntimeError: no" in outcome.out
    assert outcome.report["tests"]
