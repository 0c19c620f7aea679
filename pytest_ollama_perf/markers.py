"""The markers of a test item: which words count, where several markers name the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_perf.errors import ConfigError

if TYPE_CHECKING:
    from _pytest.nodes import Node


def marker_words(item: pytest.Item, marker: str, known: tuple[str, ...]) -> dict[str, Any]:
    """Return the words that count for ``item``: nearer markers win word by word.

    From near to far: marks of the parameter set, parameters named like a word, the function's own markers, its class,
    the classes that one comes from, its module.
    """
    from pytest_ollama_perf.marks import nearest

    callspec = getattr(item, "callspec", None)
    near = [mark for mark in getattr(callspec, "marks", ()) if mark.name == marker]
    parameters = {name: value for name, value in getattr(callspec, "params", {}).items() if name in known}
    far = [mark for node in reversed(item.listchain()) for mark in own_marks(node, marker) if mark not in near]
    if any(mark.args for mark in (*near, *far)):
        raise ConfigError(f"the marker takes words only, for example @pytest.mark.{marker}(model='llama3.2:3b')")
    return nearest([*(mark.kwargs for mark in near), parameters, *(mark.kwargs for mark in far)])


def own_marks(node: Node, marker: str) -> list[pytest.Mark]:
    """Return the markers that stand at ``node`` itself, the nearest first.

    pytest lists those of a class behind those of the classes it comes from.
    """
    marks = [mark for mark in node.own_markers if mark.name == marker]
    if not isinstance(node, pytest.Class):
        return marks
    written = [cls.__dict__.get("pytestmark", []) for cls in node.obj.__mro__]
    order = [id(getattr(mark, "mark", mark)) for own in written for mark in (own if isinstance(own, list) else [own])]
    return sorted(marks, key=lambda mark: order.index(id(mark)) if id(mark) in order else -1)
