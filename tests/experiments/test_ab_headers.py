"""API keys and headers go only to servers that an option names."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_ollama_perf.config import Settings
from pytest_ollama_perf.harness import Harness

KEY = (("Authorization", "Bearer hunter2"),)


def headers_for(url: str, **settings: object) -> tuple[tuple[str, str], ...]:
    harness = Harness(
        Settings(urls=("http://127.0.0.1:11434", "http://box:1#weight=2"), headers=KEY, **settings), root=Path()
    )
    try:
        return tuple(harness._select_access([harness.open_server(url).address]).headers)
    finally:
        harness.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:11434", "http://box:1", "http://base:2"])
def test_a_server_named_by_an_option_receives_the_headers(url: str) -> None:
    assert headers_for(url, baseline_url="http://base:2") == KEY


@pytest.mark.parametrize("url", ["http://other:11434", "http://box:2", "https://box:1"])
def test_a_server_that_only_a_test_names_receives_no_headers(url: str) -> None:
    assert headers_for(url) == ()
