"""Shared by all tests: a clean environment, and the real server if there is one."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import hypothesis
import pytest
from pytest_runs import RunSource

# Deadlines would make tests fail on a busy machine. In CI, there are more examples, the same in every run.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.register_profile("here", deadline=None, max_examples=30)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")

REAL_SERVER = os.environ.pop("OLLAMA_HOST", "")
REQUIRED = os.environ.get("OLLAMA_PERF_REAL_SERVER") == "required"
# pytest and this package write more in CI; tests compare what is written outside CI.
_SURROUNDINGS = ("OLLAMA_API_KEY", "PYTEST_ADDOPTS", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "CI", "BUILD_NUMBER")
for _name in (*_SURROUNDINGS, "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(_name, None)
os.environ["COLUMNS"] = "80"

# A background job of a shell starts with SIGINT ignored, and processes that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("real_server") and not REAL_SERVER:
            item.add_marker(pytest.mark.skip(reason="no real server: set OLLAMA_HOST"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """If the real server is required, a test that was skipped without it fails."""
    report = yield
    if REQUIRED and report.skipped and item.get_closest_marker("real_server"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: skipped, but OLLAMA_PERF_REAL_SERVER=required"
    return report


@pytest.fixture(scope="session")
def real_server() -> str:
    """The URL of the real Ollama; tests that ask for it carry the marker of the same name."""
    if not REAL_SERVER:
        pytest.skip("no real server: set OLLAMA_HOST")
    return REAL_SERVER


@pytest.fixture
def isolated_pytester(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory to run pytest in, 80 columns wide and without the plugins that happen to be installed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("COLUMNS", "80")
    return pytester


@pytest.fixture
def run_source(isolated_pytester: pytest.Pytester) -> RunSource:
    """Run pytest on a source in a child process, with this plugin."""
    return RunSource(isolated_pytester)
