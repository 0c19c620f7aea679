"""Every marker and contract is read when tests are collected, so that a wrong one is reported before the first test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ollama_perf.core.errors import ConfigError, MissingExtraError
from pytest_ollama_perf.experiments import EXPERIMENT_MODULES, load_reader

if TYPE_CHECKING:
    from pytest_ollama_perf.config.settings import Settings
    from pytest_ollama_perf.contracts.clauses import SharedLoad
    from pytest_ollama_perf.experiments import Experiment

UMBRELLA_MARKER = "ollama"
"""The marker that every item which may use a server under test gets when it is collected."""

SERVER_FIXTURES = frozenset({"ollama", "ollama_perf", "ollama_url", "ollama_warm_up"})
"""Fixtures that may use a server without a marker."""


def get_test_name(item: pytest.Item) -> str:
    """Return the name of ``item`` in reports and in the history: its node id, whichever process runs it.

    pytest-xdist appends the name of the item's group to the node id with ``--dist loadgroup``.
    """
    if shared := get_shared_load(item):
        return shared.test
    plain = f"{item.parent.nodeid}::{item.name}" if item.parent else item.nodeid
    return plain if item.nodeid.startswith(f"{plain}@") else item.nodeid


def get_shared_load(item: pytest.Item) -> SharedLoad | None:
    """Return the load of a contract that ``item`` is a clause of."""
    return getattr(item, "ollama_shared", None)


def uses_server(item: pytest.Item) -> bool:
    """Whether ``item`` may use a server under test."""
    return (
        get_shared_load(item) is not None
        or not SERVER_FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))
        or any(item.get_closest_marker(name) for name in EXPERIMENT_MODULES)
    )


def read_experiment(item: pytest.Item, settings: Settings) -> Experiment | None:
    """Return the experiment that the item's marker describes; ``None`` without one.

    Raises:
        ConfigError: the marker or its arguments are wrong.
    """
    markers = list(dict.fromkeys(mark.name for mark in item.iter_markers() if mark.name in EXPERIMENT_MODULES))
    unmarked = [
        name for name in EXPERIMENT_MODULES if name in getattr(item, "fixturenames", ()) and name not in markers
    ]
    if unmarked:
        raise ConfigError(f"uses the fixture {unmarked[0]} without the marker; add @pytest.mark.{unmarked[0]}(...)")
    if len(markers) > 1:
        raise ConfigError(f"has the markers {' and '.join(markers)}: a test takes one of them")
    if not markers:
        return None
    parse_options, known = load_reader(markers[0])
    return parse_options(collect_marker_options(item, markers[0], known), settings)


def collect_marker_options(item: pytest.Item, marker: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    """Return the marker arguments of ``item``: inner markers override outer ones per argument.

    From inner to outer: marks of the parameter set, parameters named like an argument, markers of the function, of its
    class, of the classes that one inherits from, of its module.
    """
    from pytest_ollama_perf.config.load_spec import merge_options

    callspec = getattr(item, "callspec", None)
    inner = [mark for mark in getattr(callspec, "marks", ()) if mark.name == marker]
    parameters = {name: value for name, value in getattr(callspec, "params", {}).items() if name in known}
    outer = [mark for node in reversed(item.listchain()) for mark in list_own_marks(node, marker) if mark not in inner]
    if any(mark.args for mark in (*inner, *outer)):
        raise ConfigError(
            f"the marker takes keyword arguments only, for example @pytest.mark.{marker}(model='llama3.2:3b')"
        )
    return merge_options([*(mark.kwargs for mark in inner), parameters, *(mark.kwargs for mark in outer)])


def list_own_marks(node: Any, marker: str) -> list[pytest.Mark]:
    """Return the markers of ``node`` itself, the innermost first.

    pytest lists those of a class after those of the classes it inherits from.
    """
    marks = [mark for mark in node.own_markers if mark.name == marker]
    if not isinstance(node, pytest.Class):
        return marks
    written = [cls.__dict__.get("pytestmark", []) for cls in node.obj.__mro__]
    order = [id(getattr(mark, "mark", mark)) for own in written for mark in (own if isinstance(own, list) else [own])]
    return sorted(marks, key=lambda mark: order.index(id(mark)) if id(mark) in order else -1)


def get_config_error(read: Callable[..., object], *arguments: object) -> str:
    """Return why ``read`` rejects the user's input; an empty text if it does not."""
    try:
        read(*arguments)
    except (ConfigError, MissingExtraError) as error:
        return str(error)
    except (ArithmeticError, TypeError, ValueError) as error:  # one wrong marker must not hide the others
        return f"{type(error).__name__}: {error}"
    return ""
