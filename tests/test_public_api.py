"""The public API: its names, and its types as mypy and pyright see them in a user's suite."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import pytest_ollama_perf
from pytest_ollama_perf.experiments.results import LoadMetrics
from pytest_ollama_perf.metrics import METRICS, STATS, Shape
from pytest_ollama_perf.metrics.summary import MetricSummary

ROOT = Path(__file__).parents[1]
SUITE = ROOT / "typing_tests" / "test_user_suite.py"
MISTAKES = ROOT / "typing_tests" / "wrong_arguments.py"
NAMES = (
    "ABChange ABOptions ABResult ABSideOptions ColdStartOptions ColdStartResult ConfigError CurveResult LimitOptions "
    "LoadOptions LoadResult MaxConcurrencyOptions MaxConcurrencyResult MetricSummary Ollama OllamaPerfError Simulators "
    "SweepOptions SweepPointResult SweepResult Verdict VerdictStatus WarmUp ab cold_start load max_concurrency sweep"
)


def test_the_public_names_are_pinned() -> None:
    assert pytest_ollama_perf.__all__ == NAMES.split()
    assert [name for name in pytest_ollama_perf.__all__ if not hasattr(pytest_ollama_perf, name)] == []
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        pytest_ollama_perf.laod  # type: ignore[attr-defined] # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, pytest_ollama_perf; print(sorted({'msgspec', 'numpy', 'pytest', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_every_metric_and_statistic_is_a_typed_property() -> None:
    for name, metric in METRICS.items():
        found = getattr(LoadMetrics, name)
        expected = "MetricSummary" if metric.shape is Shape.PER_REQUEST else "float"
        assert found.fget.__annotations__["return"] == expected, name
    assert [name for name in STATS if not isinstance(getattr(MetricSummary, name), property)] == []


def test_markers_from_the_package_are_the_markers_of_pytest() -> None:
    for name in ("load", "sweep", "ab", "max_concurrency", "cold_start"):
        mark = getattr(pytest_ollama_perf, name)(model="tiny").mark
        assert (mark.name, mark.args, dict(mark.kwargs)) == (f"ollama_{name}", (), {"model": "tiny"})


def _list_expected() -> dict[int, str]:
    lines = SUITE.read_text(encoding="utf-8").splitlines()
    found = {number: line.partition("# expect: ")[2] for number, line in enumerate(lines, 1) if "reveal_type(" in line}
    assert all(found.values())
    return found


def _list_mistakes() -> set[int]:
    lines = MISTAKES.read_text(encoding="utf-8").splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith("# error")}


def _strip_modules(text: str) -> str:
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text)


def test_mypy_infers_the_types_and_reports_the_mistakes(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", f"--config-file={tmp_path / 'mypy.ini'}", SUITE, MISTAKES]
    skipped = "".join(f"[mypy-{name}.*]\nignore_missing_imports = True\n" for name in ("scipy", "httptools", "uvloop"))
    (tmp_path / "mypy.ini").write_text(f"[mypy]\ncache_dir = {tmp_path / 'cache'}\n{skipped}", encoding="utf-8")
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    revealed = re.findall(rf'{SUITE.name}:(\d+): note: Revealed type is "(.*)"', done.stdout)
    assert {int(number): _strip_modules(text) for number, text in revealed} == _list_expected(), done.stdout
    errors = re.findall(r"(\w+\.py):(\d+): error", done.stdout)
    assert {name for name, _ in errors} == {MISTAKES.name}, done.stdout
    assert {int(number) for _, number in errors} == _list_mistakes(), done.stdout


def test_pyright_infers_the_types_and_reports_the_mistakes() -> None:
    if find_spec("pyright") is None:
        pytest.skip("pyright is not installed; it is in the dependency group 'types'")
    command = [sys.executable, "-m", "pyright", "--outputjson", f"--pythonpath={sys.executable}", SUITE, MISTAKES]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if not done.stdout.lstrip().startswith("{"):
        pytest.skip(f"pyright cannot run here: {(done.stderr or done.stdout).strip()[:200]}")
    found = [
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1, each["severity"], each["message"])
        for each in json.loads(done.stdout)["generalDiagnostics"]
    ]
    revealed = {
        line: re.sub(r'^Type of ".*" is "(.*)"$', r"\1", message, flags=re.DOTALL)
        for name, line, severity, message in found
        if name == SUITE.name and severity == "information"
    }
    assert revealed == _list_expected(), found
    errors = {(name, line) for name, line, severity, _ in found if severity == "error"}
    assert errors == {(MISTAKES.name, line) for line in _list_mistakes()}, found
