"""The language check finds overused phrases in text, and leaves code alone."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools/check_language.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("check_language", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_language"] = module
    spec.loader.exec_module(module)
    return module


def find(tool, path, source):
    return [(match.line, match.text) for match in tool.find_phrases(path, source, tool.read_phrases())]


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("a.md", "One.\nIt stands here.\n", [(2, "stands")]),
        ("a.md", "Three\nclients at\nonce.\n", [(2, "clients at once")]),
        ("a.md", "Use `it stands` here.\n\n```python\nit stands\n```\n", []),
        ("a.py", '"""A module.\n\nIt stands here.\n"""\n', [(3, "stands")]),
        ("a.py", "# A fixture\n# of its own.\nx = 1  # it stands\n", [(2, "of its own"), (3, "stands")]),
        ("a.py", 'raise ValueError(f"{name} stands here")\n', [(1, "stands")]),
        ("a.py", 'told = {"told": "stands"}\n', []),
        ("a.html", "<p>It stands here.</p>\n", [(1, "stands")]),
    ],
)
def test_phrases_are_found_in_text_only(tool, path, source, found):
    assert find(tool, path, source) == found


def test_every_phrase_has_a_replacement(tool):
    assert all(phrase.better for phrase in tool.read_phrases())


def test_the_exit_status_is_1_if_there_is_a_match(tool, monkeypatch, capsys, tmp_path):
    (tmp_path / "a.md").write_text("It stands here.\n", encoding="utf-8")
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "list_files", lambda: ["a.md"])
    assert tool.main([]) == 1
    assert tool.main(["--report-only"]) == 0
    assert "a.md:1: 'stands': write " in capsys.readouterr().out
    (tmp_path / "a.md").write_text("It is here.\n", encoding="utf-8")
    assert tool.main([]) == 0
