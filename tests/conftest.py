"""Shared by all tests: the real server, where there is one, and nothing else of the surroundings."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import hypothesis
import pytest

# A machine that is busy is no failure, and what a change did not touch must not fail it by chance.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")

REAL_SERVER = os.environ.pop("OLLAMA_HOST", "")
REQUIRED = os.environ.get("OLLAMA_PERF_REAL_SERVER") == "required"
# pytest and this package write more in CI; what tests compare is what a person sees.
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
    """Where the real server is required, a test that did without it has failed."""
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
